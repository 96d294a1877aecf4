"""What lies where while the device solves."""

import jax
import numpy as np
import pytest

from clip_jax.evaluation.device_solver import spread


@pytest.mark.parametrize('rows', [3, 16, 21])
def test_rows_are_spread_in_order_and_filled_up_with_zeros(rows):
  values = np.random.default_rng(0).normal(size=(rows, 5)).astype(np.float32)
  array = spread(values)
  each = -(-rows // 8)
  assert array.shape == (8 * each, 5)
  assert array.dtype == np.float32
  shards = array.addressable_shards
  assert [shard.data.shape for shard in shards] == [(each, 5)] * 8
  assert [shard.device for shard in shards] == jax.devices()
  np.testing.assert_array_equal(np.asarray(array)[:rows], values)
  assert not np.asarray(array)[rows:].any()


def test_one_device_has_all_rows():
  values = np.arange(6.0).reshape(3, 2)
  array = spread(values, jax.devices()[:1])
  assert array.shape == (3, 2)
  np.testing.assert_array_equal(np.asarray(array), values)
