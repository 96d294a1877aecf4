"""Zero-shot accuracy against open_clip's numbers and hand-worked cases."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats
from safetensors.numpy import load_file

import clip_jax
from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation import EVALUATORS, Options, find_evaluator
from clip_jax.evaluation.dataset import OUTSIDE, Dataset, Split, dataset_of
from clip_jax.evaluation.metrics import ranking
from clip_jax.evaluation.metrics.ranking import (
  accuracies,
  top_classes,
)
from clip_jax.evaluation.prompts import classifier_for
from clip_jax.evaluation.tasks import zero_shot
from tests.evaluation.fakes import ListSource, TableEncoder
from tests.golden_models import GOLDENS

NAMES = ['north', 'east', 'south']
COMPASS = TableEncoder(
  by_level={0: [0.1, 1], 50: [1, 0.2], 100: [0.9, -1]},
  by_text={'north': [0, 1], 'east': [1, 0], 'south': [0, -1]},
)


def counted(result):
  assert ('top5' in result.metrics) == ('top5' in result.chance)
  names = ('top1', 'top5', 'examples')
  return {name: x for name, x in result.metrics.items() if name in names}


def test_accuracies_and_best_five_equal_open_clips():
  case = json.loads((GOLDENS / 'zero_shot' / 'zero_shot.json').read_text())
  arrays = load_file(GOLDENS / 'zero_shot' / 'zero_shot.safetensors')
  best, _ = top_classes(
    arrays['image_features'], arrays['classifier'], k=5, logit_scale=100.0
  )
  np.testing.assert_array_equal(best, arrays['top5_indices'])
  assert accuracies(best, arrays['labels']) == {
    'top1': case['top1'],
    'top5': case['top5'],
  }


def test_top_classes_are_the_sorted_softmax(monkeypatch):
  rng = np.random.default_rng(0)
  features = rng.normal(size=(40, 8)).astype(np.float32)
  weights = rng.normal(size=(8, 30)).astype(np.float32)
  logits = 3 * features @ weights
  every = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  order = np.argsort(-logits, axis=1)[:, :5]
  # Also when the scores do not fit into one part.
  for size in (2**26, 1):
    monkeypatch.setattr(ranking, '_CHUNK_BYTES', size)
    best, values = top_classes(features, weights, k=5, logit_scale=3.0)
    np.testing.assert_array_equal(best, order)
    expected = np.take_along_axis(every, order, axis=1)
    np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_of_equal_classes_the_lower_come_first():
  features = np.array([[1.0, 0.0]], np.float32)
  weights = np.array([[0, 1, 0, 1, 0, 0, 0, 1], [1] * 8], np.float32)
  best, _ = top_classes(features, weights, k=5, logit_scale=1.0)
  assert best.tolist() == [[1, 3, 7, 0, 2]]


def test_hand_worked_case():
  # The last image looks south and is labelled east, the second best.
  source = ListSource([0, 50, 100], labels=[0, 1, 1], names=NAMES)
  result = zero_shot.evaluate(COMPASS, dataset_of(source), Options())
  assert counted(result) == {'top1': 2 / 3, 'examples': 3.0}
  assert result.chance == {'top1': 1 / 3}
  assert result.corrupt == {}
  assert [r['id'] for r in result.records] == [
    'image/0', 'image/1', 'image/2'
  ]  # fmt: skip
  last = result.records[2]
  assert last['label'] == 'east'
  assert last['rank'] == 1
  assert [name for name, _ in last['top']] == ['south', 'east', 'north']
  features = np.array([0.9, -1]) / np.hypot(0.9, 1)
  powers = np.exp(10 * np.array([-features[1], features[0], features[1]]))
  np.testing.assert_allclose(
    [p for _, p in last['top']], powers / powers.sum(), rtol=1e-4
  )
  json.dumps(result.records)  # plain data


def test_a_label_outside_the_first_five_has_no_rank():
  names = [f'class {i}' for i in range(11)]
  encoder = TableEncoder(
    by_level={0: [1, 0]},
    by_text={name: [1, i / 10] for i, name in enumerate(names)},
  )
  result = zero_shot.evaluate(
    encoder, dataset_of(ListSource([0], labels=[6], names=names)), Options()
  )
  assert counted(result) == {'top1': 0.0, 'top5': 0.0, 'examples': 1.0}
  assert result.chance == {'top1': 1 / 11, 'top5': 5 / 11}
  assert result.records[0]['rank'] is None
  assert len(result.records[0]['top']) == 5


def test_each_name_goes_through_each_template():
  encoder = TableEncoder(
    by_level={0: [0, 1]},
    by_text={
      f'{size} {name}': [i, 1 + j]
      for i, name in enumerate(NAMES)
      for j, size in enumerate(('big', 'small'))
    },
  )
  options = Options(templates=('big {}', 'small {}'))
  zero_shot.evaluate(
    encoder, dataset_of(ListSource([0], labels=[0], names=NAMES)), options
  )
  assert encoder.texts == [
    'big north', 'small north', 'big east', 'small east', 'big south',
    'small south',
  ]  # fmt: skip


def test_unreadable_images_are_left_out_and_reported():
  source = ListSource([0, None, 50, None], labels=[0, 0, 1, 2], names=NAMES)
  result = zero_shot.evaluate(COMPASS, dataset_of(source), Options())
  assert counted(result) == {'top1': 1.0, 'examples': 2.0}
  assert result.corrupt == {'image/1': 'damaged', 'image/3': 'damaged'}
  assert [r['id'] for r in result.records] == ['image/0', 'image/2']
  with pytest.raises(
    FailureError, match=r'over max_corrupt_records=1 .* image/1: damaged'
  ):
    zero_shot.evaluate(
      COMPASS, dataset_of(source), Options(max_corrupt_records=1)
    )


def test_a_source_without_a_readable_image_is_a_failure():
  source = ListSource([None], labels=[0], names=NAMES)
  with pytest.raises(FailureError, match='no readable image: image/0'):
    zero_shot.evaluate(COMPASS, dataset_of(source), Options())


def test_a_source_without_names_is_refused():
  with pytest.raises(UsageError, match="'list:' has no label names"):
    zero_shot.evaluate(
      COMPASS, dataset_of(ListSource([0], labels=[0])), Options()
    )


def test_a_record_without_a_label_is_refused():
  with pytest.raises(UsageError, match='record image/0 has no label'):
    zero_shot.evaluate(
      COMPASS, dataset_of(ListSource([0], names=NAMES)), Options()
    )


def test_a_template_without_a_slot_is_refused_before_the_work():
  source = ListSource([None], labels=[0], names=NAMES)
  with pytest.raises(UsageError, match="template 'a' has no slot"):
    zero_shot.evaluate(COMPASS, dataset_of(source), Options(templates=('a',)))


def test_a_diverged_model_is_a_failure_and_not_a_score():
  encoder = TableEncoder({0: [np.nan, 1]}, {name: [0, 1] for name in NAMES})
  source = ListSource([0], labels=[0], names=NAMES)
  with pytest.raises(FailureError, match='1 of 1 image embeddings are not fin'):
    zero_shot.evaluate(encoder, dataset_of(source), Options())


def test_a_collapsed_model_is_right_about_the_first_class_only():
  encoder = TableEncoder({0: [1, 1]}, {name: [1, 1] for name in NAMES})
  source = ListSource([0] * 3, labels=[0, 1, 2], names=NAMES)
  assert (
    zero_shot.evaluate(encoder, dataset_of(source), Options()).metrics['top1']
    == 1 / 3
  )


def test_progress_is_shown_for_both_towers():
  seen = []

  def progress(items, total, unit, *, done=0):
    seen.append((total, unit, done))
    return items

  source = ListSource([0, 50], labels=[0, 1], names=NAMES)
  zero_shot.evaluate(COMPASS, dataset_of(source), Options(progress=progress))
  assert seen == [(3, 'texts', 0), (2, 'images', 0)]


def test_the_table_finds_every_task_and_names_them_for_others():
  for name in EVALUATORS:
    assert find_evaluator(name).__module__.endswith(f'.tasks.{name}')
  with pytest.raises(UsageError, match=r'choose one of zero_shot, .*retrieval'):
    find_evaluator('nosuch')
  with pytest.raises(UsageError, match='the nearest is zero_shot'):
    find_evaluator('zeroshot')


def test_the_classifier_of_a_data_set_equals_open_clips():
  case = json.loads((GOLDENS / 'zero_shot' / 'zero_shot.json').read_text())
  arrays = load_file(GOLDENS / 'zero_shot' / 'zero_shot.safetensors')
  model = clip_jax.load(GOLDENS / 'open_clip_vit_gelu')
  data = Dataset(
    'eight',
    Split(ListSource([0])),
    class_names=tuple((name,) for name in case['classnames']),
    templates=tuple(case['templates']),
  )
  weights = classifier_for(model, data, Options())
  assert weights.dtype == np.float32
  np.testing.assert_allclose(weights, arrays['classifier'], rtol=0, atol=1e-5)


def test_the_golden_features_are_classified_as_open_clip_does():
  case = json.loads((GOLDENS / 'zero_shot' / 'zero_shot.json').read_text())
  arrays = load_file(GOLDENS / 'zero_shot' / 'zero_shot.safetensors')
  labels = arrays['labels'].tolist()
  by_text = zip(case['classnames'], arrays['classifier'].T, strict=True)
  encoder = TableEncoder(
    dict(enumerate(arrays['image_features'].tolist())),
    {name: column.tolist() for name, column in by_text},
  )
  source = ListSource(
    range(len(labels)), labels=labels, names=case['classnames']
  )
  result = zero_shot.evaluate(encoder, dataset_of(source), Options())
  assert result.metrics['top1'] == case['top1']
  assert len(case['classnames']) <= 10  # top-5 says nothing
  assert 'top5' not in result.metrics


def test_the_interval_of_top1_is_the_binomial_one():
  source = ListSource([0, 50, 100], labels=[0, 1, 1], names=NAMES)
  result = zero_shot.evaluate(COMPASS, dataset_of(source), Options()).metrics
  exact = scipy.stats.binomtest(2, 3).proportion_ci(0.95, 'exact')
  assert result['top1_low'] == pytest.approx(exact.low)
  assert result['top1_high'] == pytest.approx(exact.high)


def test_tables_say_which_classes_and_pairs_go_wrong():
  levels = [0, 50, 100, 100, 50]
  source = ListSource(levels, labels=[0, 1, 1, 1, 2], names=NAMES)
  result = zero_shot.evaluate(COMPASS, dataset_of(source), Options())
  assert result.tables['per_class'] == [
    {'class': 'north', 'examples': 1, 'accuracy': 1.0},
    {'class': 'east', 'examples': 3, 'accuracy': pytest.approx(1 / 3)},
    {'class': 'south', 'examples': 1, 'accuracy': 0.0},
  ]
  first, second = result.tables['confusions']
  sure = result.records[2]['top'][0][1]
  assert first == {
    'right': 'east',
    'given': 'south',
    'times': 2,
    'probability': pytest.approx(sure),
    'examples': ['image/2', 'image/3'],
  }
  assert (second['right'], second['given']) == ('south', 'east')
  bins = result.tables['reliability']
  assert sum(row['count'] for row in bins) == 5
  gaps = [
    row['count'] / 5 * abs(row['confidence'] - row['accuracy'])
    for row in bins
    if row['count']
  ]
  assert result.metrics['ece'] == pytest.approx(sum(gaps))
  assert result.metrics['ece'] > 0.1  # it is sure of what is wrong
  json.dumps(result.tables)


def test_frequent_confusions_come_first_and_then_certain_ones():
  mistakes = [
    (0, 'a', 'b', 0.9),
    (2, 'c', 'd', 0.2),
    (3, 'c', 'd', 0.4),
    (5, 'b', 'a', 0.1),
  ]
  first, *others = zero_shot.most_frequent_confusions(mistakes, 3)
  assert (first.right, first.given, first.times) == ('c', 'd', 2)
  assert first.examples == [3, 2]
  assert first.probability == pytest.approx(0.3)
  assert [(x.right, x.given) for x in others] == [('a', 'b'), ('b', 'a')]
  assert len(zero_shot.most_frequent_confusions(mistakes, 1)) == 1


def test_a_class_with_two_names_is_their_mean_direction():
  encoder = TableEncoder(
    by_level={0: [1, 0.9], 50: [0, 1]},
    by_text={'up': [0, 1], 'right': [1, 0], 'starboard': [1, 1.5]},
  )
  source = ListSource([0, 50], labels=[1, 0])
  data = Dataset(
    'ship', Split(source), class_names=(('up',), ('right', 'starboard'))
  )
  result = zero_shot.evaluate(encoder, data, Options())
  assert result.metrics['top1'] == 1
  assert [r['label'] for r in result.records] == ['right', 'up']
  mean = np.array([1, 0]) + np.array([1, 1.5]) / np.hypot(1, 1.5)
  cosines = np.array([0.9, mean @ [1, 0.9] / np.hypot(*mean)])
  cosines[0] /= np.hypot(1, 0.9)
  cosines[1] /= np.hypot(1, 0.9)
  powers = np.exp(10 * cosines)
  assert result.records[0]['top'][0][1] == pytest.approx(
    powers[1] / powers.sum(), rel=1e-4
  )


@pytest.mark.parametrize(
  'metric', ['mean_per_class', 'mean_top1_top5', 'roc_auc', 'map_11_point']
)
def test_the_data_sets_own_metric_comes_under_its_name(metric):
  names = NAMES[:2]
  encoder = TableEncoder(
    {0: [0.1, 1], 50: [1, 0.2], 90: [1, 0.9]},
    {'north': [0, 1], 'east': [1, 0]},
  )
  source = ListSource([0, 50, 50, 90, 0], labels=[0, 1, 0, 0, 0], names=names)
  data = dataclasses.replace(dataset_of(source), metric=metric)
  result = zero_shot.evaluate(encoder, data, Options()).metrics
  assert result['top1'] == 3 / 5
  expected = {
    'mean_per_class': (2 / 4 + 1) / 2,
    'mean_top1_top5': (3 / 5 + 1) / 2,
    'roc_auc': 3.5 / 4,  # of four pairs one is level
    'map_11_point': (1 + 1 / 2) / 2,
  }[metric]
  if metric == 'map_11_point':
    # North: precision 1 until three of four are found, then 4/5: 11 points.
    expected = ((8 * 1 + 3 * 4 / 5) / 11 + 1 / 2) / 2
  assert result[metric] == pytest.approx(expected)


class SeveralLabels(ListSource):
  """Images with lists of labels, as VOC2007 has them."""

  def __init__(self, levels, several, names, difficult=None):
    super().__init__(levels, names=names)
    self._several = several
    self._difficult = difficult or [[]] * len(levels)

  def __getitem__(self, index):
    return {
      **super().__getitem__(index),
      'labels': self._several[index],
      'difficult': self._difficult[index],
    }


def test_several_labels_an_image_are_ranked_by_class():
  source = SeveralLabels([0, 50, 100], [[0], [1, 2], [2, 3]], [*NAMES, 'x'])
  split = Split(source, np.array([0, 1, 2, OUTSIDE]))
  data = Dataset('voc', split, class_names=tuple((n,) for n in NAMES))
  result = zero_shot.evaluate(COMPASS, data, Options())
  # South: its images come first and, after one that is not, third... the
  # second is the eastern one, which has it too.
  assert result.metrics == {'map_11_point': 1.0, 'examples': 3.0}
  assert [r['labels'] for r in result.records] == [
    ['north'], ['east', 'south'], ['south']
  ]  # fmt: skip
  assert result.tables['per_class'][2] == {
    'class': 'south',
    'examples': 2,
    'average_precision': 1.0,
  }
  json.dumps(result.records)


def test_a_class_with_difficult_objects_alone_is_not_asked_of_an_image():
  levels, several = [0, 50, 100], [[0], [1], [2]]
  # North is right for the image that is least like it, the southern one.
  several[2].append(0)
  result = [
    zero_shot.evaluate(
      COMPASS,
      dataset_of(SeveralLabels(levels, several, NAMES, hard)),
      Options(),
    )
    for hard in ([[], [], []], [[], [0], []])
  ]
  values = [x.tables['per_class'][0]['average_precision'] for x in result]
  # Found first and third; without the eastern image, first and second.
  assert values == pytest.approx([(6 + 5 * 2 / 3) / 11, 1.0])
  means = [x.metrics['map_11_point'] for x in result]
  assert means == pytest.approx([(v + 2) / 3 for v in values])


def test_labels_out_of_range_are_refused():
  source = ListSource([0, 50], labels=[0, 3])
  data = Dataset('c', Split(source), class_names=tuple((n,) for n in NAMES))
  with pytest.raises(UsageError, match='label 3 of row 1 is outside the range'):
    zero_shot.evaluate(COMPASS, data, Options())


def test_labels_that_are_not_evaluated_are_left_out():
  source = ListSource([0, 50, 100], labels=[0, 1, 2], names=NAMES)
  split = Split(source, np.array([1, OUTSIDE, 0]))
  data = Dataset('two', split, class_names=(('south',), ('north',)))
  result = zero_shot.evaluate(COMPASS, data, Options())
  assert counted(result) == {'top1': 1.0, 'examples': 2.0}
  assert [r['label'] for r in result.records] == ['north', 'south']


@pytest.mark.parametrize(
  'names, message',
  [((('a',), ()), 'class 1 .* has no name'), ((('a',), (' ',)), 'an empty')],
)
def test_a_class_without_a_name_is_refused(names, message):
  data = Dataset('c', Split(ListSource([0], labels=[0])), class_names=names)
  with pytest.raises(UsageError, match=message):
    zero_shot.evaluate(COMPASS, data, Options())
