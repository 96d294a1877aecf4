"""Two detectors of test images that are near-duplicates of training images.

The perceptual one compares hashes, and then aligns the images of near hashes
and compares their pixels; the learned one compares the features of the model
that is evaluated. Every pair is compared, a block at a time: memory grows with
the number of test images, not with that of pairs.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt64

from clip_jax.data.decoding import CorruptImageError, decode
from clip_jax.data.sources import Source
from clip_jax.errors import FailureError
from clip_jax.evaluation.examples import Examples
from clip_jax.evaluation.features.extraction import read_features
from clip_jax.evaluation.near_duplicates.perceptual_hash import read_hashes
from clip_jax.evaluation.near_duplicates.same_image import is_same, thumbnail
from clip_jax.evaluation.types import Encoder, Options
from clip_jax.inference.nearest import nearest_rows

# For each test image, this many training images with a near hash are looked at,
# and this many that look most like it are aligned with it.
_CANDIDATES, _COMPARED = 64, 4
_THUMBNAILS = 20_000  # kept in memory, 28 kB each
_BLOCK = 2048  # images of each side that are compared at once


class NearDuplicates(NamedTuple):
  """The result of a detector for N test images.

  Attributes:
    rows: the training image that is nearest to each; of equals the first. -1
      where there is none to compare with.
    values: bits that differ or a cosine; NaN where there is none.
    train_ids: of the training images.
    corrupt: id to reason, of training images that could not be compared.
    refuted: test images whose hash is near, and which are not the same.
    uncompared: how many test images have no texture, and so count as clean.
  """

  rows: Int[np.ndarray, ' N']
  values: Float[np.ndarray, ' N']
  train_ids: list[str]
  corrupt: dict[str, str]
  refuted: Bool[np.ndarray, ' N']
  uncompared: int


def find_perceptual(
  test: Examples, test_source: Source, train: Source, options: Options
) -> NearDuplicates:
  """Finds near-duplicates by their hashes, and then by comparing pixels.

  Flat images, test or training, are compared with none.

  Args:
    test: of which only the ids are used.
    test_source, train: the test images and the training images.
    options: `overlap.max_distance`, `cache`, `max_corrupt_records`, `progress`.
  Raises:
    FailureError: too many are corrupt, or cached hashes are of other images.
  """
  test_records, test_hashes = read_hashes(test_source, options)
  train_records, train_hashes = read_hashes(train, options)
  row_of = {key: row for row, key in enumerate(test_records.ids)}
  if not row_of.keys() >= set(test.ids):
    raise FailureError(
      f'data {test_source.spec!r} has changed since its images were hashed: '
      'remove the folder hashes from the cache.'
    )
  test_rows = np.array([row_of[key] for key in test.ids], np.int64)
  bits, flat = test_hashes.bits[test_rows], test_hashes.flat[test_rows]
  train_rows = np.flatnonzero(~train_hashes.flat)
  train_bits = train_hashes.bits[train_rows]
  rows, values = np.full(len(test), -1), np.full(len(test), np.nan)
  nearest, values[~flat] = nearest_hashes(bits[~flat], train_bits)
  rows[~flat] = train_rows[nearest] if len(train_rows) else -1
  refuted = np.zeros(len(test), bool)
  candidates = hashes_within(
    bits[~flat], train_bits, options.overlap.max_distance, _CANDIDATES
  )
  textured = np.flatnonzero(~flat).tolist()
  pairs = [
    (i, train_rows[near])
    for i, near in zip(textured, candidates, strict=True)
    if near
  ]
  test_images = _Thumbnails(test_source, test_records.corrupt)
  train_images = _Thumbnails(train, train_records.corrupt)
  for i, near in options.progress(pairs, len(pairs), 'comparisons'):
    same = _first_same(test_images[int(test_rows[i])], near, train_images)
    if same is None:
      refuted[i] = True
    else:
      rows[i] = same
      values[i] = int(np.bitwise_count(bits[i] ^ train_hashes.bits[same]))
  return NearDuplicates(
    rows,
    values,
    train_records.ids,
    train_records.corrupt,
    refuted,
    int(flat.sum()),
  )


def find_learned(
  encoder: Encoder, test: Examples, train: Source, options: Options
) -> NearDuplicates:
  """Finds the training images whose features are nearest, by their cosine."""
  trained = read_features(encoder, train, options)
  rows, values = nearest_features(test.features.embeddings, trained.embeddings)
  refuted = np.zeros(len(test), bool)
  return NearDuplicates(rows, values, trained.ids, trained.corrupt, refuted, 0)


def nearest_hashes(
  test: UInt64[np.ndarray, ' N'], train: UInt64[np.ndarray, ' M']
) -> tuple[Int[np.ndarray, ' N'], Float[np.ndarray, ' N']]:
  """Finds the nearest hash of each by the number of bits that differ.

  Returns:
    Rows of `train`, of equals the first, and bits; -1 and NaN of no `train`.
  """
  rows = np.full(len(test), -1, np.int64)
  values = np.full(len(test), np.nan)
  for block, other in _blocks(len(test), len(train)):
    bits = _differing_bits(test[block], train[other])
    best = bits.argmin(axis=1)
    value = np.take_along_axis(bits, best[:, None], axis=1)[:, 0]
    better = (rows[block] < 0) | (value < values[block])
    rows[block] = np.where(better, other.start + best, rows[block])
    values[block] = np.where(better, value, values[block])
  return rows, values


def nearest_features(
  test: Float[np.ndarray, 'N E'], train: Float[np.ndarray, 'M E']
) -> tuple[Int[np.ndarray, ' N'], Float[np.ndarray, ' N']]:
  """Finds the nearest unit-length row of each by the cosine.

  Returns:
    Rows of `train`, of equals the first, and cosines, at most 1; -1 and NaN
    of no `train`.
  """
  if not len(train):
    return np.full(len(test), -1), np.full(len(test), np.nan)
  nearest = nearest_rows(test, train, k=1)
  cosines = nearest.similarities[:, 0].astype(np.float64)
  return nearest.rows[:, 0], np.minimum(cosines, 1.0)


def hashes_within(
  test: UInt64[np.ndarray, ' N'],
  train: UInt64[np.ndarray, ' M'],
  max_distance: int,
  most: int,
) -> list[list[int]]:
  """Finds, for each test hash, the training hashes within some bits.

  Returns:
    Rows of `train`, the nearest first, `most` at most.
  """
  near: list[list[tuple[int, int]]] = [[] for _ in test]
  for block, other in _blocks(len(test), len(train)):
    bits = _differing_bits(test[block], train[other])
    for i, j in np.argwhere(bits <= max_distance).tolist():
      near[block.start + i].append((int(bits[i, j]), other.start + j))
  return [[row for _, row in sorted(pairs)[:most]] for pairs in near]


def _differing_bits(
  first: UInt64[np.ndarray, ' n'], second: UInt64[np.ndarray, ' m']
) -> UInt8[np.ndarray, 'n m']:
  return np.bitwise_count(first[:, None] ^ second[None])


def _blocks(first: int, second: int) -> Iterator[tuple[slice, slice]]:
  """Yields pairs of blocks that cover all pairs of two lists."""
  for top in range(0, first, _BLOCK):
    for left in range(0, second, _BLOCK):
      yield slice(top, top + _BLOCK), slice(left, left + _BLOCK)


def _first_same(
  image: np.ndarray | None, rows: np.ndarray, train_images: '_Thumbnails'
) -> int | None:
  """Returns the row of a training image that is the same, or None.

  Those that look most like the image are compared first.
  """
  if image is None:
    return None
  thumbnails = [(row, train_images[row]) for row in rows.tolist()]
  readable = [(row, other) for row, other in thumbnails if other is not None]
  readable.sort(key=lambda pair: float(np.square(pair[1] - image).mean()))
  for row, other in readable[:_COMPARED]:
    if is_same(image, other):
      return row
  return None


class _Thumbnails:
  """Thumbnails of a source's images; those used last stay in memory."""

  def __init__(self, source: Source, corrupt: dict[str, str]):
    """Reads nothing yet.

    Args:
      corrupt: id to reason, of the images that were not hashed.
    """
    self._source = source
    numbers = range(len(source))
    self._records = [i for i in numbers if source.id(i) not in corrupt]
    self._cached = functools.lru_cache(maxsize=_THUMBNAILS)(self._read)

  def __getitem__(self, row: int) -> np.ndarray | None:
    """Returns the thumbnail of the image in a row of the hashes.

    None stands for an image that cannot be read any more.
    """
    return self._cached(row)

  def _read(self, row: int) -> np.ndarray | None:
    try:
      return thumbnail(decode(self._source[self._records[row]]['image']))
    except CorruptImageError:
      return None
