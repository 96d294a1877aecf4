"""Hashes from the cache are the fresh ones, and are made only once."""

import numpy as np
import pytest

from clip_jax.errors import FailureError
from clip_jax.evaluation import Options
from clip_jax.evaluation.features.cache import FeatureCache
from clip_jax.evaluation.near_duplicates import hash_cache as module
from clip_jax.evaluation.near_duplicates.hash_cache import read_hashes
from clip_jax.evaluation.near_duplicates.perceptual_hash import (
  hash_pictures,
)
from tests.evaluation.fakes import ListSource, TableEncoder
from tests.evaluation.textures import TextureSource, texture


def cached(folder, **values):
  return Options(cache=FeatureCache(folder, TableEncoder({}, {}), {}), **values)


def assert_equal(first, second):
  assert first.ids == second.ids
  assert first.corrupt == second.corrupt
  np.testing.assert_array_equal(first.bits, second.bits)
  np.testing.assert_array_equal(first.flat, second.flat)
  assert first.bits.dtype == second.bits.dtype == np.uint64


@pytest.mark.parametrize('block', [1, 2, 4096])
def test_hashes_are_those_of_the_readable_pictures(monkeypatch, block):
  monkeypatch.setattr(module, '_BLOCK', block)
  pictures = [texture(i) for i in range(4)]
  source = TextureSource([*pictures[:2], None, *pictures[2:]])
  found = read_hashes(source, Options())
  expected = hash_pictures(pictures)
  np.testing.assert_array_equal(found.bits, expected.bits)
  np.testing.assert_array_equal(found.flat, expected.flat)
  assert found.ids == [f'textures:{i}' for i in (0, 1, 3, 4)]
  assert found.corrupt == {'textures:2': 'damaged'}


def test_a_second_run_hashes_nothing(tmp_path, monkeypatch):
  source = TextureSource([texture(0), None, texture(1)])
  fresh = read_hashes(source, Options())
  first = read_hashes(source, cached(tmp_path))
  with monkeypatch.context() as patch:
    patch.setattr(module, 'spectrum', None)  # fails if it is called
    second = read_hashes(source, cached(tmp_path))
  assert_equal(fresh, first)
  assert_equal(fresh, second)
  (file,) = (tmp_path / 'hashes').iterdir()
  assert file.suffix == '.npz'
  with np.load(file, allow_pickle=False) as arrays:
    assert set(arrays) == {'bits', 'flat', 'notes'}


@pytest.mark.parametrize(
  'other',
  [
    TextureSource([texture(0), texture(9)]),  # another picture
    TextureSource([texture(0)]),
    TextureSource([texture(0), texture(1)], spec='elsewhere:'),
    TextureSource([texture(0), None]),
  ],
)
def test_other_pictures_have_a_file_of_their_own(tmp_path, other):
  read_hashes(TextureSource([texture(0), texture(1)]), cached(tmp_path))
  assert_equal(
    read_hashes(other, cached(tmp_path)), read_hashes(other, Options())
  )
  assert len(list((tmp_path / 'hashes').iterdir())) == 2


@pytest.mark.parametrize('damage', [b'', b'no archive', None])
def test_a_damaged_file_is_made_again(tmp_path, damage):
  source = TextureSource([texture(0), texture(1)])
  fresh = read_hashes(source, cached(tmp_path))
  (file,) = (tmp_path / 'hashes').iterdir()
  whole = file.read_bytes()
  file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
  assert_equal(fresh, read_hashes(source, cached(tmp_path)))
  assert file.read_bytes() == whole


def test_a_stricter_limit_counts_for_cached_hashes_too(tmp_path):
  source = ListSource([0, None, None])
  assert len(read_hashes(source, cached(tmp_path)).corrupt) == 2
  for options in (Options(max_corrupt_records=1),
                  cached(tmp_path, max_corrupt_records=1)):  # fmt: skip
    with pytest.raises(FailureError, match='over max_corrupt_records=1'):
      read_hashes(source, options)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / 'hashes').write_text('a file')
  with pytest.raises(FailureError, match='could not be written: ') as caught:
    read_hashes(TextureSource([texture(0)]), cached(tmp_path))
  assert '\n' not in str(caught.value)
