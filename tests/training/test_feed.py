"""Batches on the devices, and the clock of the loop."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.parallel.mesh import make_mesh
from clip_jax.training.feed import Feed


def batches(seconds=0.0):
  for i in range(100):
    time.sleep(seconds)
    yield {
      'image': np.full((16, 2, 2, 3), i, np.uint8),
      'tokens': np.full((16, 4), i, np.int32),
    }


def test_batches_arrive_in_order_split_over_the_batch_axes():
  feed = Feed(batches(), make_mesh(4, 2, 1))
  for i in range(5):
    batch = feed.next()
    feed.launched({'loss': jnp.float32(i)})
    np.testing.assert_array_equal(batch['tokens'], np.full((16, 4), i))
    assert batch['image'].dtype == jnp.uint8
    assert batch['image'].sharding.shard_shape((16, 2, 2, 3)) == (2, 2, 2, 3)


def test_numbers_are_the_last_steps_and_the_intervals():
  feed = Feed(batches(), make_mesh())
  for i in range(4):
    feed.next()
    feed.launched({'loss': jnp.float32(i), 'grad_norm': jnp.float32(2 * i)})
  numbers = feed.numbers()
  assert numbers['train/loss'] == 3.0
  assert numbers['train/grad_norm'] == 6.0
  assert numbers['train/examples_per_second'] > 0
  assert 0 <= numbers['train/input_wait_fraction'] <= 1


def test_a_slow_pipeline_shows_as_waiting():
  feed = Feed(batches(seconds=0.02), make_mesh())
  for _ in range(5):
    feed.next()
    feed.launched({'loss': jnp.float32(0)})
  assert feed.numbers()['train/input_wait_fraction'] > 0.5


def test_a_pause_is_not_training_time():
  feed = Feed(batches(), make_mesh(devices=jax.devices()[:1]))
  feed.next()
  feed.launched({'loss': jnp.float32(0)})
  feed.numbers()
  feed.next()
  feed.launched({'loss': jnp.float32(0)})
  with feed.paused():
    time.sleep(1.0)
  feed.next()
  feed.launched({'loss': jnp.float32(0)})
  # 32 examples within less than the pause.
  assert feed.numbers()['train/examples_per_second'] > 32
