"""The train step: one update, the same on every mesh."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.data.images import Preprocessing
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.objectives.contrastive import make_softmax_loss
from clip_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh
from clip_jax.training.optimizer import make_optimizer
from clip_jax.training.state import TrainState, abstract_state, sharded_init
from clip_jax.training.step import jit_train_step, make_train_step
from tests.tiny import TINY, tiny_config

MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (2, 1, 4)]


def tiny_module_and_params():
  module = DualEncoder(TINY)
  params = jax.jit(module.init)(
    jax.random.key(0), jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 8), jnp.int32)
  )['params']
  return module, params


def tiny_batch(seed, image_size=16):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(2, 64, (16, 8), dtype=np.int32)
  tokens[:, -1] = 1
  shape = (16, image_size, image_size, 3)
  images = rng.integers(0, 256, shape, dtype=np.uint8)
  return {'image': images, 'tokens': tokens}


def compiled_step(mesh, form='all_gather', config=TINY, **options):
  """The jitted step, and the state before it; options are the module's."""
  module = DualEncoder(config, **options)
  optimizer, schedule = make_optimizer(100, **tiny_config().optimizer)
  loss_fn = make_softmax_loss(form, mesh, BATCH_AXES)
  step = jit_train_step(
    make_train_step(
      module,
      optimizer,
      schedule,
      loss_fn,
      Preprocessing(image_size=config.image.image_size),
    ),
    abstract_state(module, optimizer, mesh),
    mesh,
  )
  return step, sharded_init(module, optimizer, mesh, seed=3)


def run_steps(sizes, steps, form='all_gather', initial_logit_scale=None):
  """Losses and the state after `steps` updates on a mesh."""
  mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
  step, state = compiled_step(mesh, form)
  if initial_logit_scale is not None:
    params = dict(state.params)
    params['logit_scale'] = jnp.full_like(
      params['logit_scale'], math.log(initial_logit_scale)
    )
    state = TrainState(state.step, params, state.opt_state)
  history = []
  for i in range(steps):
    batch = jax.device_put(tiny_batch(i), batch_sharding(mesh))
    state, metrics = step(state, batch)
    history.append({name: float(x) for name, x in metrics.items()})
  return history, state


@pytest.mark.slow
@pytest.mark.parametrize('sizes', MESHES[1:])
def test_every_mesh_trains_as_one_device(sizes):
  expected, _ = run_steps((1, 1, 1), 4)
  history, _ = run_steps(sizes, 4)
  for ours, theirs in zip(history, expected, strict=True):
    for name in theirs:
      np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-4)


@pytest.mark.slow
def test_the_dense_form_trains_as_the_gathered_one():
  dense, _ = run_steps((8, 1, 1), 3, form='dense')
  gathered, _ = run_steps((8, 1, 1), 3)
  for ours, theirs in zip(dense, gathered, strict=True):
    np.testing.assert_allclose(ours['loss'], theirs['loss'], rtol=1e-4)


@pytest.mark.parametrize('sizes', MESHES)
def test_the_first_state_is_the_same_on_every_mesh(sizes):
  _, expected = run_steps((1, 1, 1), 0)
  _, state = run_steps(sizes, 0)
  jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_parameters_live_where_the_table_says():
  _, state = run_steps((1, 8, 1), 1)
  kernel = state.params['image']['transformer']['blocks']['mlp']['up']
  kernel = kernel['kernel']
  assert kernel.sharding.shard_shape(kernel.shape) == (2, 32 // 8, 128)


def test_the_loss_falls_on_a_batch_that_is_seen_again():
  step, state = compiled_step(make_mesh(devices=jax.devices()[:1]))
  losses = []
  for _ in range(30):
    state, metrics = step(state, tiny_batch(0))
    losses.append(float(metrics['loss']))
  assert losses[-1] < 0.5 * losses[0]
  assert int(state.step) == 30


def test_the_temperature_is_clipped_at_100():
  history, state = run_steps((1, 1, 1), 1, initial_logit_scale=120.0)
  np.testing.assert_allclose(history[0]['logit_scale'], 120.0, rtol=1e-5)
  np.testing.assert_allclose(
    np.exp(state.params['logit_scale']), 100.0, rtol=1e-5
  )


def test_metrics_are_those_of_the_run_directory():
  history, _ = run_steps((1, 1, 1), 1)
  assert set(history[0]) == {
    'loss', 'learning_rate', 'logit_scale', 'grad_norm',
  }  # fmt: skip
  np.testing.assert_allclose(history[0]['logit_scale'], 1 / 0.07, rtol=1e-5)
  assert abs(history[0]['loss'] - math.log(16)) < 3.0


def test_the_donated_state_is_used_up():
  step, state = compiled_step(make_mesh(devices=jax.devices()[:1]))
  step(state, tiny_batch(0))
  assert state.params['text_projection']['kernel'].is_deleted()
