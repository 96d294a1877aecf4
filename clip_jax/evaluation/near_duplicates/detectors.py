"""Which test images are near-duplicates of training images: two detectors.

The perceptual one compares hashes, and lays what is near upon the test image;
the learned one compares the features of the model that is evaluated.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from clip_jax.data.decoding import CorruptImageError, decode
from clip_jax.data.sources import Source
from clip_jax.errors import FailureError
from clip_jax.evaluation.dataset import Split
from clip_jax.evaluation.features.extraction import (
  Features,
  read_features,
)
from clip_jax.evaluation.features.nearest import (
  Nearest,
  near_hashes,
  nearest_features,
  nearest_hashes,
)
from clip_jax.evaluation.near_duplicates.hash_cache import (
  places_of,
  read_hashes,
)
from clip_jax.evaluation.near_duplicates.same_image import (
  is_same,
  thumbnail,
)
from clip_jax.evaluation.types import Encoder, Options

# Of each test picture: training pictures with a near hash that are looked at,
# and of these the ones that look most like it, which are laid upon it.
_CANDIDATES, _COMPARED = 64, 4
_KEPT = 20_000  # pictures to compare in memory, 28 kB each


class Found(NamedTuple):
  """What a detector says of the test pictures.

  Attributes:
    nearest: of each.
    train_ids: of the training pictures.
    corrupt: id to reason, of training pictures that could not be compared.
    refuted: test pictures whose hash is near, and which are not the same.
    uncompared: test pictures without texture, which count as clean.
  """

  nearest: Nearest
  train_ids: list[str]
  corrupt: dict[str, str]
  refuted: Bool[np.ndarray, ' N']
  uncompared: int


def find_perceptual(
  test: Features, split: Split, train: Split, options: Options
) -> Found:
  """Finds near-duplicates by hashes, and by laying near images upon each other.

  Flat images are compared with none, and none with them.

  Args:
    test: features of the test images; only their ids are used.
    split, train: the test images and the training images.
    options: `max_distance`, `cache`, `max_corrupt_records`, `progress`.
  Raises:
    FailureError: too many are corrupt, or cached hashes are of other images.
  """
  ours = read_hashes(split.source, options)
  theirs = read_hashes(train.source, options)
  places = {key: row for row, key in enumerate(ours.ids)}
  if not places.keys() >= set(test.ids):
    raise FailureError(
      f'data {split.source.spec!r} has changed since its pictures were hashed: '
      'remove the folder hashes from the cache.'
    )
  rows = np.array([places[key] for key in test.ids], np.int64)
  bits, flat = ours.bits[rows], ours.flat[rows]
  kept = np.flatnonzero(~theirs.flat)
  found = nearest_hashes(bits[~flat], theirs.bits[kept])
  nearest = Nearest(np.full(len(test), -1), np.full(len(test), np.nan))
  nearest.rows[~flat] = kept[found.rows] if len(kept) else -1
  nearest.values[~flat] = found.values
  refuted = np.zeros(len(test), bool)
  candidates = near_hashes(
    bits[~flat], theirs.bits[kept], options.max_distance, _CANDIDATES
  )
  textured = np.flatnonzero(~flat).tolist()
  close = [(i, kept[x]) for i, x in zip(textured, candidates, strict=True) if x]
  pictures = _Thumbnails(split.source, places_of(split.source, ours))
  trained = _Thumbnails(train.source, places_of(train.source, theirs))
  for i, others in options.progress(close, len(close), 'comparisons'):
    same = _first_same(pictures[int(rows[i])], others, trained)
    if same is None:
      refuted[i] = True
    else:
      nearest.rows[i] = same
      nearest.values[i] = int(np.bitwise_count(bits[i] ^ theirs.bits[same]))
  uncompared = int(flat.sum())
  return Found(nearest, theirs.ids, theirs.corrupt, refuted, uncompared)


def _first_same(
  picture: np.ndarray | None, others: np.ndarray, trained: '_Thumbnails'
) -> int | None:
  """The training picture that is the same; those that look like it first."""
  if picture is None:
    return None
  looks = [(row, trained[row]) for row in others.tolist()]
  there = [(row, x) for row, x in looks if x is not None]
  there.sort(key=lambda pair: float(np.square(pair[1] - picture).mean()))
  for row, other in there[:_COMPARED]:
    if is_same(picture, other):
      return row
  return None


class _Thumbnails:
  """What is compared of a source's pictures; those used last are in memory."""

  def __init__(self, source: Source, places: list[int]):
    self._source, self._places = source, places
    self._read = functools.lru_cache(maxsize=_KEPT)(self._find)

  def __getitem__(self, row: int) -> np.ndarray | None:
    """Of the picture that was hashed in this row; None if it is gone."""
    return self._read(row)

  def _find(self, row: int) -> np.ndarray | None:
    try:
      return thumbnail(decode(self._source[self._places[row]]['image']))
    except CorruptImageError:
      return None


def find_learned(
  encoder: Encoder, test: Features, train: Split, options: Options
) -> Found:
  """Finds the training images whose features are nearest, by their cosine."""
  theirs = read_features(encoder, train, options)
  nearest = nearest_features(test.vectors, theirs.vectors)
  none = np.zeros(len(test), bool)
  return Found(nearest, theirs.ids, theirs.corrupt, none, 0)
