"""Features from disk are those that were encoded, also after a kill."""

import dataclasses
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clip_jax.data.sources import open_source
from clip_jax.errors import FailureError
from clip_jax.evaluation import Options
from clip_jax.evaluation.dataset import data_identity, dataset_of
from clip_jax.evaluation.features import extraction
from clip_jax.evaluation.features.cache import (
  FeatureCache,
  identity_of,
)
from clip_jax.evaluation.features.extraction import read_features
from clip_jax.evaluation.prompts import text_features
from clip_jax.evaluation.tasks import zero_shot
from tests.evaluation import kill_cached
from tests.evaluation.fakes import ListSource, TableEncoder
from tests.tiny import write_pairs
from tests.tiny_run import tiny_model

LEVELS = [0, 50, None, 100, 0, None, 50]  # three parts of three
FIELDS = ('ids', 'captions', 'label_sets', 'difficult', 'corrupt')


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
  monkeypatch.setattr(extraction, 'SHARD_ROWS', 3)


class Counting(TableEncoder):
  """Counts what goes through it."""

  def __init__(self):
    texts = {f'text {i}': [1, i] for i in range(8)}
    super().__init__({0: [0.1, 1], 50: [1, 0.2], 100: [0.9, -1]}, texts)
    self.images = 0

  def encode_image(self, images):
    rows = super().encode_image(images)
    self.images += len(rows)
    return rows


def source(levels=LEVELS, **options):
  options.setdefault('labels', [i % 3 for i in range(len(levels))])
  options.setdefault('captions', [[f'c{i}'] for i in range(len(levels))])
  return ListSource(levels, names=['a', 'b', 'c'], **options)


def cached(folder, encoder=None, **identity):
  encoder = encoder or Counting()
  return encoder, FeatureCache(folder, encoder, {'model': 'x', **identity})


def same(ours, theirs):
  np.testing.assert_array_equal(ours.embeddings, theirs.embeddings)
  np.testing.assert_array_equal(ours.labels, theirs.labels)
  for name in FIELDS:
    assert getattr(ours, name) == getattr(theirs, name), name


def test_cached_features_are_the_fresh_ones_and_cost_nothing(tmp_path):
  fresh = read_features(Counting(), source(), Options())
  assert fresh.ids == [f'image/{i}' for i in (0, 1, 3, 4, 6)]
  assert list(fresh.corrupt) == ['image/2', 'image/5']
  for images in (5, 0):
    encoder, cache = cached(tmp_path)
    same(read_features(encoder, source(), Options(cache=cache)), fresh)
    assert encoder.images == images


def test_pooled_features_come_from_the_same_forward_pass(tmp_path):
  class Pooling(Counting):
    def encode_image_with_pooled(self, images):
      vectors = self.encode_image(images)
      return np.repeat(3 * vectors, 2, axis=1), vectors

  plain = read_features(Counting(), source(), Options())
  assert plain.pooled is None
  for images in (5, 0):
    encoder, cache = cached(tmp_path, Pooling())
    result = read_features(encoder, source(), Options(cache=cache))
    same(result, plain)
    np.testing.assert_array_equal(
      result.pooled, np.repeat(3 * plain.embeddings, 2, axis=1)
    )
    part = result.select(np.array([3, 1]))
    np.testing.assert_array_equal(part.pooled, result.pooled[[3, 1]])
    assert encoder.images == images


def test_a_second_evaluator_does_not_read_the_records_again(tmp_path):
  class Progressed(ListSource):
    read = 0

    def __getitem__(self, index):
      self.read += 1
      return super().__getitem__(index)

  data = Progressed([0, 50, 100], labels=[0, 1, 2], names=['a', 'b', 'c'])
  _, cache = cached(tmp_path)
  first = cache.images(data, Options())
  assert data.read == 6  # to know the data, and to encode them
  same(cache.images(data, Options()), first)
  same(cached(tmp_path)[1].images(data, Options()), first)
  assert data.read == 6


def test_several_labels_come_back(tmp_path):
  class Several(ListSource):
    def __getitem__(self, index):
      record = super().__getitem__(index)
      return {**record, 'labels': [index, 0], 'difficult': [index + 1]}

  for _ in range(2):
    _, cache = cached(tmp_path)
    result = cache.images(Several([0, 50, None, 0, 0]), Options())
    assert result.label_sets == [[0, 0], [1, 0], [3, 0], [4, 0]]
    assert result.difficult == [[1], [2], [4], [5]]
    assert result.labels.tolist() == [-1] * 4


def test_an_entry_describes_its_model_and_data(tmp_path):
  _, cache = cached(tmp_path, origin='runs/emoji')
  cache.images(source(), Options())
  (manifest,) = tmp_path.glob('images/*/manifest.json')
  result = json.loads(manifest.read_text())
  assert result['model'] == 'x'
  assert result['origin'] == 'runs/emoji'
  assert result['data'] == 'list:'
  assert result['records'] == 7
  assert not list(tmp_path.rglob('.*.part'))


