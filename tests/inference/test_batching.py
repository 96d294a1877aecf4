"""Batches of few sizes, prepared ahead, in order."""

import threading

import jax
import numpy as np
import pytest

from clip_jax.inference.batching import padded_size, run_in_batches
from clip_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize(
  ('count', 'batch_size', 'ways', 'size'),
  [
    (1, 64, 1, 1),
    (3, 64, 1, 4),
    (33, 64, 1, 64),
    (65, 100, 1, 100),
    (1, 64, 8, 8),
    (9, 64, 8, 16),
    (5, 10, 3, 6),
    (10, 10, 3, 12),
  ],
)
def test_padded_size(count, batch_size, ways, size):
  assert padded_size(count, batch_size, ways) == size


def rows(items):
  return np.array([[item, -item] for item in items], np.float32)


@pytest.mark.parametrize('count', [0, 1, 7, 50])
@pytest.mark.parametrize('devices', [None, 8])
def test_order_and_number_are_kept(count, devices):
  mesh = devices and make_mesh(devices=jax.devices()[:devices])
  parts = list(
    run_in_batches(
      jax.jit(lambda x: 2 * x), range(count), rows, batch_size=16, mesh=mesh
    )
  )
  expected = 2 * rows(range(count))
  np.testing.assert_array_equal(np.concatenate([np.empty((0, 2)), *parts]),
                                expected.reshape(-1, 2))  # fmt: skip


def test_an_endless_input_is_read_as_far_as_it_is_needed():
  read = []

  def items():
    for i in range(10**9):
      read.append(i)
      yield i

  stream = run_in_batches(jax.jit(lambda x: x), items(), rows, batch_size=4)
  np.testing.assert_array_equal(next(stream), rows(range(4)))
  assert len(read) <= 6 * 4
  stream.close()


def test_threads_end_with_an_error():
  def broken(items):
    raise ValueError('broken')

  with pytest.raises(ValueError, match='broken'):
    list(run_in_batches(jax.jit(lambda x: x), range(9), broken, batch_size=4))
  names = [thread.name for thread in threading.enumerate()]
  assert not any(name.startswith('prepare') for name in names)
