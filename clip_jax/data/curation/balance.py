"""Balances pairs over queries: at most so many pairs for each query.

"We also class balance the results by including up to 20,000 (image, text) pairs
per query" (section 2.2). A text has several queries; as in the paper and in
MetaCLIP (arXiv 2309.16671, algorithm 1), each query chooses among all pairs
that match it, alone, and the result is the union: a pair is kept once at least
one of its queries chooses it, and it counts for those that do. Of a query's
pairs thus at most 20,000 are there for its sake; others, which rarer queries
chose, may hold its words, too ("photo" is in a pair that "okapi" chose).

  cap     a query chooses exactly min(its pairs, 20,000), at random
  sample  a query chooses each of its pairs with probability
          min(1, 20,000 / its pairs), as MetaCLIP does

Each choice is a comparison: a pair's random number for the query, a function of
(seed, id, query), must be below the query's limit. Limits are numbers of 64
bits, all ones where a query chooses all of its pairs.
"""

import numpy as np
from jaxtyping import Int, UInt64

METHODS = ('cap', 'sample')
ALL = np.uint64(2**64 - 1)  # above every number that is drawn


def sampling_limits(
  counts: Int[np.ndarray, ' Q'], per_query: int
) -> UInt64[np.ndarray, ' Q']:
  """Returns the limits of sampling with probability per_query / counts."""
  limits = np.full(len(counts), ALL)
  head = np.flatnonzero(counts > per_query)
  for query in head.tolist():  # exactly, in integers
    limits[query] = per_query * 2**64 // int(counts[query])
  return limits


def candidate_limits(
  counts: Int[np.ndarray, ' Q'], per_query: int
) -> UInt64[np.ndarray, ' Q']:
  """Returns limits below which every query surely has `per_query` pairs.

  About twice as many are below, so that the rest need not be looked at; of
  queries with few pairs, and of none to choose from (0 pairs), it is 0 or ALL.
  That fewer than `per_query` of random numbers are below has a probability of
  less than 1e-25.
  """
  limits = sampling_limits(counts, 2 * per_query + 64)
  limits[counts <= per_query] = 0
  return limits


def cap_limits(
  queries: Int[np.ndarray, ' M'],
  drawn: UInt64[np.ndarray, ' M'],
  per_query: int,
) -> tuple[Int[np.ndarray, ' Q'], UInt64[np.ndarray, ' Q']]:
  """Returns the limits below which queries have `per_query` numbers.

  Args:
    queries, drawn: of each candidate pair, its query and its number.
  Returns:
    The different queries, and the limit of each. Equal numbers, which are of
    pairs of one id, are all above it or all below, so that the number of pairs
    is never more than `per_query`.
  """
  order = np.lexsort((drawn, queries))
  queries, drawn = queries[order], drawn[order]
  names, starts, counts = np.unique(
    queries, return_index=True, return_counts=True
  )
  over = counts > per_query
  limits = np.full(len(names), ALL)
  limits[over] = drawn[starts[over] + per_query]
  return names, limits
