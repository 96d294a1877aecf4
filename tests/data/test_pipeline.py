import collections
import dataclasses
import functools
import hashlib
import io
import itertools
import logging
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_jax.data.augment import Augmentation
from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.examples import ImageCache, Reader
from clip_jax.data.images import decode_rgb, preprocess
from clip_jax.data.pipeline import step_records, training_batches
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.sources import Record, Source, open_source
from clip_jax.errors import FailureError, UsageError
from tests.data.images import captioned_folder, make_image, write_images

PREPROCESSING = Preprocessing(8)
STRONG = Augmentation(crop_scale=(0.5, 1.0), rotate=20.0, brightness=0.3)


@functools.cache
def grey_png(level: int) -> bytes:
  encoded = io.BytesIO()
  pixels = np.full((8, 8, 3), level, np.uint8)
  Image.fromarray(pixels).save(encoded, 'PNG')
  return encoded.getvalue()


@dataclasses.dataclass
class Numbers(Source):
  """Record i has the caption 'FIRST + i' and an image of that grey."""

  count: int
  first: int = 0
  bad: tuple[int, ...] = ()
  spec = 'numbers'

  def __len__(self) -> int:
    return self.count

  def id(self, index: int) -> str:
    return str(self.first + index)

  def captions(self, index: int) -> list[str]:
    return [self.id(index)]

  def __getitem__(self, index: int) -> Record:
    if index in self.bad:
      raise CorruptImageError('bad for a test')
    return {
      'id': self.id(index),
      'image': grey_png(self.first + index),
      'caption': self.captions(index),
    }


class Digits:
  """A tokenizer of numbers: the number itself, then nothing."""

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    return np.array([[int(x.split()[-1]), 0] for x in texts], np.int32)


def batches(source, count, **options):
  """The first `count` batches, and the stream they came from."""
  options = {'batch_size': 8, 'seed': 3, 'threads': 0} | options
  stream = training_batches(
    source, tokenizer=Digits(), preprocessing=PREPROCESSING, **options
  )
  result = list(itertools.islice(stream, count))
  stream.close()
  return result, stream


def numbers(result) -> list[int]:
  """Which records batches hold, in order."""
  return [int(x) for batch in result for x in batch['tokens'][:, 0]]


def assert_equal(result, wanted):
  assert len(result) == len(wanted)
  for a, b in zip(result, wanted, strict=True):
    assert a.keys() == b.keys() == {'image', 'tokens'}
    for key in a:
      assert a[key].dtype == b[key].dtype
      np.testing.assert_array_equal(a[key], b[key])


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  return captioned_folder(tmp_path_factory.mktemp('pictures'), 20)


def test_shapes_and_that_images_go_with_their_captions():
  result, stream = batches(Numbers(20), 4)
  assert stream.records == 20
  for batch in result:
    assert batch['image'].shape == (8, 8, 8, 3)
    assert batch['image'].dtype == np.uint8
    assert batch['tokens'].shape == (8, 2)
    assert batch['tokens'].dtype == np.int32
    np.testing.assert_array_equal(
      batch['image'][:, 3, 3, 0], batch['tokens'][:, 0]
    )


def test_without_augmentation_a_square_image_is_the_evaluated_one(folder):
  source = open_source(f'folder:{folder}')
  (batch,), _ = batches(source, 1)
  for pixels, number in zip(batch['image'], batch['tokens'][:, 0], strict=True):
    wanted = preprocess(source[int(number)]['image'], PREPROCESSING)
    np.testing.assert_array_equal(pixels, wanted)


