"""Robustness of zero-shot and of probes, by hand."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from clip_jax.errors import UsageError
from clip_jax.evaluation import Options, find_evaluator
from clip_jax.evaluation.dataset import Dataset, Split
from clip_jax.evaluation.shift.effective_robustness import (
  Baseline,
  effective_robustness,
  fit_logits,
)
from clip_jax.evaluation.tasks.robustness import evaluate, evaluate_shift
from clip_jax.evaluation.types import (
  FewShotOptions,
  ProbeOptions,
  RobustnessOptions,
)
from clip_jax.inference.model import Model
from clip_jax.parallel.mesh import make_mesh
from tests.evaluation.rows import (
  PoolingRowEncoder,
  RowEncoder,
  RowSource,
  blobs,
  dataset_of,
)
from tests.inference.test_model import tiny_description, tiny_params

# Four classes about their centres; the shift has two of them and one more,
# its images further off, in another order and under other labels.
ROWS, LABELS = blobs(4, 40, noise=0.5)
FAR, FAR_LABELS = blobs(4, 40, noise=0.9, seed=1)
FAR_LABELS = np.array([2, 0, 1, 1])[FAR_LABELS]  # 'c', 'a'; the rest is 'e'
NAMES = ['a', 'b', 'c', 'd']
REFERENCE = dataset_of(
  LABELS, train=range(80), test=range(80, 160), names=NAMES
)
SHIFT = dataclasses.replace(
  dataset_of(
    np.concatenate([LABELS, FAR_LABELS]),
    train=None,
    test=range(160, 320),
    names=['b', 'e', 'a'],
  ),
  name='far',
  reference=REFERENCE,
  templates=('far {}',),
)
CENTRES = np.eye(8)
TEXTS = {name: CENTRES[i].tolist() for i, name in enumerate(NAMES)}
# The shift's own words for the same: a little better than those of before.
FAR_TEXTS = {
  'far a': FAR[FAR_LABELS == 2].mean(axis=0).tolist(),
  'far b': FAR[FAR_LABELS == 0].mean(axis=0).tolist(),
  'far e': [0, 0, 1, 1, 0, 0, 0, 0],
}
ENCODER = RowEncoder(np.concatenate([ROWS, FAR]), TEXTS | FAR_TEXTS)
QUICK = Options(
  few_shot=FewShotOptions(examples_per_class=(1, 2, 4), seeds=2),
  probe=ProbeOptions(C=1.0),
)
LINE = [
  Baseline('small', 0.5, 0.3),
  Baseline('middle', 0.7, 0.45),
  Baseline('large', 0.8, 0.6),
]


def by_hand():
  """Zero-shot accuracies of a and b: on the reference, the shift, adapted."""
  rows, labels = ROWS[80:], LABELS[80:]
  kept = labels < 2
  reference = (rows[kept, :2].argmax(axis=1) == labels[kept]).mean()
  kept = FAR_LABELS != 1
  truth = np.where(FAR_LABELS == 2, 0, 1)[kept]  # a, b
  plain = (FAR[kept, :2].argmax(axis=1) == truth).mean()
  columns = np.array([FAR_TEXTS['far a'], FAR_TEXTS['far b']]).T
  columns = columns / np.linalg.norm(columns, axis=0)
  adapted = ((FAR[kept] @ columns).argmax(axis=1) == truth).mean()
  return reference, plain, adapted


def models(result, *kinds):
  return [row for row in result.tables['models'] if row['kind'] in kinds]


def test_probes_use_pooled_features_and_zero_shot_the_joint_space():
  classes = np.concatenate([LABELS, np.array([1, 2, 0])[FAR_LABELS]])
  rows = np.concatenate([ROWS, FAR])
  clear = PoolingRowEncoder(np.eye(4)[classes], rows, TEXTS | FAR_TEXTS)
  plain = evaluate_shift(ENCODER, REFERENCE, SHIFT, QUICK, LINE).metrics
  result = evaluate_shift(clear, REFERENCE, SHIFT, QUICK, LINE).metrics
  for name in ('zero_shot_reference', 'zero_shot_shift', 'adapted_shift'):
    assert result[name] == plain[name] < 1
  assert result['probe_reference'] == result['probe_shift'] == 1


def test_zero_shot_on_the_shared_classes_by_hand():
  result = evaluate_shift(ENCODER, REFERENCE, SHIFT, QUICK, LINE)
  reference, plain, adapted = by_hand()
  metrics = result.metrics
  assert metrics['zero_shot_reference'] == pytest.approx(reference)
  assert metrics['zero_shot_shift'] == pytest.approx(plain)
  assert metrics['adapted_shift'] == pytest.approx(adapted)
  assert metrics['adaptation_gain'] == pytest.approx(adapted - plain)
  assert plain != adapted
  assert metrics['shared_classes'] == 2
  assert metrics['examples'] == (FAR_LABELS != 1).sum()
  assert metrics['reference_examples'] == (LABELS[80:] < 2).sum()
  assert {record['label'] for record in result.records} == {'a', 'b'}
  for kind, expected in (('zero_shot', plain), ('adapted', adapted)):
    right = np.mean([record[kind] for record in result.records])
    assert right == pytest.approx(expected)
  json.dumps([result.metrics, result.records, result.tables])


def test_robustness_is_above_the_line_of_the_baselines():
  result = evaluate_shift(ENCODER, REFERENCE, SHIFT, QUICK, LINE)
  reference, plain, adapted = by_hand()
  line = fit_logits(
    np.array([row[1] for row in LINE]), np.array([row[2] for row in LINE])
  )
  metrics = result.metrics
  assert metrics['effective_robustness'] == pytest.approx(
    effective_robustness(plain, reference, line)
  )
  assert metrics['adapted_effective_robustness'] == pytest.approx(
    effective_robustness(adapted, reference, line)
  )
  assert metrics['relative_robustness'] == pytest.approx(
    plain - metrics['probe_shift']
  )
  assert metrics['adapted_relative_robustness'] == pytest.approx(
    adapted - metrics['probe_shift']
  )
  (fit,) = result.tables['fit']
  assert fit['slope'] == pytest.approx(line.slope)
  assert fit['through'] == 'baselines'
  assert [row['name'] for row in models(result, 'baseline')] == [
    'small', 'middle', 'large'
  ]  # fmt: skip
  for row in result.tables['line'][::12]:
    assert row['shift_accuracy'] == pytest.approx(
      line.predict(row['reference_accuracy'])
    )
    assert row['low'] < row['shift_accuracy'] < row['high']


def test_without_baselines_the_line_is_the_probes_and_says_so():
  result = evaluate(ENCODER, SHIFT, QUICK)
  probes = models(result, 'probe', 'full_probe')
  assert [row['name'] for row in probes] == [
    '1-shot probe', '2-shot probe', '4-shot probe', 'probe of all examples'
  ]  # fmt: skip
  line = fit_logits(
    np.array([row['reference_accuracy'] for row in probes]),
    np.array([row['shift_accuracy'] for row in probes]),
  )
  (fit,) = result.tables['fit']
  assert fit['slope'] == pytest.approx(line.slope)
  assert fit['through'] == 'probes'
  assert fit['models'] == 4
  assert 'not through standard' in result.tables['notes'][-1]['note']
  last = probes[-1]
  assert result.metrics['probe_shift'] == last['shift_accuracy']
  assert result.metrics['probe_reference'] == last['reference_accuracy']


def test_probes_choose_among_the_shared_classes_only():
  # A shift that is the reference itself, of which only two classes are left.
  kept = [i for i in range(80, 160) if LABELS[i] < 2]
  same = dataset_of(
    LABELS, train=None, test=kept, names=NAMES, reference=REFERENCE
  )
  same = dataclasses.replace(same, class_names=(('a',), ('b',)))
  result = evaluate(ENCODER, same, QUICK)
  for row in models(result, 'zero_shot', 'adapted', 'probe', 'full_probe'):
    assert row['reference_accuracy'] == row['shift_accuracy']


def test_a_reference_without_training_has_no_probes_and_no_line():
  reference = dataclasses.replace(REFERENCE, train=None)
  result = evaluate_shift(ENCODER, reference, SHIFT, QUICK)
  assert not models(result, 'probe', 'full_probe')
  assert result.tables['fit'] == result.tables['line'] == []
  assert {
    'effective_robustness',
    'relative_robustness',
    'probe_shift',
  }.isdisjoint(result.metrics)
  notes = [row['note'] for row in result.tables['notes']]
  assert "no probes: data 'blobs' has no training split" in notes[0]
  assert 'no effective robustness' in notes[1]
  with_line = evaluate_shift(ENCODER, reference, SHIFT, QUICK, LINE)
  assert 'effective_robustness' in with_line.metrics


def test_a_seed_is_one_result():
  assert evaluate(ENCODER, SHIFT, QUICK) == evaluate(ENCODER, SHIFT, QUICK)


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one():
  numbers = np.random.default_rng(0).permutation(3000)[:36]
  bright = (numbers > 1500).astype(int)
  parts = slice(12), slice(12, 24), slice(24, 36)
  train, test, far = (
    Split(RowSource(numbers[part].tolist(), bright[part].tolist()))
    for part in parts
  )
  names = (('dark',), ('bright',))
  reference = Dataset('tiny', test, train=train, class_names=names)
  shift = Dataset('far', far, class_names=names, reference=reference)
  one, eight = (
    evaluate(
      Model(tiny_description(), {'params': tiny_params()}, mesh=mesh),
      shift,
      QUICK,
    )
    for mesh in (None, make_mesh(8, 1, 1, devices=jax.devices()[:8]))
  )
  assert one.metrics == eight.metrics
  assert one.records == eight.records
  assert one.tables['models'] == eight.tables['models']
  assert len(models(one, 'probe', 'full_probe')) == 4


def test_baselines_are_read_from_the_options_file(tmp_path):
  path = tmp_path / 'models.csv'
  lines = ['model,reference_accuracy,shift_accuracy']
  lines += [f'{name},{x},{y}' for name, x, y in LINE]
  path.write_text('\n'.join(lines))
  options = dataclasses.replace(
    QUICK, robustness=RobustnessOptions(baselines=str(path))
  )
  result = find_evaluator('robustness')(ENCODER, SHIFT, options)
  assert result == evaluate_shift(ENCODER, REFERENCE, SHIFT, QUICK, LINE)


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (REFERENCE, "'blobs' is no shift of another data set, which robustness"),
    (dataclasses.replace(SHIFT, class_names=()), 'has no label names'),
    (
      dataclasses.replace(SHIFT, class_names=(('x',), ('y',), ('z',))),
      'share 0 classes',
    ),
    (
      dataclasses.replace(
        SHIFT,
        class_names=(('b',), ('e',), ('a',)),
        test=dataset_of(
          np.ones(160, int), train=None, test=range(3), names='beb'
        ).test,
      ),
      "'far': no test image is of a class that the shift",
    ),
  ],
)
def test_a_data_set_without_a_reference_is_refused_in_one_line(data, message):
  with pytest.raises(UsageError, match=message) as caught:
    evaluate(ENCODER, data, QUICK)
  assert '\n' not in str(caught.value)
