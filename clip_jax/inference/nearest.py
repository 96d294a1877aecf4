"""The nearest rows of a table of embeddings: exact, by one matrix product."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from clip_jax.errors import FailureError
from clip_jax.inference.embeddings_reader import Chunk, EmbeddingsTable

_QUERIES = 256  # that one pass over the table answers


class Nearest(NamedTuple):
  """The K nearest rows of each of Q queries, the most similar first."""

  rows: Int64[np.ndarray, 'Q K']  # places in the table
  similarities: Float[np.ndarray, 'Q K']  # float32, cosine


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
  blocks = [
    _search_block(table, queries[i : i + _QUERIES], kind, top)
    for i in range(0, len(queries), _QUERIES)
  ]
  return Nearest(
    np.concatenate([block.rows for block in blocks]),
    np.concatenate([block.similarities for block in blocks]),
  )


def _search_block(
  table: EmbeddingsTable,
  queries: Float[np.ndarray, 'Q E'],
  kind: str | None,
  top: int,
) -> Nearest:
  best = Nearest(
    np.empty((len(queries), 0), np.int64),
    np.empty((len(queries), 0), np.float32),
  )
  for chunk in table.chunks(kind):
    similarities = queries @ chunk.vectors.T  # Q n
    if not np.isfinite(similarities).all():
      check_finite(table, chunk)
      raise FailureError('a query has a feature that is not a finite number.')
    rows = np.broadcast_to(chunk.rows, similarities.shape)
    best = _best(
      np.concatenate([best.rows, rows], axis=1),
      np.concatenate([best.similarities, similarities], axis=1),
      top,
    )
  return best


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


def _best(
  rows: Int64[np.ndarray, 'Q n'],
  similarities: Float[np.ndarray, 'Q n'],
  top: int,
) -> Nearest:
  """The top of each query's candidates, which are in the table's order."""
  keep = min(top, rows.shape[1])
  picked = np.empty((len(rows), keep), np.int64)
  for i, row in enumerate(similarities):
    # All that reach the last place, since which of the equals a partition
    # takes is not defined; then a stable sort of these few.
    least = np.partition(row, -keep)[-keep]
    reach = np.flatnonzero(row >= least)
    picked[i] = reach[np.argsort(-row[reach], kind='stable')[:keep]]
  return Nearest(
    np.take_along_axis(rows, picked, 1),
    np.take_along_axis(similarities, picked, 1),
  )