@settings(max_examples=30)
@given(
  count=st.integers(1, 40),
  batch_size=st.integers(1, 12),
  seed=st.integers(0, 2**63),
)
def test_every_record_comes_once_an_epoch(count, batch_size, seed):
  steps = -(-3 * count // batch_size)
  result, _ = batches(Numbers(count), steps, batch_size=batch_size, seed=seed)
  stream = numbers(result)
  for epoch in range(3):
    records = stream[epoch * count : (epoch + 1) * count]
    assert sorted(records) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own():
  result, _ = batches(Numbers(40), 10)
  first, second = numbers(result)[:40], numbers(result)[40:]
  other, _ = batches(Numbers(40), 5, seed=4)
  assert (
    len({tuple(x) for x in (first, second, numbers(other), range(40))}) == 4
  )


@pytest.mark.parametrize('start', [1, 5, 12])
def test_a_resumed_stream_is_the_same_to_the_bit(folder, start):
  source = open_source(f'folder:{folder}')
  wanted, _ = batches(source, 15, augmentation=STRONG)
  result, _ = batches(
    source, 15 - start, augmentation=STRONG, start_step=start, threads=2
  )
  assert_equal(result, wanted[start:])


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_processes_together_read_the_global_batch(folder, processes):
  source = open_source(f'folder:{folder}')
  wanted, _ = batches(source, 6, augmentation=STRONG)
  parts = [
    batches(
      source,
      4,
      augmentation=STRONG,
      start_step=2,
      process_index=index,
      process_count=processes,
    )[0]
    for index in range(processes)
  ]
  joined = [
    {key: np.concatenate([x[key] for x in rows]) for key in rows[0]}
    for rows in zip(*parts, strict=True)
  ]
  assert_equal(joined, wanted[2:])


def test_threads_and_cache_change_nothing(folder):
  source = open_source(f'folder:{folder}')
  wanted, _ = batches(source, 9, augmentation=STRONG)
  for options in (
    {'threads': 3},
    {'cache': True},
    {'threads': 2, 'cache': True},
  ):
    result, _ = batches(source, 9, augmentation=STRONG, **options)
    assert_equal(result, wanted)


@pytest.mark.slow
def test_worker_processes_change_nothing(folder):
  source = open_source(f'folder:{folder}')
  (folder / '013.png').rename(folder / '013.gone')
  try:
    wanted, one = batches(source, 9, augmentation=STRONG, start_step=3)
    result, several = batches(
      source, 9, augmentation=STRONG, start_step=3, workers=2, threads=1
    )
  finally:
    (folder / '013.gone').rename(folder / '013.png')
  assert_equal(result, wanted)
  assert several.corrupt == one.corrupt != {}


def test_the_cache_reads_an_image_once(monkeypatch):
  reads = collections.Counter()
  get = Numbers.__getitem__

  def counting(self, index):
    reads[index] += 1
    return get(self, index)

  monkeypatch.setattr(Numbers, '__getitem__', counting)
  batches(Numbers(20), 10, cache=True)
  assert set(reads.values()) == {1}
  reads.clear()
  monkeypatch.setattr('clip_jax.data.examples.CACHE_BYTES', 5 * 4 * 8 * 8)
  batches(Numbers(20), 10, cache=True)
  assert sum(times == 1 for times in reads.values()) == 5
  reads.clear()
  batches([Numbers(20), Numbers(20)], 20, cache=True)
  # Each index is read of both; what is not kept is read each epoch.
  assert sum(reads.values()) == 160 - 3 * 5


def test_the_data_sets_of_a_mixture_share_the_limit_of_the_cache(monkeypatch):
  monkeypatch.setattr('clip_jax.data.examples.CACHE_BYTES', 5 * 4 * 8 * 8)
  cache = ImageCache()
  decode = functools.partial(decode_rgb, preprocessing=PREPROCESSING)
  readers = [
    Reader(Numbers(20, first), decode, 0, cache, first=first)
    for first in (0, 20)
  ]
  # A worker process gets all readers at once, by pickling.
  for own in (readers, pickle.loads(pickle.dumps(readers))):
    images = [reader[i].image for reader in own for i in range(20)]
    again = [reader[i].image for reader in own for i in range(20)]
    assert sum(x is y for x, y in zip(images, again, strict=True)) == 5
    assert [x.getpixel((0, 0))[0] for x in again] == [*range(40)]


def test_one_of_several_captions_is_drawn(tmp_path):
  write_images(tmp_path, ['a.png'])
  (tmp_path / 'a.txt').write_text('1\n2\n3\n')
  source = open_source(f'folder:{tmp_path}')
  result, _ = batches(source, 30)
  counts = collections.Counter(numbers(result))
  assert set(counts) == {1, 2, 3}
  assert min(counts.values()) > 40  # Of 240.


def test_a_mixture_keeps_its_weights_and_its_epochs():
  sources = [Numbers(10), Numbers(10, first=100)]
  result, stream = batches(sources, 50, weights=(3.0, 1.0))
  assert stream.records == 20
  order = numbers(result)
  assert sum(x < 100 for x in order) == 300
  first = [x for x in order if x < 100]
  assert sorted(first[:10]) == list(range(10))
  equal, _ = batches([Numbers(30), Numbers(10, first=100)], 5)
  assert sum(x < 100 for x in numbers(equal)) == 30


def test_a_corrupt_record_gives_way_to_the_next_and_is_counted(caplog):
  source = Numbers(16, bad=(3, 4, 15))
  with caplog.at_level(logging.WARNING):
    result, stream = batches(source, 4, max_corrupt_records=3)
  assert stream.corrupt == dict.fromkeys(('3', '4', '15'), 'bad for a test')
  assert len(caplog.records) == 3  # Once each, though they came twice.
  assert 'skipped a corrupt record: 3: bad for a test' in caplog.text
  counts = collections.Counter(numbers(result))
  twice = dict.fromkeys({*range(16)} - {3, 4, 15}, 2)
  assert counts == twice | {5: 6, 0: 4}  # 5 for 3 and for 4, 0 for 15.


def test_corrupt_files_are_named(tmp_path):
  captioned_folder(tmp_path, 8)
  data = (tmp_path / '002.png').read_bytes()
  (tmp_path / '002.png').write_bytes(data[:50])
  (tmp_path / '005.png').write_bytes(b'no picture')
  (tmp_path / '006.txt').unlink()
  (tmp_path / '007.png').unlink()
  source = open_source(f'folder:{tmp_path}')
  assert len(source) == 7
  _, stream = batches(source, 1)
  assert set(stream.corrupt) == {'002.png', '005.png'}
  assert stream.records == 6  # 006.png has no caption, which is no damage
  (notice, orphan) = source.notices
  assert "'007.txt'" in notice and "'006.png'" in orphan
  assert 'damaged' in stream.corrupt['002.png']
  assert 'not an image' in stream.corrupt['005.png']


@pytest.mark.parametrize('threads', [0, 2])
def test_too_many_corrupt_records_end_the_run(threads):
  message = 'over data.max_corrupt_records=1 records are corrupt: .*bad for a'
  for bad in ((3, 9), (3, 4)):
    with pytest.raises(FailureError, match=message) as caught:
      batches(Numbers(16, bad=bad), 4, max_corrupt_records=1, threads=threads)
    assert '\n' not in str(caught.value)
  with pytest.raises(FailureError, match='no readable record; '):
    batches(Numbers(2, bad=(0, 1)), 4, threads=threads)


def test_mistakes_are_one_clear_line(tmp_path):
  with pytest.raises(UsageError, match='batch_size=9 does not split over 2'):
    batches(Numbers(9), 1, batch_size=9, process_count=2)
  with pytest.raises(UsageError, match='batch_size=0'):
    batches(Numbers(9), 1, batch_size=0)
  for weights in ((1.0,), (1.0, 0.0), (1.0, -1.0)):
    with pytest.raises(UsageError, match=r'data\.weights=.* for 2 data sets'):
      batches([Numbers(9), Numbers(9)], 1, weights=weights)
  write_images(tmp_path, ['a.png'])
  with pytest.raises(UsageError, match='no captions to train on'):
    batches(open_source(f'folder:{tmp_path}'), 1)


def test_the_stream_is_the_same_in_every_version_of_ours():
  """A changed stream would break every run that is resumed.

  Positions and captions only: pixels also depend on Pillow's version. After a
  change that is meant, and said in the changelog, put the new digest here.
  """
  result, _ = batches(Numbers(100), 40, seed=2103)
  digest = hashlib.sha256(np.array(numbers(result), '<i4').tobytes())
  assert digest.hexdigest()[:16] == '3597f10f5a7bada3'


def test_importing_the_pipeline_needs_no_framework_and_no_source():
  code = (
    'import sys, clip_jax.data.pipeline, clip_jax.data.sources; '
    "data = 'clip_jax.data.'; sources = data + 'sources.'; "
    "bad = {'tensorflow', 'torch', 'matplotlib', 'pandas', "
    "'tensorflow_datasets', data + 'inspect', data + 'built_in', "
    "sources + 'csv', sources + 'folder', sources + 'tfds'"
    '} & set(sys.modules); assert not bad, bad'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('weights', [None, (3.0, 1.0)])
def test_the_records_of_a_step_are_known_without_reading_them(weights):
  sources = [Numbers(10), Numbers(20, first=10)]
  result, _ = batches(sources, 6, weights=weights)
  unreadable = [
    dataclasses.replace(source, bad=tuple(range(len(source))))
    for source in sources
  ]
  for step, batch in enumerate(result, 1):
    records = step_records(
      unreadable, weights=weights, batch_size=8, seed=3, step=step
    )
    assert records == [str(number) for number in batch['tokens'][:, 0]]


class Billion(Numbers):
  """Record i of 10^9 has the caption 'i', and counts that it was looked at."""

  looked_at = 0

  def captions(self, index: int) -> list[str]:
    self.looked_at += 1
    return [str(index)]

  def __getitem__(self, index: int) -> Record:
    return {
      'id': self.id(index),
      'image': grey_png(index % 256),
      'caption': self.captions(index),
    }


def test_a_billion_records_are_neither_walked_nor_listed_at_the_start():
  source = Billion(10**9)
  first, stream = batches(source, 2)
  assert stream.records == 10**9
  assert source.looked_at <= 100
  ids = step_records([source], batch_size=8, seed=3, step=2)
  assert ids == [str(number) for number in numbers(first[1:])]


def jpeg_folder(folder: pathlib.Path, count: int) -> Source:
  """Pairs of JPEGs and numbers."""
  for i in range(count):
    make_image(i, 60 + 7 * i, 90 - 5 * i).save(folder / f'{i}.jpg', quality=90)
    (folder / f'{i}.txt').write_text(str(i))
  return open_source(f'folder:{folder}')


@pytest.mark.parametrize('scale', [(1.0, 1.0), (0.3, 0.8)])
def test_fast_crops_are_exact_ones_nearly_and_the_cache_changes_nothing(
  tmp_path, scale
):
  source = jpeg_folder(tmp_path, 8)
  options = {'augmentation': Augmentation(crop_scale=scale)}
  exact, _ = batches(source, 4, decode='exact', **options)
  fast, _ = batches(source, 4, **options)
  cached, _ = batches(source, 4, cache=True, **options)
  assert_equal(fast, cached)
  assert numbers(fast) == numbers(exact)
  for a, b in zip(fast, exact, strict=True):
    difference = np.abs(a['image'].astype(int) - b['image'])
    assert 0 < difference.mean() < 6  # of large blocks of random colours
  with pytest.raises(UsageError, match='choose one of fast, exact'):
    batches(source, 1, decode='quick')


def test_views_do_not_depend_on_processes_or_where_a_run_begins(tmp_path):
  source = jpeg_folder(tmp_path, 8)
  whole, _ = batches(source, 6)
  halves = [
    batches(source, 3, start_step=3, process_index=p, process_count=2)[0]
    for p in (0, 1)
  ]
  joined = [
    {key: np.concatenate([a[key], b[key]]) for key in a}
    for a, b in zip(*halves, strict=True)
  ]
  assert_equal(joined, whole[3:])


@pytest.mark.slow
def test_fast_crops_do_not_depend_on_the_number_of_workers(tmp_path):
  source = jpeg_folder(tmp_path, 8)
  alone, _ = batches(source, 6)
  for workers in (1, 2):
    result, _ = batches(source, 6, workers=workers)
    assert_equal(result, alone)
