"""Both solvers against scikit-learn's golden and against each other."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation.probes import device_solver, logistic_regression
from clip_jax.evaluation.probes.device_solver import shard_rows
from clip_jax.evaluation.probes.logistic_regression import (
  SOLVERS,
  LinearClassifier,
  fit,
  fit_multilabel,
)
from clip_jax.inference.classifier import softmax
from tests.golden_models import GOLDENS

PROBE = GOLDENS / 'linear_probe'
CASE = json.loads((PROBE / 'linear_probe.json').read_text())
both = pytest.mark.parametrize('solver', SOLVERS)


def objective(classifier, features, labels, C):
  """Returns what `fit` minimises, at a classifier, in float64."""
  weights = classifier.weights.astype(np.float64)
  logits = features.astype(np.float64) @ weights + classifier.bias
  right = logits[np.arange(len(labels)), labels]
  losses = np.asarray(logsumexp(logits, axis=1)) - right
  return float(0.5 * (weights**2).sum() + C * losses.sum())


@pytest.fixture(scope='module')
def golden():
  return load_file(PROBE / 'linear_probe.safetensors')


def training(golden):
  """Features and labels of the rows that the golden was fitted on."""
  n = CASE['n_train']
  return golden['X'][:n], golden['y'][:n]


def fit_golden(golden, features=None, **options):
  options = {'C': CASE['C'], 'classes': CASE['classes'], **options}
  result, labels = training(golden)
  return fit(result if features is None else features, labels, **options)


def random_case(seed, classes, rows=120, width=6):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, rows)
  features = rng.normal(size=(rows, width)) + 3  # as raw features, off 0
  features += rng.normal(size=(classes, width))[labels]
  return features.astype(np.float32), labels


def check_optimal(probe, features, labels, C):
  """The gradient of the objective is nought, by hand."""
  logits = features.astype(np.float64) @ probe.weights + probe.bias
  excess = softmax(logits) - np.eye(logits.shape[1])[labels]
  size = C * len(labels)
  np.testing.assert_allclose(
    (probe.weights + C * features.T @ excess) / size, 0, atol=1e-5
  )
  np.testing.assert_allclose(excess.mean(axis=0), 0, atol=1e-5)


@both
def test_the_golden_probe_is_reproduced(golden, solver):
  probe = fit_golden(golden, solver=solver)
  np.testing.assert_allclose(probe.weights.T, golden['tight.coef'], atol=1e-3)
  np.testing.assert_allclose(probe.bias, golden['tight.intercept'], atol=1e-3)
  rest = golden['X'][CASE['n_train'] :]
  np.testing.assert_allclose(
    softmax(probe.scores(rest)), golden['tight.proba_test'], atol=1e-3
  )
  predicted = probe.predict(rest)
  for fitted in ('tight', 'default'):
    np.testing.assert_array_equal(
      predicted, golden[f'{fitted}.proba_test'].argmax(axis=1)
    )
  accuracy = (predicted == golden['y'][CASE['n_train'] :]).mean()
  assert accuracy == pytest.approx(CASE['tight']['test_accuracy'])
  features, labels = training(golden)
  result = objective(probe, features, labels, CASE['C'])
  assert result == pytest.approx(CASE['tight']['objective'], rel=1e-6)
  check_optimal(probe, features, labels, CASE['C'])
  assert probe.converged
  assert probe.weights.dtype == probe.bias.dtype == np.float32


def test_the_objective_is_the_goldens_at_its_own_weights(golden):
  features, labels = training(golden)
  for name in ('tight', 'default'):
    stored = LinearClassifier(
      golden[f'{name}.coef'].T, golden[f'{name}.intercept']
    )
    result = objective(stored, features, labels, CASE['C'])
    assert result == pytest.approx(CASE[name]['objective'], rel=1e-9)


@pytest.mark.parametrize('C', [1e-3, 1.0, 100.0])
@pytest.mark.parametrize('classes', [2, 3])
def test_both_solvers_find_one_optimum(classes, C):
  features, labels = random_case(0, classes)
  probes = [
    fit(features, labels, C=C, classes=classes, solver=solver)
    for solver in SOLVERS
  ]
  for probe in probes:
    check_optimal(probe, features, labels, C)
  # What C leaves free, the tolerance does.
  np.testing.assert_allclose(
    probes[0].weights, probes[1].weights, atol=2e-3, rtol=2e-3
  )
  assert (probes[0].predict(features) == probes[1].predict(features)).all()


@both
def test_two_classes_are_a_softmax_over_both(solver):
  features, labels = random_case(1, 2)
  probe = fit(features, labels, C=0.5, classes=2, solver=solver)
  np.testing.assert_allclose(
    probe.weights[:, 0], -probe.weights[:, 1], atol=1e-5
  )
  # scikit-learn's one column of twice the size has half the penalty.
  alone = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000)
  alone.fit(features.astype(np.float64), labels)
  np.testing.assert_allclose(2 * probe.weights[:, 1], alone.coef_[0], atol=1e-3)
  np.testing.assert_allclose(
    softmax(probe.scores(features)), alone.predict_proba(features), atol=1e-3
  )


@both
@pytest.mark.parametrize('present', [[0, 2, 4], [1, 3]])
def test_a_class_that_does_not_occur_is_never_predicted(solver, present):
  features, places = random_case(2, len(present))
  labels = np.array(present)[places]
  probe = fit(features, labels, C=1.0, classes=5, solver=solver)
  alone = fit(features, places, C=1.0, classes=len(present), solver=solver)
  np.testing.assert_array_equal(probe.weights[:, present], alone.weights)
  np.testing.assert_array_equal(probe.bias[present], alone.bias)
  missing = np.setdiff1d(np.arange(5), present)
  assert (probe.bias[missing] == -np.inf).all()
  assert not probe.weights[:, missing].any()
  assert np.isin(probe.predict(features), present).all()
  assert np.isfinite(objective(probe, features, labels, 1.0))
  # And it can start another that has seen the class.
  features, labels = random_case(3, 5)
  again = fit(features, labels, C=1.0, classes=5, initial=probe, solver=solver)
  check_optimal(again, features, labels, 1.0)


@both
def test_the_start_of_a_probe_changes_only_its_number_of_steps(golden, solver):
  cold = fit_golden(golden, solver=solver)
  warm = fit_golden(golden, solver=solver, initial=cold)
  assert warm.iterations <= 2 < cold.iterations
  np.testing.assert_allclose(warm.weights, cold.weights, atol=1e-4)
  rng = np.random.default_rng(0)
  far = LinearClassifier(
    rng.normal(size=cold.weights.shape).astype(np.float32),
    rng.normal(size=cold.bias.shape).astype(np.float32),
  )
  other = fit_golden(golden, solver=solver, initial=far)
  np.testing.assert_allclose(other.weights, cold.weights, atol=1e-3)
  np.testing.assert_allclose(other.bias, cold.bias, atol=1e-3)


@both
def test_a_probe_of_two_classes_started_at_its_optimum_stays_there(solver):
  features, labels = random_case(4, 2)
  cold = fit(features, labels, C=1.0, classes=2, solver=solver)
  warm = fit(features, labels, C=1.0, classes=2, initial=cold, solver=solver)
  assert warm.iterations <= 2 < cold.iterations
  np.testing.assert_allclose(warm.weights, cold.weights, atol=1e-4)


@both
def test_a_probe_that_runs_out_of_iterations_says_so(golden, solver, recwarn):
  probe = fit_golden(golden, solver=solver, max_iterations=3)
  assert (probe.iterations, probe.converged) == (3, False)
  assert not recwarn.list


@pytest.mark.parametrize('axis_type', [AxisType.Auto, AxisType.Explicit])
def test_sharded_features_give_the_probe_of_one_device(golden, axis_type):
  features, labels = training(golden)
  alone = fit_golden(golden, jax.device_put(features, jax.devices()[0]))
  mesh = Mesh(
    np.array(jax.devices()).reshape(4, 2),
    ('data', 'fsdp'),
    axis_types=(axis_type,) * 2,
  )
  for axes in (('data', 'fsdp'), None):
    sharding = NamedSharding(mesh, PartitionSpec(axes))
    sharded = fit_golden(golden, jax.device_put(features, sharding))
    np.testing.assert_allclose(sharded.weights, alone.weights, atol=2e-4)
    np.testing.assert_allclose(sharded.bias, alone.bias, atol=2e-4)
    check_optimal(sharded, features, labels, CASE['C'])


def test_padding_rows_change_nothing(golden):
  features, labels = training(golden)
  alone = fit_golden(golden)
  filling = np.full((8, features.shape[1]), 1e3, np.float32)
  filled = shard_rows(np.concatenate([features, filling]))
  probe = fit(filled, labels, C=CASE['C'], classes=CASE['classes'])
  np.testing.assert_allclose(probe.weights, alone.weights, atol=1e-3)
  np.testing.assert_allclose(probe.bias, alone.bias, atol=1e-3)


def test_large_problems_are_sharded_over_all_devices(golden, monkeypatch):
  features, labels = (part[:-3] for part in training(golden))
  assert len(labels) % 8
  options = {'C': CASE['C'], 'classes': CASE['classes']}
  rest = golden['X'][CASE['n_train'] :]
  host = fit(features, labels, **options)
  alone = fit(jax.device_put(features, jax.devices()[0]), labels, **options)
  placed = []

  def watched(rows):
    placed.append(shard_rows(rows))
    return placed[-1]

  monkeypatch.setattr(device_solver, 'shard_rows', watched)
  monkeypatch.setattr(logistic_regression, '_SMALL', 0)
  probe = fit(features, labels, **options)
  (array,) = placed
  shards = [shard.data.shape for shard in array.addressable_shards]
  assert shards == [(-(-len(labels) // 8), features.shape[1])] * 8
  for other in (host, alone):
    np.testing.assert_allclose(probe.weights, other.weights, atol=1e-3)
    np.testing.assert_array_equal(probe.predict(rest), other.predict(rest))
  check_optimal(probe, features, labels, CASE['C'])


def test_both_solvers_find_one_probe_and_are_chosen_by_size(monkeypatch):
  features, labels = random_case(5, 3)
  on_device = jax.device_put(features, jax.devices()[0])
  options = {'C': 1.0, 'classes': 3}
  host = fit(features, labels, solver='sklearn', **options)
  sharded = fit(features, labels, solver='optax', **options)
  single = fit(on_device, labels, solver='optax', **options)
  for device in (sharded, single):
    np.testing.assert_allclose(device.weights, host.weights, atol=1e-3)
    np.testing.assert_allclose(device.bias, host.bias, atol=1e-3)
    # Float32 on devices and float64 on the host round differently.
    assert not np.array_equal(device.weights, host.weights)
  size = features.size * 3
  for small, rows, expected in (
    (size, features, host),
    (size, on_device, single),
    (size - 1, features, sharded),
  ):
    monkeypatch.setattr(logistic_regression, '_SMALL', small)
    probe = fit(rows, labels, **options)
    np.testing.assert_array_equal(probe.weights, expected.weights)


@both
def test_multilabel_is_scikit_learns_one_against_the_rest(solver):
  features, _ = random_case(6, 2)
  rng = np.random.default_rng(6)
  truth = features @ rng.normal(size=(6, 4)) + rng.normal(size=(120, 4)) > 0
  truth[:2] = [[True] * 4, [False] * 4]
  probe = fit_multilabel(features, truth, C=0.3, solver=solver)
  expected = OneVsRestClassifier(LogisticRegression(C=0.3, tol=1e-8))
  expected.fit(features.astype(np.float64), truth)
  np.testing.assert_allclose(
    probe.scores(features), expected.decision_function(features), atol=5e-3
  )
  warm = fit_multilabel(features, truth, C=0.3, initial=probe, solver=solver)
  assert warm.iterations <= 2 < probe.iterations
  np.testing.assert_allclose(warm.weights, probe.weights, atol=1e-4)


def test_a_class_in_all_or_no_images_has_no_probe():
  features, _ = random_case(7, 2, rows=4)
  truth = np.array([[True, False]] * 2 + [[False, False]] * 2)
  with pytest.raises(UsageError, match='class 1 is in none of the 4 images'):
    fit_multilabel(features, truth, C=1.0)
  with pytest.raises(UsageError, match='class 0 is in all of the 2 images'):
    fit_multilabel(features[:2], truth[:2], C=1.0)


@both
def test_impossible_probes_are_refused(solver):
  features, labels = random_case(8, 3)

  def attempt(match, error=UsageError, **changes):
    options = {'C': 1.0, 'classes': 3, 'solver': solver, **changes}
    rows = options.pop('features', features)
    with pytest.raises(error, match=match):
      fit(rows, options.pop('labels', labels), **options)

  attempt('all 120 examples are of class 2', labels=np.full(120, 2))
  attempt('outside the range of 2 classes', classes=2)
  attempt('outside the range', labels=labels - 1)
  attempt('no labels', features=features[:0], labels=labels[:0])
  attempt(r'C=0\.0: use a positive', C=0.0)
  attempt('C=inf', C=np.inf)
  attempt('max_iterations=0', max_iterations=0)
  attempt("solver='lbfgs': choose one of sklearn, optax", solver='lbfgs')
  small = LinearClassifier(
    np.zeros((6, 2), np.float32), np.zeros(2, np.float32)
  )
  attempt('6 features and 2 classes, and .* 6 and 3', initial=small)
  damaged = features.copy()
  damaged[3, 2] = np.nan
  attempt('features are not finite', FailureError, features=damaged)


def test_features_whose_scores_overflow_are_a_failure():
  features, labels = random_case(9, 3)
  with pytest.raises(FailureError, match='C=1 diverged: features this large'):
    fit(features * 1e36, labels, C=1.0, classes=3, solver='optax')
