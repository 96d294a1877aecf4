"""Batches are sent ahead, steps run ahead, and the speed is measured."""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.parallel.mesh import make_mesh
from clip_jax.training.prefetch import Prefetcher
from tests.waiting import Clock


@pytest.fixture
def clock(monkeypatch):
  """The prefetcher's clock."""
  clock = Clock()
  monkeypatch.setattr(time, 'perf_counter', clock)
  return clock


def batches(count=100, wait=lambda: None):
  for i in range(count):
    wait()
    yield {
      'image': np.full((16, 2, 2, 3), i, np.uint8),
      'tokens': np.full((16, 4), i, np.int32),
    }


def run(prefetcher, steps, log=()):
  """Steps whose loss is their number."""
  for step in steps:
    prefetcher.next()
    prefetcher.submit(step, {'loss': jnp.float32(step)}, log=step in log)


def test_batches_arrive_in_order_split_over_the_batch_axes():
  prefetcher = Prefetcher(batches(), make_mesh(4, 2, 1), 16, lambda done: None)
  for i in range(5):
    batch = prefetcher.next()
    prefetcher.submit(i + 1, {'loss': jnp.float32(i)})
    np.testing.assert_array_equal(batch['tokens'], np.full((16, 4), i))
    assert batch['image'].dtype == jnp.uint8
    assert batch['image'].sharding.shard_shape((16, 2, 2, 3)) == (2, 2, 2, 3)


def test_a_step_is_reported_two_steps_later_and_all_of_them_when_drained():
  done = []
  prefetcher = Prefetcher(batches(), make_mesh(), 16, done.append)
  run(prefetcher, range(1, 5))
  assert [finished.step for finished in done] == [1, 2]
  prefetcher.drain()
  assert [finished.step for finished in done] == [1, 2, 3, 4]
  assert [finished.metrics['loss'] for finished in done] == [1, 2, 3, 4]


def test_the_next_batch_is_asked_for_while_a_step_runs():
  taken = []

  def watched():
    for batch in batches():
      taken.append(batch)
      yield batch

  prefetcher = Prefetcher(watched(), make_mesh(), 16, lambda done: None)
  for step in range(1, 4):
    prefetcher.next()
    assert len(taken) == step
    prefetcher.submit(step, {'loss': jnp.float32(0)})
    assert len(taken) == step + 1


def test_nothing_is_asked_for_after_the_last_batch():
  prefetcher = Prefetcher(
    itertools.islice(batches(), 3), make_mesh(), 16, lambda d: None
  )
  run(prefetcher, range(1, 4))
  with pytest.raises(StopIteration):
    prefetcher.next()


def test_only_logged_steps_have_numbers():
  done = []
  prefetcher = Prefetcher(batches(), make_mesh(), 16, done.append)
  run(prefetcher, range(1, 6), log=(2, 4))
  prefetcher.drain()
  logged = {x.step: x.logged for x in done if x.logged is not None}
  assert list(logged) == [2, 4]
  assert logged[4]['train/loss'] == 4.0
  assert logged[4]['train/examples_per_second'] > 0
  assert 0 <= logged[4]['train/input_wait_fraction'] <= 1


def test_a_slow_pipeline_shows_as_waiting_and_in_the_speed(clock):
  done = []
  slow = batches(wait=lambda: clock.pass_by(0.05))
  prefetcher = Prefetcher(slow, make_mesh(), 16, done.append)
  run(prefetcher, range(1, 11), log=(5, 10))
  prefetcher.drain()
  numbers = done[-1].logged
  assert numbers['train/input_wait_fraction'] == pytest.approx(1)
  assert numbers['train/examples_per_second'] == pytest.approx(16 / 0.05)


def test_a_pause_is_not_training_time(clock):
  done = []
  mesh = make_mesh(devices=jax.devices()[:1])
  slow = batches(wait=lambda: clock.pass_by(0.05))
  prefetcher = Prefetcher(slow, mesh, 16, done.append)
  run(prefetcher, (1, 2), log=(1,))
  with prefetcher.paused():
    assert [finished.step for finished in done] == [1, 2]
    clock.pass_by(100)
  run(prefetcher, (3,), log=(3,))
  prefetcher.drain()
  speed = done[-1].logged['train/examples_per_second']
  assert speed == pytest.approx(16 / 0.05)
