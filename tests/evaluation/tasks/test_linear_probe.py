"""The probe's evaluator: against the golden, by hand, and what it refuses."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from clip_jax.errors import UsageError
from clip_jax.evaluation import Options, find_evaluator
from clip_jax.evaluation.dataset import Dataset, Split
from clip_jax.evaluation.examples import join_examples, read_examples
from clip_jax.evaluation.metrics.classification import (
  map_11_point,
)
from clip_jax.evaluation.metrics.intervals import clopper_pearson
from clip_jax.evaluation.probes import device_solver, logistic_regression
from clip_jax.evaluation.probes.c_sweep import GRID
from clip_jax.evaluation.tasks import linear_probe
from clip_jax.evaluation.types import FewShotOptions, ProbeOptions
from clip_jax.inference.model import Model
from clip_jax.parallel.mesh import make_mesh
from tests.evaluation.rows import (
  PoolingRowEncoder,
  RowEncoder,
  RowSource,
  blobs,
  dataset_of,
  split_of,
)
from tests.golden_models import GOLDENS
from tests.inference.test_model import tiny_description, tiny_params

ROWS, LABELS = blobs(3, 30, noise=0.6)
DATA = dataset_of(
  LABELS, train=range(40), validation=range(40, 60), test=range(60, 90)
)
ENCODER = RowEncoder(
  ROWS, {str(c): np.eye(8)[c].tolist() for c in range(3)}
)  # the text knows the centres
QUICK = Options(probe=ProbeOptions(C=1.0))


def predictions(result):
  return [record['top'][0][0] for record in result.records]


def test_the_golden_probe_is_reproduced_through_an_encoder():
  case = json.loads((GOLDENS / 'linear_probe/linear_probe.json').read_text())
  golden = load_file(GOLDENS / 'linear_probe' / 'linear_probe.safetensors')
  n, labels = case['n_train'], golden['y']
  data = dataset_of(labels, train=range(n), test=range(n, len(labels)))
  result = linear_probe.evaluate(
    RowEncoder(golden['X']), data, Options(probe=ProbeOptions(C=case['C']))
  )
  chances = golden['tight.proba_test']
  assert predictions(result) == [str(c) for c in chances.argmax(axis=1)]
  assert result.metrics['top1'] == case['tight']['test_accuracy']
  np.testing.assert_allclose(
    [record['top'][0][1] for record in result.records],
    chances.max(axis=1),
    atol=1e-3,
  )


def test_it_is_scikit_learns_probe_on_training_and_validation():
  result = linear_probe.evaluate(ENCODER, DATA, Options())
  (probe,) = result.tables['probe']
  model = LogisticRegression(C=probe['C'], tol=1e-8, max_iter=10_000)
  model.fit(ROWS[:60], LABELS[:60])
  expected = model.predict(ROWS[60:])
  assert predictions(result) == [str(c) for c in expected]
  right = int(np.sum(expected == LABELS[60:]))
  low, high = clopper_pearson(right, 30)
  assert 0 < right < 30
  assert result.metrics == {
    'top1': right / 30,
    'top1_low': low,
    'top1_high': high,
    'mean_per_class': pytest.approx(
      balanced_accuracy_score(LABELS[60:], expected)
    ),
    'examples': 30.0,
    'train_examples': 60.0,
  }
  level = 1 / len(set(LABELS))
  assert result.chance == {'top1': level, 'mean_per_class': level}
  assert probe['converged']
  assert probe['iterations'] > 1
  json.dumps([result.metrics, result.records, result.tables])


def test_c_is_the_best_of_the_sweep_on_the_validation_split():
  result = linear_probe.evaluate(ENCODER, DATA, Options())
  sweep = result.tables['sweep']
  assert {row['C'] for row in sweep} <= set(GRID)
  assert len(sweep) >= 7
  for row in sweep[::3]:  # fitted on the training split alone
    model = LogisticRegression(C=row['C'], tol=1e-8, max_iter=10_000)
    model.fit(ROWS[:40], LABELS[:40])
    assert row['score'] == model.score(ROWS[40:60], LABELS[40:60])
  best = max(row['score'] for row in sweep)
  (probe,) = result.tables['probe']
  assert probe['C'] == min(row['C'] for row in sweep if row['score'] == best)


def test_without_validation_a_part_of_training_is_held_out_by_the_seed():
  data = dataclasses.replace(DATA, validation=None)
  results = [
    linear_probe.evaluate(ENCODER, data, Options(seed=seed))
    for seed in (0, 0, 1)
  ]
  assert results[0] == results[1]
  assert results[0].tables['sweep'] != results[2].tables['sweep']
  assert results[0].metrics['train_examples'] == 40  # all are fitted at last


def test_the_metric_of_the_data_set_is_reported_by_name():
  data = dataset_of(
    (LABELS > 0).astype(int),
    train=range(60),
    test=range(60, 90),
    metric='roc_auc',
  )
  result = linear_probe.evaluate(ENCODER, data, QUICK)
  assert result.metrics['top1'] < result.metrics['roc_auc'] <= 1


def test_from_the_text_few_steps_are_better_and_many_end_at_the_same():
  def run(start_from_text, probe_iterations):
    options = Options(
      probe=ProbeOptions(
        C=1.0, start_from_text=start_from_text, max_iterations=probe_iterations
      )
    )
    return linear_probe.evaluate(ENCODER, DATA, options)

  plain, started = run(False, 1000), run(True, 1000)
  for a, b in zip(plain.records, started.records, strict=True):
    assert a['top'][0][0] == b['top'][0][0]
    assert a['top'][0][1] == pytest.approx(b['top'][0][1], abs=1e-3)
  short = run(True, 1)
  (probe,) = short.tables['probe']
  assert not probe['converged']
  assert probe['start'] == 'text'
  assert probe['iterations'] == 1
  assert short.records != started.records


def test_multilabel_images_have_one_probe_for_each_class():
  rng = np.random.default_rng(0)
  there = rng.random((60, 3)) < 0.4
  there[~there.any(axis=1), 0] = True
  rows = there @ np.eye(3, 8) + 0.3 * rng.normal(size=(60, 8))
  several = [np.flatnonzero(x).tolist() for x in there]
  parts = [range(30), range(30, 40), range(40, 60)]
  train, validation, test = (
    Split(RowSource(part, several=[several[i] for i in part])) for part in parts
  )
  data = Dataset(
    'several',
    test,
    train=train,
    validation=validation,
    class_names=(('x',), ('y',), ('z',)),
    metric='map_11_point',
  )
  result = linear_probe.evaluate(RowEncoder(rows), data, Options())
  assert set(result.metrics) == {'map_11_point', 'examples', 'train_examples'}
  assert result.metrics['map_11_point'] > 0.8
  (probe,) = result.tables['probe']
  for c, name in enumerate('xyz'):
    model = LogisticRegression(C=probe['C'], tol=1e-8, max_iter=10_000)
    model.fit(rows[:40], there[:40, c])
    chances = model.predict_proba(rows[40:])[:, 1]
    for record, chance in zip(result.records, chances, strict=True):
      assert dict(record['top'])[name] == pytest.approx(chance, abs=2e-3)
  assert result.records[0]['labels'] == ['xyz'[c] for c in several[40]]
  # A fifth of the rows can be held out as well.
  again = dataclasses.replace(data, validation=None)
  assert linear_probe.evaluate(RowEncoder(rows), again, Options()).tables[
    'sweep'
  ]


def test_images_outside_the_classes_are_left_out():
  train = Split(
    RowSource(range(60), LABELS[:60].tolist()), np.array([0, 1, -1])
  )
  test = Split(
    RowSource(range(60, 90), LABELS[60:].tolist()), np.array([0, 1, -1])
  )
  data = Dataset('part', test, train=train, class_names=(('a',), ('b',)))
  result = linear_probe.evaluate(ENCODER, data, QUICK)
  assert result.metrics['examples'] == (LABELS[60:] < 2).sum()
  assert result.metrics['train_examples'] == (LABELS[:60] < 2).sum()


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (dataclasses.replace(DATA, train=None), "'blobs' has no training split"),
    (
      dataclasses.replace(DATA, train=split_of([0], LABELS), validation=None),
      r"'rows:', to train on: 2 of 3 classes have no examples",
    ),
    (dataclasses.replace(DATA, class_names=()), 'has no label names'),
    (
      dataset_of(np.zeros(90, int), train=range(9), test=range(9, 12)),
      'all 9 examples are of class 0',
    ),
    (
      dataclasses.replace(DATA, test=Split(RowSource([0]))),
      'record rows:0 has no label',
    ),
    (
      dataclasses.replace(
        DATA, test=Split(RowSource([0], [0]), np.array([-1]))
      ),
      "'rows:' has no image of a class of 'blobs'",
    ),
  ],
)
def test_impossible_linear_probes_are_refused_in_one_line(data, message):
  with pytest.raises(UsageError, match=message) as caught:
    linear_probe.evaluate(ENCODER, data, QUICK)
  assert '\n' not in str(caught.value)


# Before the joint space two numbers more, without which nothing is known.
POOLED = 5 * np.concatenate([np.eye(3)[LABELS][:, :2], ROWS], axis=1)
BLANK = np.tile(np.eye(8)[0], (90, 1))
BLIND = PoolingRowEncoder(
  POOLED, BLANK, {str(c): np.eye(8)[c].tolist() for c in range(3)}
)


def test_a_probe_is_fitted_on_pooled_features():
  result = linear_probe.evaluate(BLIND, DATA, QUICK)
  model = LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000)
  model.fit(POOLED[:60], LABELS[:60])
  assert result.metrics['top1'] == 1.0
  expected = model.predict_proba(POOLED[60:]).max(axis=1)
  top = [record['top'][0][1] for record in result.records]
  np.testing.assert_allclose(top, expected, atol=1e-3)


@pytest.mark.parametrize('option', ['joint_space', 'start_from_text'])
def test_a_probe_is_fitted_on_the_joint_space_without_pooled_features(option):
  asked = dataclasses.replace(
    QUICK, probe=dataclasses.replace(QUICK.probe, **{option: True})
  )
  expected = linear_probe.evaluate(RowEncoder(BLANK), DATA, QUICK)
  result = linear_probe.evaluate(BLIND, DATA, asked)
  assert result.metrics == expected.metrics
  assert result.metrics['top1'] < 0.6  # one answer for all


def test_difficult_objects_are_neither_learned_nor_tested():
  there = np.eye(3, dtype=bool)[LABELS]
  several = [[int(c)] for c in LABELS]
  hidden = [[(int(c) + 1) % 3] if i % 2 else [] for i, c in enumerate(LABELS)]

  def measure(difficult):
    splits = [
      Split(
        RowSource(
          part,
          several=[several[i] for i in part],
          difficult=[difficult[i] for i in part],
        )
      )
      for part in (range(60), range(60, 90))
    ]
    data = Dataset(
      'voc',
      splits[1],
      train=splits[0],
      class_names=(('x',), ('y',), ('z',)),
      metric='map_11_point',
    )
    return linear_probe.evaluate(ENCODER, data, QUICK).metrics['map_11_point']

  scores, counted = np.empty((30, 3)), np.ones((90, 3), bool)
  for i, classes in enumerate(hidden):
    counted[i, classes] = False
  for c in range(3):
    rows = np.flatnonzero(counted[:60, c])
    model = LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000)
    model.fit(ROWS[rows], there[rows, c])
    scores[:, c] = model.decision_function(ROWS[60:])
  expected = map_11_point(scores, there[60:], ~counted[60:])
  assert measure(hidden) == pytest.approx(expected)
  assert measure(hidden) != measure([[]] * 90)


def test_joining_one_part_copies_nothing():
  part = read_examples(ENCODER, DATA.test, DATA, QUICK, 'a test')
  assert join_examples([part]) is part


def test_a_sweep_moves_its_rows_to_the_devices_once(monkeypatch):
  placed = []
  original = device_solver.shard_rows

  def watched(rows):
    placed.append(len(rows))
    return original(rows)

  host = linear_probe.evaluate(ENCODER, DATA, Options())
  monkeypatch.setattr(device_solver, 'shard_rows', watched)
  # It finds the same, and need not be compiled.
  monkeypatch.setattr(
    device_solver, 'solve', logistic_regression._solve_on_host
  )
  monkeypatch.setattr(logistic_regression, '_SMALL', 0)
  assert linear_probe.evaluate(ENCODER, DATA, Options()) == host
  assert len(host.tables['sweep']) > 7
  assert placed == [40, 60]  # for the sweep, and for the probe of all


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one():
  images = np.random.default_rng(0).permutation(3000)[:36]
  labels = (images > 1500).astype(int)
  source = [
    RowSource(images[part].tolist(), labels[part].tolist())
    for part in (slice(24), slice(24, 36))
  ]
  data = Dataset(
    'tiny',
    Split(source[1]),
    train=Split(source[0]),
    class_names=(('dark',), ('bright',)),
  )
  meshes = [None, make_mesh(8, 1, 1, devices=jax.devices()[:8])]
  options = Options(
    few_shot=FewShotOptions(examples_per_class=(1, 2), seeds=2),
    probe=ProbeOptions(C=1.0),
  )
  for task in ('linear_probe', 'few_shot'):
    one, eight = (
      find_evaluator(task)(
        Model(tiny_description(), {'params': tiny_params()}, mesh=mesh),
        data,
        options,
      )
      for mesh in meshes
    )
    assert one.metrics == eight.metrics
