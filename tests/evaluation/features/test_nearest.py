"""The nearest of each row, whatever the blocks, against plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.evaluation.features import nearest as module
from clip_jax.evaluation.features.nearest import (
  nearest_features,
  nearest_hashes,
)
from tests.evaluation.fakes import unit

HASHES = st.lists(st.integers(0, 2**64 - 1), max_size=20).map(
  lambda values: np.array(values, np.uint64)
)


@pytest.mark.parametrize('block', [1, 9, 2**22])
@given(HASHES, HASHES)
def test_the_nearest_hash_is_the_first_of_the_fewest_bits(block, test, train):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(module, '_BLOCK_PAIRS', block)
    found = nearest_hashes(test, train)
  for i, a in enumerate(test):
    bits = [(int(a) ^ int(b)).bit_count() for b in train]
    if not bits:
      assert found.rows[i] == -1 and np.isnan(found.values[i])
    else:
      assert found.values[i] == min(bits)
      assert found.rows[i] == bits.index(min(bits))


@given(HASHES, HASHES, st.integers(0, 64))
def test_the_nearest_are_within_reach_where_some_pair_is(test, train, reach):
  found = nearest_hashes(test, train)
  near = np.bitwise_count(test[:, None] ^ train[None]) <= reach
  within = np.flatnonzero(found.values <= reach)
  assert set(within.tolist()) == set(np.flatnonzero(near.any(axis=1)).tolist())


@pytest.mark.parametrize('block', [1, 9, 2**22])
def test_the_nearest_feature_has_the_greatest_cosine(monkeypatch, block):
  monkeypatch.setattr(module, '_BLOCK_PAIRS', block)
  rng = np.random.default_rng(0)
  train = unit(rng.normal(size=(31, 6)))
  test = unit(np.concatenate([rng.normal(size=(17, 6)), -train[4:6]]))
  test = np.concatenate([test, train[7:8]])
  found = nearest_features(test, train)
  cosines = test.astype(np.float64) @ train.T
  np.testing.assert_array_equal(found.rows, cosines.argmax(axis=1))
  np.testing.assert_allclose(found.values, cosines.max(axis=1), atol=1e-6)
  assert found.rows[-1] == 7
  assert found.values.max() <= 1.0


def test_a_distance_of_none_is_plain_zero():
  found = nearest_hashes(np.array([5], np.uint64), np.array([5], np.uint64))
  assert str(found.values[0]) == '0.0'


def test_nothing_is_nearest_to_no_training_picture():
  found = nearest_features(np.ones((2, 1), np.float32), np.ones((0, 1)))
  assert found.rows.tolist() == [-1, -1]
  assert np.isnan(found.values).all()
  assert nearest_features(np.ones((0, 1)), np.ones((2, 1))).rows.shape == (0,)
