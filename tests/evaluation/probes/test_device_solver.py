"""What lies where while the device solves."""

import jax
import numpy as np
import pytest

from clip_jax.evaluation.probes import device_solver
from clip_jax.evaluation.probes.device_solver import shard_rows, solve


@pytest.mark.parametrize('rows', [3, 16, 21])
def test_rows_are_spread_in_order_and_filled_up_with_zeros(rows):
  values = np.random.default_rng(0).normal(size=(rows, 5)).astype(np.float32)
  array = shard_rows(values)
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
  array = shard_rows(values, jax.devices()[:1])
  assert array.shape == (3, 2)
  np.testing.assert_array_equal(np.asarray(array), values)


def test_no_device_has_the_logits_of_all_rows(monkeypatch):
  rows, width, classes = 8000, 16, 100
  features = np.random.default_rng(0).normal(size=(rows, width))
  programs = []
  original = device_solver._minimise

  def compiled(*args, **options):
    programs.append(original.lower(*args, **options).compile())
    return programs[-1](*args)

  monkeypatch.setattr(device_solver, '_minimise', compiled)
  solve(
    shard_rows(features.astype(np.float32)),
    np.arange(rows) % classes,
    np.zeros((width, classes)),
    np.zeros(classes),
    C=1.0,
    max_iterations=1,
    tolerance=0.0,
  )
  (program,) = programs
  logits = 4 * rows * classes  # bytes; on one device a step has several
  assert program.memory_analysis().temp_size_in_bytes < logits
