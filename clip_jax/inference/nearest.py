"""The nearest rows of each query: exact, by matrix products and one top k."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from clip_jax.errors import FailureError
from clip_jax.inference.embeddings_reader import Chunk, EmbeddingsTable

_QUERIES = 256  # that are compared with a block of a table together
# Of an array: 32 MB of similarities.
_ARRAY_QUERIES, _ARRAY_ROWS = 1024, 8192


class Nearest(NamedTuple):
  """The K nearest rows of each of Q queries, the most similar first."""

  rows: Int64[np.ndarray, 'Q K']  # places in the table or array
  similarities: Float[np.ndarray, 'Q K']  # float32, cosine


def top_k(
  similarities: Float[np.ndarray, 'Q n'], k: int
) -> Int64[np.ndarray, 'Q K']:
  """Returns the columns of the k largest numbers of each row, largest first.

  Args:
    similarities: without NaN.
    k: K is the smaller of this and n.
  Returns:
    Equal numbers are in the order of their columns.
  """
  k = min(k, similarities.shape[1])
  if not k:
    return np.empty((len(similarities), 0), np.int64)
  least = np.partition(similarities, -k, axis=1)[:, -k, None]
  above, equal = similarities > least, similarities == least
  wanted = k - above.sum(axis=1, keepdims=True)
  if (equal.sum(axis=1, keepdims=True) != wanted).any():
    # More reach the last place than there is room for: the first of them.
    equal &= equal.cumsum(axis=1, dtype=np.int32) <= wanted
  columns = np.nonzero(above | equal)[1].reshape(-1, k)
  values = np.take_along_axis(similarities, columns, axis=1)
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
  starts = range(0, len(rows), _ARRAY_ROWS)

  def blocks(queries):
    for start in starts:
      block = rows[start : start + _ARRAY_ROWS]
      numbers = np.arange(start, start + len(block))
      yield numbers, queries @ block.T

  return _for_all(queries, _ARRAY_QUERIES, k, blocks)


def search_table(
  table: EmbeddingsTable,
  queries: Float[np.ndarray, 'Q E'],
  *,
  kind: str | None = None,
  top: int = 10,
) -> Nearest:
  """Compares every row with every query.

  Memory does not grow with the table: a few megabytes of it are read at a
  time, and `top` rows a query are kept.

  Args:
    table: rows of unit length.
    queries: of unit length, from the model that made the table.
    kind: 'image' or 'text' compares rows of that kind only.
    top: rows a query at most; K is less where the table has fewer.
  Returns:
    Equal similarities are in the order of the table; those of equal rows
    may differ in the last bit.
  """

  def blocks(queries):
    for chunk in table.chunks(kind):
      similarities = queries @ chunk.vectors.T
      if not np.isfinite(similarities).all():
        check_finite(table, chunk)
        raise FailureError('a query has a feature that is not a finite number.')
      yield chunk.rows, similarities

  return _for_all(queries, _QUERIES, top, blocks)


# Some queries to blocks: the numbers of n rows, and how similar they are [Q n].
Blocks = Callable[
  [Float[np.ndarray, 'Q E']], Iterable[tuple[np.ndarray, np.ndarray]]
]


def _for_all(
  queries: Float[np.ndarray, 'Q E'], step: int, k: int, blocks: Blocks
) -> Nearest:
  """Returns the nearest of all queries, `step` of them at a time."""
  parts = [
    _nearest(len(some), k, blocks(some))
    for some in np.split(queries, range(step, len(queries), step))
  ]
  return Nearest(
    np.concatenate([part.rows for part in parts]),
    np.concatenate([part.similarities for part in parts]),
  )


def _nearest(
  queries: int, k: int, blocks: Iterable[tuple[np.ndarray, np.ndarray]]
) -> Nearest:
  """Returns the nearest of the queries, from similarities block by block."""
  rows = np.empty((queries, 0), np.int64)
  values = np.empty((queries, 0), np.float32)
  for numbers, similarities in blocks:
    some = np.arange(queries)
    if values.shape[1] == k:
      # Most blocks have nothing better for most queries.
      some = np.flatnonzero(similarities.max(axis=1) > values[:, -1])
    columns = top_k(similarities[some], k)
    new = np.take_along_axis(similarities[some], columns, axis=1)
    # Those of earlier blocks come first, and so stay before their equals.
    both = np.concatenate([values[some], new], axis=1)
    named = np.concatenate([rows[some], numbers[columns]], axis=1)
    order = top_k(both, k)
    named = np.take_along_axis(named, order, axis=1)
    both = np.take_along_axis(both, order, axis=1)
    if len(some) == queries:
      rows, values = named, both
    else:
      rows[some], values[some] = named, both
  return Nearest(rows, values)


def check_finite(table: EmbeddingsTable, chunk: Chunk) -> None:
  """Refuses rows that no similarity can be computed of.

  Raises:
    FailureError: one has a feature that is no number, or vastly large.
  """
  # What is finite may be squared, and summed, in unit vectors.
  wrong = ~(np.abs(chunk.vectors) < 1e18).all(axis=1)
  if wrong.any():
    row = int(chunk.rows[wrong.argmax()])
    name = table.entries([row])[row].id
    raise FailureError(
      f'{table.path}, row {row:,} ({name}): a feature is not a finite number; '
      'embed again.'
    )
