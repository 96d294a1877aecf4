"""The nearest of each row, whatever the blocks, against plain loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.evaluation.near_duplicates import detectors
from clip_jax.evaluation.near_duplicates.detectors import (
  nearest_features,
  nearest_hashes,
)
from tests.evaluation.fakes import unit

HASHES = st.lists(st.integers(0, 2**64 - 1), max_size=20).map(
  lambda values: np.array(values, np.uint64)
)


@pytest.mark.parametrize('block', [1, 3, 2048])
@given(HASHES, HASHES)
def test_the_nearest_hash_is_the_first_of_the_fewest_bits(block, test, train):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(detectors, '_BLOCK', block)
    rows, values = nearest_hashes(test, train)
  for i, a in enumerate(test):
    bits = [(int(a) ^ int(b)).bit_count() for b in train]
    if not bits:
      assert rows[i] == -1 and np.isnan(values[i])
    else:
      assert values[i] == min(bits)
      assert rows[i] == bits.index(min(bits))


@given(HASHES, HASHES, st.integers(0, 64))
def test_the_nearest_are_within_reach_where_some_pair_is(test, train, reach):
  _, values = nearest_hashes(test, train)
  near = np.bitwise_count(test[:, None] ^ train[None]) <= reach
  within = np.flatnonzero(values <= reach)
  assert set(within.tolist()) == set(np.flatnonzero(near.any(axis=1)).tolist())


@pytest.mark.parametrize('block', [1, 3, 2048])
def test_the_nearest_feature_has_the_greatest_cosine(monkeypatch, block):
  monkeypatch.setattr(detectors, '_BLOCK', block)
  rng = np.random.default_rng(0)
  train = unit(rng.normal(size=(31, 6)))
  test = unit(np.concatenate([rng.normal(size=(17, 6)), -train[4:6]]))
  test = np.concatenate([test, train[7:8]])
  rows, values = nearest_features(test, train)
  cosines = test.astype(np.float64) @ train.T
  np.testing.assert_array_equal(rows, cosines.argmax(axis=1))
  np.testing.assert_allclose(values, cosines.max(axis=1), atol=1e-6)
  assert rows[-1] == 7
  assert values.max() <= 1.0


def test_a_distance_of_none_is_plain_zero():
  _, values = nearest_hashes(np.array([5], np.uint64), np.array([5], np.uint64))
  assert str(values[0]) == '0.0'


def test_nothing_is_nearest_to_no_training_image():
  rows, values = nearest_features(np.ones((2, 1), np.float32), np.ones((0, 1)))
  assert rows.tolist() == [-1, -1]
  assert np.isnan(values).all()
  assert nearest_features(np.ones((0, 1)), np.ones((2, 1)))[0].shape == (0,)
