"""The train step: one update, the same on every mesh."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from clip_jax.data.preprocessing import Preprocessing
from clip_jax.models.dual_encoder import DualEncoder, normalize
from clip_jax.objectives.objective import make_objective
from clip_jax.objectives.registry import make_loss
from clip_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh
from clip_jax.training.optimizer import make_optimizer
from clip_jax.training.program import jit_train_step
from clip_jax.training.state import TrainState, abstract_state, sharded_init
from clip_jax.training.step import make_train_step
from tests.tiny import TINY, tiny_config

# data, fsdp, tensor, slices: each alone, and each pair of them together
MESHES = [
  (8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 8, 1), (1, 1, 1, 8),
  (2, 2, 2, 1), (1, 2, 2, 2), (2, 1, 1, 4), (1, 2, 4, 1),
]  # fmt: skip
ONE = (1, 1, 1, 1)


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


def compiled_step(
  mesh,
  form='all_gather',
  config=TINY,
  objective='softmax',
  how=None,
  rule=None,
  **options,
):
  """The jitted step, and the state before it.

  Args:
    how: options of the step.
    rule: fields of `optimizer` that differ.
    options: of the module.
  """
  module = DualEncoder(config, **options)
  fields = {**tiny_config().optimizer, **(rule or {})}
  optimizer, schedule = make_optimizer(100, **fields)
  loss = make_loss(objective, form, mesh, BATCH_AXES, 2)
  step = jit_train_step(
    make_train_step(
      module,
      optimizer,
      schedule,
      make_objective(loss),
      Preprocessing(image_size=config.image.image_size),
      mesh,
      **(how or {}),
    ),
    abstract_state(module, optimizer, mesh),
    mesh,
  )
  return step, sharded_init(module, optimizer, mesh, seed=3)


def mesh_of(sizes):
  return make_mesh(*sizes, jax.devices()[: math.prod(sizes)])


@functools.cache
def compiled_once(sizes, form, config):
  """The step on a mesh, and a copy of its first state."""
  step, state = compiled_step(mesh_of(sizes), form, config)
  return step, jax.device_get(state), jax.tree.map(lambda x: x.sharding, state)


def on_its_first_state(sizes=ONE, form='all_gather', config=TINY):
  """That step, with a state of one's own to donate."""
  step, state, placed = compiled_once(sizes, form, config)
  return step, jax.device_put(jax.tree.map(np.array, state), placed)


def run_steps(sizes, steps, form='all_gather', initial_logit_scale=None):
  """Losses and the state after `steps` updates on a mesh."""
  step, state = on_its_first_state(sizes, form)
  if initial_logit_scale is not None:
    params = dict(state.params)
    params['logit_scale'] = jnp.full_like(
      params['logit_scale'], math.log(initial_logit_scale)
    )
    state = TrainState(state.step, params, state.opt_state)
  history = []
  for i in range(steps):
    batch = jax.device_put(tiny_batch(i), batch_sharding(mesh_of(sizes)))
    state, metrics = step(state, batch)
    history.append({name: float(x) for name, x in metrics.items()})
  return history, state


@functools.cache
def on_one_device():
  return run_steps(ONE, 4)[0]


@pytest.mark.slow
@pytest.mark.parametrize('sizes', MESHES)
def test_a_mesh_trains_as_one_device(sizes):
  history, _ = run_steps(sizes, 4)
  for ours, theirs in zip(history, on_one_device(), strict=True):
    for name in theirs:
      np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-4)


@pytest.mark.slow
def test_a_step_that_is_compiled_as_usual_trains_as_the_tests_do():
  """Runs compile with XLA's defaults, tests with the flags of conftest.py."""
  usual = {
    'xla_backend_optimization_level': 3,
    'xla_cpu_use_fusion_emitters': True,
  }
  step, state = on_its_first_state((2, 2, 2, 1))
  sharding = batch_sharding(mesh_of((2, 2, 2, 1)))
  step = step.lower(state, jax.device_put(tiny_batch(0), sharding)).compile(
    usual
  )
  for i, expected in enumerate(on_one_device()):
    state, metrics = step(state, jax.device_put(tiny_batch(i), sharding))
    for name, value in expected.items():
      np.testing.assert_allclose(metrics[name], value, rtol=2e-4)


@pytest.mark.slow
def test_the_dense_form_trains_as_the_gathered_one():
  dense, _ = run_steps((8, 1, 1, 1), 4, form='dense')
  for ours, theirs in zip(dense, on_one_device(), strict=True):
    np.testing.assert_allclose(ours['loss'], theirs['loss'], rtol=1e-4)


