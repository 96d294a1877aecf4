"""The limits below which a query chooses pairs, and the numbers it draws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.data.curation import balance
from clip_jax.data.curation.hashing import draw, hash_texts


@given(
  st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), max_size=60),
  st.integers(1, 5),
)
def test_a_limit_leaves_the_cap_at_most_and_loses_none_but_equals(pairs, cap):
  queries = np.array([x for x, _ in pairs], np.int32)
  numbers = np.array([x for _, x in pairs], np.uint64)
  names, limits = balance.cap_limits(queries, numbers, cap)
  for name, limit in zip(names.tolist(), limits, strict=True):
    mine = np.sort(numbers[queries == name])
    below = int((mine < limit).sum())
    assert below <= cap
    if len(mine) <= cap or mine[cap - 1] != mine[cap]:
      assert below == min(cap, len(mine))


def test_candidates_are_enough_and_about_twice_as_many():
  counts = np.array([10, 100, 101, 300, 100_000, 0])
  limits = balance.candidate_limits(counts, 100)
  assert limits.tolist()[:4] == [0, 0, int(balance.ALL), limits.tolist()[3]]
  assert limits[5] == 0
  for query in (2, 3, 4):
    ids = np.arange(counts[query], dtype=np.uint64)
    name = hash_texts([f'query {query}'])
    numbers = draw(0, ids, np.repeat(name, len(ids)))
    candidates = int((numbers < limits[query]).sum())
    assert 101 <= candidates <= 400


def test_sampling_limits_are_probabilities():
  limits = balance.sampling_limits(np.array([5, 10, 20, 40]), 10)
  assert limits.tolist() == [2**64 - 1, 2**64 - 1, 2**63, 2**62]


def test_draws_are_even_and_depend_on_seed_id_and_query():
  ids = np.arange(100_000, dtype=np.uint64)
  one = np.repeat(hash_texts(['cat']), len(ids))
  numbers = draw(0, ids, one)
  assert len(np.unique(numbers)) == len(ids)
  assert (numbers / 2**64).mean() == pytest.approx(0.5, abs=0.005)
  bits = np.unpackbits(numbers.view(np.uint8)).reshape(-1, 64).mean(axis=0)
  np.testing.assert_allclose(bits, 0.5, atol=0.01)
  for other in (
    draw(1, ids, one),
    draw(0, ids, np.repeat(hash_texts(['dog']), len(ids))),
  ):
    corr = np.corrcoef(numbers.astype(float), other.astype(float))[0, 1]
    assert abs(corr) < 0.02
    assert not (numbers == other).any()
  assert int(draw(0, ids[:1], one[:1])[0]) == int(numbers[0])
