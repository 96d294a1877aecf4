"""The few-shot curve by hand, and what holds of its seeds."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from clip_jax.errors import UsageError
from clip_jax.evaluation import Options
from clip_jax.evaluation.dataset import Split
from clip_jax.evaluation.metrics.intervals import mean_interval
from clip_jax.evaluation.probes import few_shot as probes
from clip_jax.evaluation.probes.sampling import sample
from clip_jax.evaluation.tasks import few_shot
from clip_jax.evaluation.tasks.few_shot import examples_to_match
from clip_jax.evaluation.types import FewShotOptions, ProbeOptions
from tests.evaluation.rows import (
  PoolingRowEncoder,
  RowEncoder,
  RowSource,
  blobs,
  dataset_of,
)

ROWS, LABELS = blobs(3, 60, noise=0.7)
DATA = dataset_of(LABELS, train=range(90), test=range(90, 180))
CENTRES = {str(c): np.eye(8)[c].tolist() for c in range(3)}
ENCODER = RowEncoder(ROWS, CENTRES)
ASKEW = RowEncoder(  # a poor zero-shot classifier
  ROWS, {'0': [1, 0, 0] + [0] * 5, '1': [1, 1, 0] + [0] * 5, '2': [1] * 8}
)
QUICK = Options(
  few_shot=FewShotOptions(examples_per_class=(1, 2, 4), seeds=3),
  probe=ProbeOptions(C=1.0),
)


def curve_of(result, start='zeros'):
  return [row for row in result.tables['curve'] if row['start'] == start]


def test_each_point_is_the_mean_of_scikit_learns_probes_over_seeds():
  result = few_shot.evaluate(ENCODER, DATA, QUICK)
  zero_shot = (ROWS[90:, :3].argmax(axis=1) == LABELS[90:]).mean()
  assert result.metrics['zero_shot'] == pytest.approx(zero_shot)
  for row in [x for x in curve_of(result) if not x['full']]:
    values = []
    for seed in range(3):
      k = int(row['shots'])
      drawn = sample(LABELS[:90], k, seed, classes=3).indices
      model = LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000)
      model.fit(ROWS[drawn], LABELS[drawn])
      values.append(model.score(ROWS[90:], LABELS[90:]))
    assert row['values'] == values
    assert (row['mean'], row['low'], row['high']) == pytest.approx(
      tuple(mean_interval(np.array(values)))
    )
    assert result.metrics[f'{k}_shot'] == row['mean']
    assert result.metrics[f'{k}_shot_low'] == row['low']
    assert result.metrics[f'{k}_shot_high'] == row['high']
  right = [record['shots']['4'] for record in result.records]
  assert np.mean(right) == pytest.approx(result.metrics['4_shot'])
  right = [record['zero_shot'] for record in result.records]
  assert np.mean(right) == pytest.approx(zero_shot)
  json.dumps([result.metrics, result.records, result.tables])


def test_probes_use_pooled_features_and_zero_shot_the_joint_space():
  plain = few_shot.evaluate(ENCODER, DATA, QUICK)
  clear = PoolingRowEncoder(np.eye(3)[LABELS], ROWS, CENTRES)
  result = few_shot.evaluate(clear, DATA, QUICK)
  assert result.metrics['zero_shot'] == plain.metrics['zero_shot'] < 1
  assert result.metrics['1_shot'] == 1 > plain.metrics['4_shot']
  joint = dataclasses.replace(
    QUICK, probe=ProbeOptions(C=1.0, joint_space=True)
  )
  assert few_shot.evaluate(clear, DATA, joint) == plain


def test_a_seed_is_one_result_and_another_seed_another():
  again, other = (
    few_shot.evaluate(ENCODER, DATA, dataclasses.replace(QUICK, seed=seed))
    for seed in (0, 7)
  )
  assert few_shot.evaluate(ENCODER, DATA, QUICK) == again
  assert curve_of(other)[0]['values'] != curve_of(again)[0]['values']


def test_c_is_chosen_on_as_many_examples_as_the_probe_sees(monkeypatch):
  seen = []
  original = probes.sweep_c

  def watched(fitting, held, options):
    seen.append((set(fitting.ids), set(held.ids)))
    assert np.bincount(fitting.answers).tolist() == [len(fitting) // 3] * 3
    assert np.bincount(held.answers).tolist() == [len(held) // 3] * 3
    return original(fitting, held, options)

  monkeypatch.setattr(probes, 'sweep_c', watched)
  result = few_shot.evaluate(
    ENCODER,
    DATA,
    Options(few_shot=FewShotOptions(examples_per_class=(1, 2, 4), seeds=1)),
  )
  assert [(len(a), len(b)) for a, b in seen] == [(3, 3), (6, 6), (12, 12)]
  for fitted, held in seen:
    assert not fitted & held
  assert seen[0][0] < seen[1][0] < seen[2][0]  # nested
  assert curve_of(result)[0]['low'] is None  # of one seed


def test_the_examples_that_match_zero_shot_follow_from_the_curve():
  result = few_shot.evaluate(
    ASKEW,
    DATA,
    Options(
      few_shot=FewShotOptions(examples_per_class=(1, 2, 4, 8), seeds=4),
      probe=ProbeOptions(C=1.0),
    ),
  )
  curve = curve_of(result)
  needed = examples_to_match(
    [row['shots'] for row in curve],
    [row['mean'] for row in curve],
    result.metrics['zero_shot'],
  )
  if needed is None:
    assert 'shots_to_match_zero_shot' not in result.metrics
    assert 'fewer than 1' in result.tables['notes'][0]['note']
  else:
    assert result.metrics['shots_to_match_zero_shot'] == needed


def test_the_whole_split_is_a_point_where_no_k_reaches_zero_shot():
  data = dataset_of(LABELS, train=range(24), test=range(90, 180))
  result = few_shot.evaluate(
    ENCODER,
    data,
    Options(
      few_shot=FewShotOptions(examples_per_class=(1,), seeds=2),
      probe=ProbeOptions(C=1.0),
    ),
  )
  first, full = curve_of(result)
  assert first['mean'] < result.metrics['zero_shot']
  assert full['full']
  assert full['shots'] == 8
  assert result.metrics['full'] == full['mean'] == full['values'][0]
  model = LogisticRegression(C=1.0, tol=1e-8).fit(ROWS[:24], LABELS[:24])
  assert full['mean'] == model.score(ROWS[90:], LABELS[90:])
  if full['mean'] < result.metrics['zero_shot']:
    assert 'shots_to_match_zero_shot' not in result.metrics
    assert 'not reached with 8' in result.tables['notes'][0]['note']


def test_probes_from_the_text_are_no_worse_than_it_on_what_is_held_out():
  options = Options(
    few_shot=FewShotOptions(examples_per_class=(1, 2, 4), seeds=2),
    probe=ProbeOptions(start_from_text=True),
  )
  result = few_shot.evaluate(ENCODER, DATA, options)
  started = curve_of(result, 'text')
  assert [row['shots'] for row in started] == [1, 2, 4]
  for row in started:
    assert row['iterations'] in probes.STEPS
    assert result.metrics[f'{row["shots"]:.0f}_shot_from_text'] == row['mean']
  # With one shot the text is worth more than the example.
  assert started[0]['mean'] > curve_of(result)[0]['mean']


def test_no_step_from_the_text_is_zero_shot():
  options = Options(
    few_shot=FewShotOptions(examples_per_class=(2,), seeds=2),
    probe=ProbeOptions(start_from_text=True, max_iterations=0, C=1.0),
  )
  pool = few_shot.read_examples(
    ENCODER, DATA.require_train('a test'), DATA, options, 'few_shot'
  )
  text = few_shot.text_weights(ENCODER, DATA, options)
  (result,) = probes.few_shot_probes(pool, options, text)
  assert result.probes == [text, text]


def test_a_k_beyond_every_class_is_left_out_with_a_note():
  rows = [
    int(i) for c in range(3) for i in np.flatnonzero(c == LABELS)[: 2 + c]
  ]
  data = dataset_of(LABELS, train=rows, test=range(90, 180))
  options = Options(
    few_shot=FewShotOptions(examples_per_class=(1, 3, 4, 5), seeds=2)
  )
  result = few_shot.evaluate(ENCODER, data, options)
  notes = [row['note'] for row in result.tables['notes']]
  assert notes[0] == 'no class has 5 examples: the largest has 4.'
  assert '5_shot' not in result.metrics
  points = {row['shots']: row for row in curve_of(result)}
  assert set(points) == {1, 3, 4}
  assert [points[k]['short'] for k in (1, 3, 4)] == [0, 1, 2]
  assert points[4]['C'] == points[3]['C']  # nothing is left to choose it on


def test_without_an_example_to_choose_c_on_it_must_be_given():
  rows = [int(np.flatnonzero(c == LABELS)[0]) for c in range(3)]
  data = dataset_of(LABELS, train=rows, test=range(90, 180))
  with pytest.raises(UsageError, match='none can be held out: give a valid'):
    few_shot.evaluate(
      ENCODER, data, Options(few_shot=FewShotOptions(examples_per_class=(1,)))
    )
  result = few_shot.evaluate(
    ENCODER,
    data,
    Options(
      few_shot=FewShotOptions(examples_per_class=(1,)),
      probe=ProbeOptions(C=1.0),
    ),
  )
  assert result.metrics['1_shot'] > 0


def test_examples_are_drawn_from_validation_images_too():
  data = dataset_of(
    LABELS, train=range(3), validation=range(3, 90), test=range(90, 180)
  )
  whole = few_shot.evaluate(ENCODER, DATA, QUICK)
  result = few_shot.evaluate(ENCODER, data, QUICK)
  assert curve_of(result)[0]['values'] == curve_of(whole)[0]['values']


@pytest.mark.parametrize(
  ('changes', 'options', 'message'),
  [
    ({'train': None}, QUICK, 'has no training split, which few_shot needs'),
    (
      {'train': Split(RowSource([0, 1], [0, 1]))},
      QUICK,
      r"1 of 3 classes have no examples: '\w+'; give each some.",
    ),
    (
      {'train': Split(RowSource([0, 1], several=[[0], [1, 2]]))},
      QUICK,
      'has several labels an image: few_shot takes one',
    ),
    (
      {},
      Options(few_shot=FewShotOptions(examples_per_class=(0, 1))),
      'examples_per_class=0: use 1 or more',
    ),
    (
      {},
      Options(few_shot=FewShotOptions(seeds=0)),
      r'seeds=0, examples_per_class=\(1, .*: use one or more of each',
    ),
    (
      {},
      Options(few_shot=FewShotOptions(examples_per_class=())),
      r'examples_per_class=\(\): use one or more of each',
    ),
  ],
)
def test_impossible_few_shot_curves_are_refused_in_one_line(
  changes, options, message
):
  data = dataclasses.replace(DATA, **changes)
  with pytest.raises(UsageError, match=message) as caught:
    few_shot.evaluate(ENCODER, data, options)
  assert '\n' not in str(caught.value)


def test_zero_shot_between_two_points_is_matched_between_their_logs():
  shots, accuracies = (1, 2, 4, 8, 16), (0.2, 0.3, 0.5, 0.6, 0.7)
  assert examples_to_match(shots, accuracies, 0.4) == pytest.approx(
    math.sqrt(8)
  )
  assert examples_to_match(shots, accuracies, 0.65) == pytest.approx(
    8 * math.sqrt(2)
  )
  quarter = examples_to_match((10, 1000), (0.0, 1.0), 0.25)
  assert quarter == pytest.approx(10**1.5)


@given(
  st.lists(st.floats(0.01, 1), min_size=2, max_size=6),
  st.floats(0, 1),
)
def test_the_curve_has_the_target_accuracy_at_the_result(rises, part):
  accuracies = np.cumsum(rises) / np.sum(rises)
  shots = [2.0**i for i in range(len(accuracies))]
  target = accuracies[0] + part * (accuracies[-1] - accuracies[0])
  result = examples_to_match(shots, accuracies.tolist(), float(target))
  assert result is not None
  there = np.interp(np.log2(result), np.log2(shots), accuracies)
  assert there == pytest.approx(target)


def test_exact_points_and_targets_beyond_the_ends():
  shots, accuracies = (1, 2, 4), (0.2, 0.3, 0.5)
  for k, accuracy in zip(shots, accuracies, strict=True):
    assert examples_to_match(shots, accuracies, accuracy) == pytest.approx(k)
  assert examples_to_match(shots, accuracies, 0.51) == math.inf
  assert examples_to_match(shots, accuracies, 0.19) is None


def test_a_curve_that_dips_matches_at_its_first_crossing():
  assert examples_to_match((1, 2, 4, 8), (0.1, 0.5, 0.3, 0.7), 0.5) == 2


def test_malformed_curves_are_refused():
  with pytest.raises(
    UsageError, match='2 numbers of examples and 1 accuracies'
  ):
    examples_to_match((1, 2), (0.1,), 0.5)
  with pytest.raises(UsageError, match='0 numbers of examples'):
    examples_to_match((), (), 0.5)
  for shots in ((0, 1), (2, 1), (1, 1)):
    with pytest.raises(UsageError, match='they must rise, from above 0'):
      examples_to_match(shots, (0.1, 0.2), 0.5)