def test_missing_and_damaged_shards_are_computed_again(tmp_path):
  _, cache = cached(tmp_path)
  whole = cache.images(source(), Options())
  first, second, third = sorted(tmp_path.glob('images/*/*.npz'))
  kept = third.read_bytes()
  first.unlink()
  damaged = bytearray(second.read_bytes())
  damaged[damaged.index(whole.embeddings[2:4].tobytes())] ^= 1  # one bit
  second.write_bytes(damaged)
  seen = []

  def progress(items, total, unit, *, done=0):
    seen.append((total, unit, done))
    return items

  encoder, cache = cached(tmp_path)
  same(cache.images(source(), Options(progress=progress)), whole)
  assert seen == [(7, 'images', 1)]
  assert encoder.images == 4
  assert third.read_bytes() == kept
  encoder, cache = cached(tmp_path)
  same(cache.images(source(), Options()), whole)
  assert encoder.images == 0


@pytest.mark.parametrize('size', [0, 100])
def test_a_truncated_shard_is_computed_again(tmp_path, size):
  _, cache = cached(tmp_path)
  whole = cache.images(source(), Options())
  part = min(tmp_path.glob('images/*/*.npz'))
  part.write_bytes(part.read_bytes()[:size])
  encoder, cache = cached(tmp_path)
  same(cache.images(source(), Options()), whole)
  assert encoder.images == 2


def test_a_pickle_in_a_shard_is_never_read(tmp_path):
  _, cache = cached(tmp_path)
  whole = cache.images(source(), Options())
  part = min(tmp_path.glob('images/*/*.npz'))
  rows = np.array([print, 'no'], object)
  np.savez(part, embeddings=rows, notes=rows)
  encoder, cache = cached(tmp_path)
  same(cache.images(source(), Options()), whole)
  assert encoder.images == 2


def test_corrupt_images_are_counted_over_all_shards(tmp_path):
  strict = Options(max_corrupt_records=1)
  with pytest.raises(FailureError, match='over max_corrupt_records=1'):
    cached(tmp_path)[1].images(source(), strict)
  # The part that could be made stays, and its image counts.
  assert len(list(tmp_path.glob('images/*/*.npz'))) == 1
  encoder, cache = cached(tmp_path)
  with pytest.raises(FailureError, match='image/2: damaged; image/5'):
    cache.images(source(), strict)
  cache.images(source(), Options())
  assert encoder.images == 3
  # All of it is there, and too much for another limit.
  with pytest.raises(FailureError, match='over max_corrupt_records=1'):
    cache.images(source(), strict)


def test_nothing_readable_is_a_failure_each_time(tmp_path):
  for _ in range(2):
    _, cache = cached(tmp_path)
    with pytest.raises(FailureError, match='no readable image'):
      cache.images(source([None] * 4), Options())


@pytest.mark.parametrize(
  'other',
  [
    source([*LEVELS, 0]),
    source([50, *LEVELS[1:]]),
    source(labels=[1] * 7),
    source(captions=[['d']] * 7),
    ListSource(LEVELS, labels=[i % 3 for i in range(7)], names=['a', 'b', 'd']),
  ],
  ids=['count', 'bytes', 'labels', 'captions', 'names'],
)
def test_other_data_have_an_entry_of_their_own(tmp_path, other):
  cached(tmp_path)[1].images(source(), Options())
  encoder, cache = cached(tmp_path)
  same(
    cache.images(other, Options()),
    read_features(Counting(), other, Options()),
  )
  assert encoder.images


def test_another_model_has_an_entry_of_its_own(tmp_path):
  _, cache = cached(tmp_path)
  cache.images(source(), Options())
  cache.texts(['text 1'], Options())
  encoder, cache = cached(tmp_path, model='y')
  cache.images(source(), Options())
  cache.texts(['text 1'], Options())
  assert encoder.images == 5
  assert encoder.texts == ['text 1']
  encoder, cache = cached(tmp_path, origin='moved', step=3)
  cache.images(source(), Options())
  assert encoder.images == 0


def test_texts_are_kept_in_shards_too(tmp_path):
  texts = [f'text {i}' for i in (3, 1, 4, 1, 5, 2, 6)]
  fresh = text_features(Counting(), texts, Options())
  encoder, cache = cached(tmp_path)
  rows = text_features(encoder, texts, Options(cache=cache))
  np.testing.assert_array_equal(rows, fresh)
  assert encoder.texts == texts
  list(sorted(tmp_path.glob('texts/*/*.npz')))[1].unlink()
  encoder, cache = cached(tmp_path)
  rows = text_features(encoder, texts, Options(cache=cache))
  np.testing.assert_array_equal(rows, fresh)
  assert encoder.texts == texts[3:6]
  encoder, cache = cached(tmp_path)
  text_features(encoder, texts[::-1], Options(cache=cache))
  assert encoder.texts == texts[::-1]


