"""Sums up what balancing did to the queries, for the page and for --json."""

from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

_ROWS = 20  # queries of the head, and of the tail, that are listed
_POINTS = 200  # of a curve


def summarise_queries(table: pa.Table, per_query: int) -> dict[str, Any]:
  """Returns the head, the tail and the curves of the queries.

  Args:
    table: query, origin, matches (pairs that match before balancing),
      matches_kept (of the pairs that are kept), chosen (pairs that it chose).
    per_query: pairs that a query may choose.
  Returns:
    `total`, `matched` and `frequent` (over `per_query` pairs) queries; by
    origin, `origins`; `head` and `tail`, the matched queries with the most and
    the fewest pairs; `curves`, by rank from the most frequent on; `sums`, of
    the counts from the rarest on.
  """
  before = table.column('matches').to_numpy()
  chosen = table.column('chosen').to_numpy()
  order = np.argsort(-before, kind='stable')
  matched = int((before > 0).sum())
  return {
    'total': table.num_rows,
    'matched': matched,
    'frequent': int((before > per_query).sum()),
    'per_query': per_query,
    'origins': _count_origins(table),
    'head': _rows(table, order[: min(_ROWS, matched)]),
    'tail': _rows(table, order[max(0, matched - _ROWS) : matched]),
    'curves': _curves(before[order[:matched]], chosen[order[:matched]]),
    'sums': _sums(before[order[:matched]], chosen[order[:matched]]),
  }


def _count_origins(table: pa.Table) -> dict[str, int]:
  column = table.column('origin').cast(pa.string())
  counts = {x['values']: x['counts'] for x in column.value_counts().to_pylist()}
  return dict(sorted(counts.items()))


def _rows(table: pa.Table, indices: np.ndarray) -> list[dict[str, Any]]:
  names = ['query', 'origin', 'matches', 'matches_kept', 'chosen']
  return table.select(names).take(pa.array(indices)).to_pylist()


def _curves(
  before: Int[np.ndarray, ' M'], chosen: Int[np.ndarray, ' M']
) -> dict[str, list[int]]:
  """Returns points of the counts by rank, and of their sums from the tail."""
  count = len(before)
  if not count:
    return {'rank': [], 'before': [], 'chosen': []}
  ranks = np.unique(np.geomspace(1, count, _POINTS).round().astype(int))
  return {
    'rank': ranks.tolist(),
    'before': before[ranks - 1].tolist(),
    'chosen': chosen[ranks - 1].tolist(),
  }


def _sums(
  before: Int[np.ndarray, ' M'], chosen: Int[np.ndarray, ' M']
) -> dict[str, list[float]]:
  """Returns points of the cumulative counts, from the tail to the head."""
  count = len(before)
  ends = np.unique(np.linspace(0, count, _POINTS).round().astype(int))
  return {
    'fraction': [x / max(count, 1) for x in ends.tolist()],
    **{
      name: np.concatenate([[0], np.cumsum(values[::-1])])[ends].tolist()
      for name, values in (('before', before), ('chosen', chosen))
    },
  }
