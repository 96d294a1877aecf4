"""The nearest rows of each query: exact, by matrix products and one top k."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

_QUERIES, _ROWS = 1024, 8192  # compared at once: 32 MB of similarities
# Up to here k passes over a block are faster than one partition of it.
_PASSES = 64


class Nearest(NamedTuple):
  """The K nearest rows of each of Q queries, the most similar first."""

  rows: Int64[np.ndarray, 'Q K']  # their numbers in the table or array
  similarities: Float[np.ndarray, 'Q K']  # float32, cosine


def top_k(scores: Float[np.ndarray, 'N C'], k: int) -> Int64[np.ndarray, 'N K']:
  """Returns the columns of the k largest numbers of each row, largest first.

  Args:
    scores: finite.
    k: K is the smaller of this and C.
  Returns:
    Equal numbers are in the order of their columns.
  """
  k = min(k, scores.shape[1])
  if k > _PASSES:
    return _top_by_partition(scores, k)
  rest = scores if k == 1 else scores.copy()
  columns = np.empty((len(scores), k), np.int64)
  for rank in range(k):
    columns[:, rank] = rest.argmax(axis=1)
    if rank + 1 < k:
      np.put_along_axis(rest, columns[:, [rank]], -np.inf, axis=1)
  return columns


def _top_by_partition(
  scores: Float[np.ndarray, 'N C'], k: int
) -> Int64[np.ndarray, 'N K']:
  """Returns what `top_k` does, in a time that hardly grows with k."""
  least = np.partition(scores, -k, axis=1)[:, -k, None]
  above, equal = scores > least, scores == least
  wanted = k - above.sum(axis=1, keepdims=True)
  if (equal.sum(axis=1, keepdims=True) != wanted).any():
    # More columns are equal than there is room for: the first of them stay.
    equal &= equal.cumsum(axis=1, dtype=np.int32) <= wanted
  columns = np.nonzero(above | equal)[1].reshape(-1, k)
  values = np.take_along_axis(scores, columns, axis=1)
  order = np.argsort(-values, axis=1, kind='stable')
  return np.take_along_axis(columns, order, axis=1)


def nearest_rows(
  queries: Float[np.ndarray, 'Q E'], rows: Float[np.ndarray, 'M E'], *, k: int
) -> Nearest:
  """Compares every row of an array with every query.

  Memory grows as Q + M, not as their product.

  Args:
    queries, rows: of unit length.
    k: K is the smaller of this and M.
  """

  def blocks(queries):
    for start in range(0, len(rows), _ROWS):
      block = rows[start : start + _ROWS]
      yield np.arange(start, start + len(block)), queries @ block.T

  return join_nearest(
    [
      nearest_in_blocks(len(some), blocks(some), k=k)
      for some in split_queries(queries, _QUERIES)
    ]
  )


def nearest_in_blocks(
  queries: int,
  blocks: Iterable[tuple[Int64[np.ndarray, ' n'], Float[np.ndarray, 'Q n']]],
  *,
  k: int,
) -> Nearest:
  """Returns the nearest rows from similarities that come block by block.

  Args:
    queries: Q, how many there are.
    blocks: the numbers of n rows, and how similar each query is to them.
    k: K is the smaller of this and the number of rows.
  Returns:
    Equal similarities are in the order of the blocks.
  """
  rows = np.empty((queries, 0), np.int64)
  values = np.empty((queries, 0), np.float32)
  for numbers, similarities in blocks:
    some = np.arange(queries)
    if values.shape[1] == k > 1:
      # Only queries for which the block has a nearer row need to be merged; to
      # find them takes as long as to find one nearest row of each.
      some = np.flatnonzero(similarities.max(axis=1) > values[:, -1])
      similarities = similarities[some]
    columns = top_k(similarities, k)
    new = np.take_along_axis(similarities, columns, axis=1)
    # Rows of earlier blocks come first, and so stay before their equals.
    both = np.concatenate([values[some], new], axis=1)
    candidates = np.concatenate([rows[some], numbers[columns]], axis=1)
    order = top_k(both, k)
    candidates = np.take_along_axis(candidates, order, axis=1)
    both = np.take_along_axis(both, order, axis=1)
    if len(some) == queries:
      rows, values = candidates, both
    else:
      rows[some], values[some] = candidates, both
  return Nearest(rows, values)


def split_queries(
  queries: Float[np.ndarray, 'Q E'], count: int
) -> list[Float[np.ndarray, 'n E']]:
  """Returns the queries in parts of at most `count`; of none, an empty part."""
  return np.split(queries, range(count, len(queries), count))


def join_nearest(parts: list[Nearest]) -> Nearest:
  """Returns the nearest rows of all queries, from those of some at a time."""
  return Nearest(*map(np.concatenate, zip(*parts, strict=True)))