def test_an_encoder_that_fails_at_once_ends_the_work(tmp_path):
  class Failing(Counting):
    def encode_text(self, texts):
      raise FailureError('no tokenizer')

  encoder, cache = cached(tmp_path, Failing())
  with pytest.raises(FailureError, match='no tokenizer'):
    cache.texts([f'text {i}' for i in range(7)], Options())
  assert not encoder.texts


def test_evaluations_are_the_same_with_and_without_a_cache(tmp_path):
  encoder = Counting()
  names = [f'text {i}' for i in range(3)]
  data = dataset_of(
    ListSource(LEVELS, labels=[0, 1, 2, 0, 1, 2, 2], names=names)
  )
  fresh = zero_shot.evaluate(encoder, data, Options())
  for _ in range(2):
    _, cache = cached(tmp_path)
    assert zero_shot.evaluate(encoder, data, Options(cache=cache)) == fresh


def test_a_full_disk_is_one_line(small_disk):
  (small_disk / 'filler').write_bytes(b'x' * (2**20 - 4096 * 2))
  _, cache = cached(small_disk / 'cache')
  many = source([0] * 3000, labels=[0] * 3000, captions=[['x' * 99]] * 3000)
  extraction.SHARD_ROWS = 3000
  with pytest.raises(FailureError, match='could not be written: no space'):
    cache.images(many, Options())


def test_a_folder_of_images_is_known_by_all_of_its_files(tmp_path):
  spec = write_pairs(tmp_path / 'pictures', 100)
  before = data_identity(open_source(spec))
  assert data_identity(open_source(spec)) == before
  assert before['outline']
  place = tmp_path / 'pictures' / '050.png'
  Image.new('RGB', (20, 24)).save(place)
  after = data_identity(open_source(spec))
  assert after['outline'] != before['outline']
  (tmp_path / 'pictures' / '051.txt').write_text('another text')
  assert data_identity(open_source(spec))['outline'] != after['outline']


def test_a_table_is_known_by_all_of_its_labels(tmp_path):
  write_pairs(tmp_path / 'pictures', 100)
  rows = [f'pictures/{i:03}.png,{i % 2}' for i in range(100)]
  table = tmp_path / 'table.csv'
  table.write_text('\n'.join(['image,label', *rows]))
  before = data_identity(open_source(f'csv:{table}'))
  rows[51] = 'pictures/051.png,0'
  table.write_text('\n'.join(['image,label', *rows]))
  after = data_identity(open_source(f'csv:{table}'))
  assert after['outline'] != before['outline']


def test_models_are_told_apart_by_parameters_and_arithmetic():
  model = tiny_model()
  identity = identity_of(model, 'float32')
  assert identity_of(tiny_model(), 'float32') == identity
  assert identity_of(model, 'bfloat16') != identity
  described = model.description
  image = dataclasses.replace(described.model.image, activation='gelu')
  others = [
    {'preprocessing': dataclasses.replace(
      described.preprocessing, resize_mode='squash')},
    {'model': dataclasses.replace(described.model, image=image)},
    {'tokenizer': {**described.tokenizer, 'lower': 'other'}},
  ]  # fmt: skip
  for changes in others:
    other = dataclasses.replace(described, **changes)
    changed = type(model)(other, model.variables)
    assert identity_of(changed, 'float32') != identity, changes
  json.dumps(identity)


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_ends_with_the_same_bits(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(extraction, 'SHARD_ROWS', kill_cached.SHARD_ROWS)
  spec = write_pairs(tmp_path / 'pictures', 24)
  (tmp_path / 'pictures' / '002.png').write_text('junk')
  source = open_source(spec)
  done = subprocess.run(
    [sys.executable, '-m', 'tests.evaluation.kill_cached', spec,
     str(tmp_path / 'cache'), '14'],
    capture_output=True,
  )  # fmt: skip
  assert done.returncode == -signal.SIGKILL, done.stderr
  parts = list((tmp_path / 'cache').glob('images/*/*.npz'))
  assert 1 <= len(parts) <= 3
  model = tiny_model(batch_size=2)
  seen = []

  def progress(items, total, unit, *, done=0):
    for item in items:
      seen.append(done)
      yield item

  cache = FeatureCache(tmp_path / 'cache', model, identity_of(model, 'float32'))
  result = cache.images(source, Options(progress=progress))
  kept = kill_cached.SHARD_ROWS * len(parts)
  assert seen == [kept] * (24 - kept)
  same(result, read_features(model, source, Options()))
  assert list(result.corrupt) == ['002.png']
  assert len(result) == 23