def test_the_loss_falls_on_a_batch_that_is_seen_again():
  step, state = on_its_first_state()
  losses = []
  for _ in range(30):
    state, metrics = step(state, tiny_batch(0))
    losses.append(float(metrics['loss']))
  assert losses[-1] < 0.5 * losses[0]
  assert int(state.step) == 30


def test_the_temperature_is_clipped_at_100():
  history, state = run_steps(ONE, 1, initial_logit_scale=120.0)
  np.testing.assert_allclose(history[0]['logit_scale'], 120.0, rtol=1e-5)
  np.testing.assert_allclose(
    np.exp(state.params['logit_scale']), 100.0, rtol=1e-5
  )


def test_metrics_are_those_of_the_run_directory():
  history, _ = run_steps(ONE, 1)
  assert set(history[0]) == {
    'loss', 'learning_rate', 'logit_scale', 'grad_norm', 'skipped',
  }  # fmt: skip
  np.testing.assert_allclose(history[0]['logit_scale'], 1 / 0.07, rtol=1e-5)


def test_the_first_loss_is_the_formula_of_figure_3():
  history, _ = run_steps(ONE, 1)
  _, state = run_steps(ONE, 0)
  batch = jax.tree.map(jnp.asarray, tiny_batch(0))
  preprocessing = Preprocessing(image_size=16)
  images = normalize(batch['image'], preprocessing.mean, preprocessing.std)
  image_features, text_features, scale, _ = DualEncoder(TINY).apply(
    {'params': state.params}, images, batch['tokens']
  )
  logits = np.float64(scale) * np.float64(image_features @ text_features.T)
  rows, columns = (
    scipy.special.log_softmax(logits, axis)[np.diag_indices(16)].mean()
    for axis in (1, 0)
  )
  assert history[0]['loss'] == pytest.approx(-(rows + columns) / 2, rel=1e-4)


def test_the_donated_state_is_used_up():
  step, state = on_its_first_state()
  step(state, tiny_batch(0))
  assert state.params['text_projection']['kernel'].is_deleted()


def test_a_jaxlib_without_the_compilers_option_trains_as_well(monkeypatch):
  unknown = {'xla_cpu_nosuch_option': True}
  monkeypatch.setattr('clip_jax.training.program.CPU_OPTIONS', unknown)
  step, state = compiled_step(mesh_of(ONE))
  _, metrics = step(state, tiny_batch(0))
  assert math.isfinite(metrics['loss'])


def test_the_temperature_may_be_free():
  step, state = compiled_step(mesh_of(ONE), how={'max_logit_scale': 0.0})
  high = dict(state.params, logit_scale=jnp.float32(math.log(120.0)))
  state, _ = step(state.replace(params=high), tiny_batch(0))
  assert np.exp(state.params['logit_scale']) > 110.0


def snapshot(state):
  return jax.tree.map(np.array, state)


def assert_equal(ours, theirs):
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_a_step_that_is_not_finite_changes_nothing_but_the_counters():
  step, state = on_its_first_state()
  state, _ = step(state, tiny_batch(0))
  before = snapshot(state)
  broken = dict(state.params)
  broken['text_projection'] = jax.tree.map(
    lambda x: jnp.full_like(x, jnp.nan), broken['text_projection']
  )
  moments = snapshot(state.opt_state)
  state, metrics = step(state.replace(params=broken), tiny_batch(1))
  assert metrics['skipped'] == 1.0
  assert np.isnan(metrics['loss'])
  assert int(state.step) == int(before.step) + 1
  assert_equal(state.params['image'], before.params['image'])
  floats = lambda tree: [  # noqa: E731
    x for x in jax.tree.leaves(tree) if np.issubdtype(x.dtype, np.floating)
  ]
  assert_equal(floats(state.opt_state), floats(moments))
  # The same step with sound parameters moves on as if nothing had been.
  sound = state.replace(params=jax.tree.map(jnp.asarray, before.params))
  state, metrics = step(sound, tiny_batch(1))
  assert metrics['skipped'] == 0.0
  assert np.isfinite(metrics['loss'])
  assert not np.array_equal(
    state.params['logit_scale'], before.params['logit_scale']
  )


@pytest.mark.slow
def test_patches_are_left_out_of_training_by_seed_and_step():
  histories = []
  for seed in (0, 0, 1):
    how = {'seed': seed, 'patch_dropout': 0.5}
    step, state = compiled_step(mesh_of(ONE), how=how)
    losses = []
    for _ in range(2):
      state, metrics = step(state, tiny_batch(0))
      losses.append(float(metrics['loss']))
    histories.append(losses)
  assert histories[0] == histories[1]
  assert histories[0] != histories[2]
