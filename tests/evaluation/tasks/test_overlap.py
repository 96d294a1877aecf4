"""Overlap and Clean: counts worked by hand, and what must always hold."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binom

from clip_jax.data.decoding import CorruptImageError
from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation import (
  EVALUATORS,
  Options,
  find_evaluator,
)
from clip_jax.evaluation import dataset as evaluation_dataset
from clip_jax.evaluation.dataset import OUTSIDE, Dataset, Split
from clip_jax.evaluation.features.cache import FeatureCache
from clip_jax.evaluation.features.extraction import read_features
from clip_jax.evaluation.near_duplicates import perceptual_hash
from clip_jax.evaluation.tasks.overlap import compare, evaluate
from clip_jax.evaluation.types import OverlapOptions
from tests.evaluation.drawings import drawings
from tests.evaluation.fakes import ListSource, TableEncoder
from tests.evaluation.textures import (
  TextureSource,
  copy_of,
  marked,
  texture,
)
from tests.tiny import write_pairs

NAMES = ('up', 'right')
# By level: 1 and 3 look up, 2 and 4 to the right; 5 nearly as 1.
ENCODER = TableEncoder(
  by_level={1: [0, 1], 2: [1, 0], 3: [-0.6, 0.8], 4: [0.8, -0.6],
            5: [0.1, 0.99]},
  by_text={'up': [0, 1], 'right': [1, 0]},
)  # fmt: skip
IMAGES = [texture(seed) for seed in range(6)]
FLAT = Image.new('L', (40, 40), 200)
LEVELS = [1, 2, 1, 1, 2, 1, 2]  # what is predicted: up for 1
LABELS = [0, 1, 1, 0, 0, 1, 1]


def dataset(train, **values):
  images = [*IMAGES, FLAT]
  test = TextureSource(
    [marked(x, y) for x, y in zip(images, LEVELS, strict=True)],
    labels=LABELS,
    names=NAMES,
    spec='test:',
  )
  return Dataset(
    'compass',
    Split(test, **values),
    train=None if train is None else Split(train),
    class_names=(('up',), ('right',)),
  )


def seen():
  """Copies of the first three, others, one unreadable, and a flat one."""
  return TextureSource(
    [texture(50), copy_of(IMAGES[1]), None, copy_of(IMAGES[0]),
     marked(FLAT, 0), copy_of(IMAGES[2]), texture(51)],
    spec='train:',
  )  # fmt: skip


def test_hand_worked_case():
  result = evaluate(ENCODER, dataset(seen()), Options())
  metrics = dict(result.metrics)
  # Overlap: right, right, wrong. Clean: right, wrong, wrong, and the flat one.
  low = metrics.pop('overlap_minus_clean_low') + 0.5
  high = metrics.pop('overlap_minus_clean_high') + 0.5
  assert metrics == pytest.approx(
    {
      'examples': 7,
      'overlap_examples': 3,
      'clean_examples': 4,
      'refuted_examples': 0,
      'uncompared_examples': 1,
      'overlap_share': 3 / 7,
      'accuracy_all': 4 / 7,
      'accuracy_overlap': 2 / 3,
      'accuracy_clean': 1 / 2,
      'all_minus_clean': 1 / 14,
      'overlap_minus_clean': 1 / 6,
      'p_value': 4 / 8,  # 2 or 3 of 3 coins
    }
  )
  # Clopper and Pearson's ends: each leaves a quarter of a percent beyond.
  assert binom.sf(1, 3, low) == pytest.approx(0.0025)
  assert binom.cdf(2, 3, high) == pytest.approx(0.0025)
  assert result.corrupt == {'train: train:2': 'damaged'}
  rows = {row['id']: row for row in result.records}
  assert [rows[f'test:{i}']['nearest'] for i in range(3)] == [
    'train:3', 'train:1', 'train:5'
  ]  # fmt: skip
  assert [row['overlapping'] for row in result.records] == 3 * [True] + [
    False
  ] * 4
  assert rows['test:2']['correct'] is False
  assert (rows['test:2']['label'], rows['test:2']['predicted']) == (
    'right',
    'up',
  )
  assert rows['test:6']['nearest'] is rows['test:6']['distance'] is None
  json.dumps([result.metrics, result.records, result.tables], allow_nan=False)


def test_pairs_are_the_nearest_first_and_go_beyond_the_threshold():
  reach = Options(overlap=OverlapOptions(max_distance=40))
  every = evaluate(ENCODER, dataset(seen()), reach).tables['pairs']
  assert len(every) == 6  # all but the flat one
  distances = [row['distance'] for row in every]
  assert distances == sorted(distances)
  assert {(row['test'], row['train']) for row in every[:3]} == {
    ('test:0', 'train:3'), ('test:1', 'train:1'), ('test:2', 'train:5')
  }  # fmt: skip
  none = evaluate(
    ENCODER, dataset(seen()), Options(overlap=OverlapOptions(max_distance=0))
  )
  shown = none.tables['pairs']
  assert [row['test'] for row in shown[:3]] == [x['test'] for x in every[:3]]
  assert [row['overlapping'] for row in shown] == [
    row['distance'] == 0 for row in shown
  ]


def test_few_pairs_of_each_step_are_shown():
  copies = TextureSource(
    [marked(IMAGES[0], 1)] * 30, labels=[0] * 30, names=NAMES, spec='test:'
  )
  data = Dataset('x', Split(copies), Split(copies), class_names=(('up',),))
  pairs = evaluate(ENCODER, data, Options()).tables['pairs']
  assert [row['test'] for row in pairs] == [f'test:{i}' for i in range(8)]


def test_the_sweep_grows_and_holds_the_threshold_in_use():
  result = evaluate(
    ENCODER, dataset(seen()), Options(overlap=OverlapOptions(max_distance=21))
  )
  rows = result.tables['thresholds']
  assert [row['threshold'] for row in rows] == [*range(17), 21]
  counts = [row['overlapping'] for row in rows]
  assert counts == sorted(counts)
  assert rows[-1]['overlapping'] == result.metrics['overlap_examples']
  distances = [
    None if row['refuted'] else row['distance'] for row in result.records
  ]
  assert counts == [
    sum(x is not None and x <= row['threshold'] for x in distances)
    for row in rows
  ]
  assert set(distances) & {row['threshold'] for row in rows}  # at the edge
  at_eight = rows[8]
  assert at_eight == {
    'threshold': 8,
    'overlapping': 3,
    'overlap_accuracy': 2 / 3,
    'clean_accuracy': 1 / 2,
  }
  if counts[0] == 0:
    assert rows[0]['overlap_accuracy'] is None


def test_without_overlap_what_is_undefined_is_left_out():
  strangers = TextureSource([texture(70), texture(71)])
  metrics = evaluate(ENCODER, dataset(strangers), Options()).metrics
  assert metrics == {
    'examples': 7,
    'overlap_examples': 0,
    'clean_examples': 7,
    'refuted_examples': 0,
    'uncompared_examples': 1,
    'overlap_share': 0,
    'accuracy_all': 4 / 7,
    'accuracy_clean': 4 / 7,
    'all_minus_clean': 0,
  }


def test_flat_training_images_have_no_duplicates():
  result = evaluate(ENCODER, dataset(TextureSource([FLAT])), Options())
  assert result.metrics['overlap_examples'] == 0
  assert result.tables['pairs'] == []
  json.dumps(result.records, allow_nan=False)


def test_where_all_overlaps_there_is_no_clean_accuracy():
  source = dataset(seen()).test.source
  data = dataset(source)
  result = evaluate(
    ENCODER, data, Options(overlap=OverlapOptions(detector='learned'))
  )
  assert result.metrics == {
    'examples': 7,
    'overlap_examples': 7,
    'clean_examples': 0,
    'overlap_share': 1,
    'accuracy_all': 4 / 7,
    'accuracy_overlap': 4 / 7,
  }
  assert result.tables['thresholds'][0]['clean_accuracy'] is None


def test_the_learned_detector_goes_by_the_models_own_features():
  # Grey squares: of each level, 1 and 2 are trained on, and 5 is nearly 1.
  test = ListSource([1, 5, 4, 3], labels=[0, 1, 1, 0], names=NAMES)
  data = Dataset(
    'levels',
    Split(test),
    Split(ListSource([2, 1])),
    class_names=(('up',), ('right',)),
  )
  options = Options(
    overlap=OverlapOptions(detector='learned', min_similarity=0.9)
  )
  result = evaluate(ENCODER, data, options)
  near = 0.99 / math.hypot(0.1, 0.99)
  assert [r['similarity'] for r in result.records] == pytest.approx(
    [1, near, 0.8, 0.8], abs=1e-6
  )
  assert [r['nearest'] for r in result.records] == [
    'image/1', 'image/1', 'image/0', 'image/1'
  ]  # fmt: skip
  assert result.metrics['overlap_examples'] == 2
  assert result.metrics['accuracy_overlap'] == 1 / 2
  assert result.metrics['accuracy_clean'] == 1
  assert 'uncompared_examples' not in result.metrics
  strict = Options(
    overlap=OverlapOptions(detector='learned', min_similarity=1.0)
  )
  assert evaluate(ENCODER, data, strict).metrics['overlap_examples'] == 1
  thresholds = [row['threshold'] for row in result.tables['thresholds']]
  assert thresholds == [n / 100 for n in range(99, 79, -1)]
  assert [row['similarity'] for row in result.tables['pairs']] == sorted(
    (row['similarity'] for row in result.tables['pairs']), reverse=True
  )


def test_labels_outside_the_classes_are_in_no_set():
  data = dataset(seen(), class_of_label=np.array([0, OUTSIDE]))
  result = evaluate(ENCODER, data, Options())
  assert result.metrics['examples'] == LABELS.count(0)
  assert {row['label'] for row in result.records} == {'up'}
  with pytest.raises(UsageError, match='no image of a class'):
    evaluate(
      ENCODER,
      dataset(seen(), class_of_label=np.array([OUTSIDE, OUTSIDE])),
      Options(),
    )


def test_training_data_may_be_given_by_a_spec(tmp_path):
  # Noise, none of which is a test image.
  options = Options(
    overlap=OverlapOptions(train=write_pairs(tmp_path / 'pairs', count=3))
  )
  result = evaluate(ENCODER, dataset(None), options)
  assert result.metrics['overlap_examples'] == 0
  IMAGES[4].save(tmp_path / 'pairs' / '003.png')
  result = evaluate(ENCODER, dataset(seen()), options)
  (actual,) = [row for row in result.records if row['overlapping']]
  assert (actual['id'], actual['nearest']) == ('test:4', '003.png')


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (Options(), "'compass' has no training split: name .* --overlap_with"),
    (
      Options(overlap=OverlapOptions(detector='best')),
      "detector='best': choose one of perceptual, le",
    ),
    (
      Options(overlap=OverlapOptions(max_distance=65)),
      'max_distance=65 bits: use 0 to 64',
    ),
    (
      Options(overlap=OverlapOptions(min_similarity=1.5)),
      'min_similarity=1.5: use a cosine',
    ),
    (
      Options(overlap=OverlapOptions(train='nosuch')),
      "data 'nosuch': no such folder or table",
    ),
  ],
)
def test_a_wrong_call_is_one_line(options, message):
  with pytest.raises(UsageError, match=message) as caught:
    evaluate(ENCODER, dataset(None), options)
  assert '\n' not in str(caught.value)


def test_cached_hashes_of_other_images_are_refused(tmp_path, monkeypatch):
  # Renamed at a place that the key does not look at.
  first, second = dataset(seen()), dataset(seen())
  monkeypatch.setattr(evaluation_dataset, '_SAMPLES', 1)
  cache = Cache(tmp_path, ENCODER, {})
  evaluate(ENCODER, first, Options(cache=cache))
  again = evaluate(ENCODER, first, Options(cache=cache))
  assert again == evaluate(ENCODER, first, Options())
  name = second.test.source.id
  monkeypatch.setattr(
    second.test.source, 'id', lambda i: 'other' if i == 1 else name(i)
  )
  with pytest.raises(FailureError, match="'test:' has changed since its imag"):
    evaluate(ENCODER, second, Options(cache=cache))


class Cache(FeatureCache):
  """Keeps the hashes only."""

  def images(self, source, options):
    fresh = dataclasses.replace(options, cache=None)
    return read_features(ENCODER, source, fresh)

  def texts(self, texts, options):
    return ENCODER.encode_text(texts)


def test_data_without_names_are_refused():
  data = Dataset('bare', Split(ListSource([1])), Split(ListSource([1])))
  with pytest.raises(UsageError, match="'bare' has no label names, which ov"):
    evaluate(ENCODER, data, Options())


@given(
  st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)
)
def test_overlap_and_clean_are_all(images):
  correct, overlapping = np.array(images, bool).T
  result = compare(correct, overlapping)
  seen_count, clean = result['overlap_examples'], result['clean_examples']
  assert seen_count + clean == result['examples'] == len(images)
  right = seen_count * result.get('accuracy_overlap', 0) + clean * result.get(
    'accuracy_clean', 0
  )
  assert right == pytest.approx(result['accuracy_all'] * len(images))
  assert result['overlap_share'] == seen_count / len(images)
  assert not any(math.isnan(value) for value in result.values())
  if seen_count and clean:
    # All - Clean is the share of the overlap times what it is easier by.
    assert result['all_minus_clean'] == pytest.approx(
      result['overlap_share'] * result['overlap_minus_clean'], abs=1e-12
    )
    assert (
      result['overlap_minus_clean_low']
      <= result['overlap_minus_clean']
      <= result['overlap_minus_clean_high']
    )
    assert 0 <= result['p_value'] <= 1


def test_it_is_the_same_each_time_and_by_its_name():
  first = evaluate(ENCODER, dataset(seen()), Options())
  assert find_evaluator('overlap')(ENCODER, dataset(seen()), Options()) == first
  assert 'overlap' in EVALUATORS


def of_drawings(test, train):
  count = len(test)
  source = TextureSource(
    [marked(x.convert('L'), 1) for x in test], labels=[0] * count, names=NAMES,
    spec='test:',
  )  # fmt: skip
  trained = TextureSource([x.convert('L') for x in train], spec='train:')
  return Dataset('x', Split(source), Split(trained), class_names=(('up',),))


def test_images_of_one_pattern_do_not_overlap_and_copies_among_them_do():
  images = drawings(20)
  test, train = images[::2], [*images[1::2], *map(copy_of, images[:8:2])]
  result = evaluate(ENCODER, of_drawings(test, train), Options())
  near = [x for x in result.records if (x['distance'] or 0) <= 8]
  assert len(near) > 15  # by the hash alone
  assert [x['id'] for x in result.records if x['overlapping']][:4] == [
    f'test:{i}' for i in range(4)
  ]
  assert result.metrics['overlap_examples'] <= 9
  assert [x['nearest'] for x in result.records[:4]] == [
    f'train:{60 + i}' for i in range(4)
  ]
  assert result.metrics['refuted_examples'] >= 10


def test_many_hits_of_one_image_give_a_warning():
  copies = [IMAGES[0]] * 12 + [IMAGES[1]]
  train = [IMAGES[1], copy_of(IMAGES[0])]
  result = evaluate(ENCODER, of_drawings(copies, train), Options())
  (row,) = result.tables['warnings']
  assert row['warning'].startswith(
    '12 of 13 overlapping images are near one training image, train:1: '
  )
  few = evaluate(ENCODER, of_drawings(copies[8:], train), Options())
  assert few.tables['warnings'] == []


def test_images_whose_hash_fails_are_counted_as_corrupt(monkeypatch):
  def spectrum(image):
    if image.getpixel((0, 0)) == 7:
      raise CorruptImageError('damaged image: late')
    return real(image)

  real = perceptual_hash.spectrum
  monkeypatch.setattr(perceptual_hash, 'spectrum', spectrum)
  train = TextureSource([marked(texture(3), 7), texture(4)], spec='train:')
  result = evaluate(ENCODER, dataset(train), Options())
  assert result.corrupt == {'train: train:0': 'damaged image: late'}
