"""Finds, for each test image, the training image that is most like it.

Every pair is compared, a block at a time: what is kept grows as the number of
test pictures, never as that of pairs.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

_BLOCK_PAIRS = 2**22  # compared at once, 4 or 8 bytes each


class Nearest(NamedTuple):
  """One row a test picture.

  Attributes:
    rows: int64, of the training pictures; of equals the first. -1 where there
      is none to compare with.
    values: float64, bits that differ or a cosine; NaN where there is none.
  """

  rows: Int[np.ndarray, ' N']
  values: Float[np.ndarray, ' N']


def nearest_hashes(
  test: UInt64[np.ndarray, ' N'], train: UInt64[np.ndarray, ' M']
) -> Nearest:
  """Finds the nearest hash by the number of bits that differ, 0 to 64."""

  def compare(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    differing = np.bitwise_count(first[:, None] ^ second[None])
    return -differing.astype(np.int8)

  found = _greatest(test, train, compare)
  return Nearest(found.rows, 0.0 - found.values)  # 0, and not -0


def near_hashes(
  test: UInt64[np.ndarray, ' N'],
  train: UInt64[np.ndarray, ' M'],
  reach: int,
  most: int,
) -> list[list[int]]:
  """Finds, for each test hash, the training hashes within `reach` bits.

  Returns:
    Rows of the training pictures, the nearest first, `most` at most.
  """
  found: list[list[int]] = []
  side = int(_BLOCK_PAIRS**0.5)
  for top in range(0, len(test), side):
    block = test[top : top + side]
    pairs = [
      (i, int(bits[i, j]), left + j)
      for left in range(0, len(train), side)
      for bits in [np.bitwise_count(block[:, None] ^ train[left : left + side])]
      for i, j in np.argwhere(bits <= reach).tolist()
    ]
    rows: list[list[tuple[int, int]]] = [[] for _ in block]
    for i, distance, row in pairs:
      rows[i].append((distance, row))
    found += [[row for _, row in sorted(x)[:most]] for x in rows]
  return found


def nearest_features(
  test: Float[np.ndarray, 'N E'], train: Float[np.ndarray, 'M E']
) -> Nearest:
  """Finds the nearest row by the cosine of unit-length rows, at most 1."""
  found = _greatest(test, train, lambda first, second: first @ second.T)
  return Nearest(found.rows, np.minimum(found.values, 1.0))


def _greatest(test: np.ndarray, train: np.ndarray, compare) -> Nearest:
  """Finds the best score; `compare` gives those of two blocks, [n, m]."""
  rows = np.full(len(test), -1, np.int64)
  values = np.full(len(test), np.nan)
  side = int(_BLOCK_PAIRS**0.5)
  for top in range(0, len(test), side):
    block = slice(top, top + side)
    for left in range(0, len(train), side):
      scores = compare(test[block], train[left : left + side])
      best = scores.argmax(axis=1)
      value = np.take_along_axis(scores, best[:, None], axis=1)[:, 0]
      better = (rows[block] < 0) | (value > values[block])
      rows[block] = np.where(better, left + best, rows[block])
      values[block] = np.where(better, value, values[block])
  return Nearest(rows, values)
