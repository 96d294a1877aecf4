"""Frozen parameters: the same bits, no moments, no gradient, no backward pass.

Two tables are trained: a locked image tower, and one with its last block free.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.parallel.mesh import batch_sharding
from clip_jax.planning import hlo
from clip_jax.planning.costs import operations
from clip_jax.training.frozen_parameters import Partition
from clip_jax.training.gradients import AllTrained
from clip_jax.training.optimizer import make_optimizer
from clip_jax.trees import flat
from tests.tiny import TINY, TINY_RESNET, tiny_config
from tests.training.test_step import (
  ONE,
  compiled_step,
  mesh_of,
  tiny_batch,
  tiny_module_and_params,
)

LOCKED = (('image', 0.0), ('*', 1.0))
LAST_FREE = (('image/transformer/blocks[-1:]', 1.0), *LOCKED)
DEEP = dataclasses.replace(
  TINY,
  image=dataclasses.replace(TINY.image, depth=4),
  text=dataclasses.replace(TINY.text, depth=4),
)


def trained(groups, sizes=ONE, steps=2, **options):
  """Parameters before and after some steps, and the last metrics."""
  mesh = mesh_of(sizes)
  step, state = compiled_step(mesh, rule={'groups': groups}, **options)
  before = jax.tree.map(np.array, state.params)
  metrics = {}
  size = options.get('config', TINY).image.image_size
  for i in range(steps):
    batch = jax.device_put(tiny_batch(i, size), batch_sharding(mesh))
    state, metrics = step(state, batch)
  return before, state, {name: float(x) for name, x in metrics.items()}


@functools.cache
def on_one_device(groups):
  return trained(groups)


def is_frozen(name, groups):
  """Which layers of a parameter (or whether it) must stay, by hand."""
  if not name.startswith('image/'):
    return False
  if groups == LAST_FREE and '/blocks/' in name:
    return np.array([True, False])
  return True


def assert_only_free_ones_moved(before, state, groups):
  after = flat(state.params)
  for name, old in flat(before).items():
    frozen, new = is_frozen(name, groups), np.asarray(after[name])
    if np.ndim(frozen):
      np.testing.assert_array_equal(new[frozen], old[frozen], err_msg=name)
      assert not np.array_equal(new[~frozen], old[~frozen]), name
    elif frozen:
      np.testing.assert_array_equal(new, old, err_msg=name)
    else:
      assert not np.array_equal(new, old), name


@pytest.mark.parametrize('groups', [LOCKED, LAST_FREE])
def test_what_is_frozen_keeps_its_bits_and_has_no_moments(groups):
  before, state, _ = on_one_device(groups)
  assert_only_free_ones_moved(before, state, groups)
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
  sizes = 0
  for name, leaf in flat(before).items():
    free = ~np.asarray(is_frozen(name, groups))
    sizes += leaf.size * free.mean() - (leaf.ndim == 0)
  assert sum(x.size for x in moments) == 2 * sizes
  names = [name for name in flat(state.opt_state) if '/image/' in name]
  assert all('/blocks/' in name for name in names)
  assert len(names) == (0 if groups == LOCKED else 2 * 12)


@pytest.mark.slow
@pytest.mark.parametrize('groups', [LOCKED, LAST_FREE])
@pytest.mark.parametrize('sizes', [(2, 2, 2, 1), (1, 8, 1, 1)])
def test_a_mesh_trains_as_one_device(groups, sizes):
  _, one, metrics = on_one_device(groups)
  before, state, on_mesh = trained(groups, sizes)
  assert_only_free_ones_moved(before, state, groups)
  for name, value in metrics.items():
    np.testing.assert_allclose(on_mesh[name], value, rtol=2e-4)
  for name, leaf in flat(state.params).items():
    np.testing.assert_allclose(leaf, flat(one.params)[name], atol=2e-4)
  for leaf in jax.tree.leaves(state.opt_state):
    if math.prod(leaf.shape) > 4096 and sizes[1] == 8:
      shard = leaf.sharding.shard_shape(leaf.shape)
      assert math.prod(shard) == leaf.size // 8


@pytest.mark.slow
@pytest.mark.parametrize(
  'options', [{'how': {'micro_batch': 4}}, {'remat': 'full'}]
)
@pytest.mark.parametrize('groups', [LOCKED, LAST_FREE])
def test_micro_batches_and_remat_change_nothing(groups, options):
  _, expected, metrics = on_one_device(groups)
  before, state, others = trained(groups, **options)
  assert_only_free_ones_moved(before, state, groups)
  assert others['loss'] == pytest.approx(metrics['loss'], rel=1e-4)
  for name, leaf in flat(state.params).items():
    np.testing.assert_allclose(leaf, flat(expected.params)[name], atol=2e-4)


@pytest.mark.slow
def test_the_gradient_of_what_is_free_is_that_of_a_whole_model():
  """One SGD-like step: with b1 = b2 = 0 the update is the gradient's sign."""
  rule = {'b1': 0.0, 'b2': 0.0, 'eps': 1.0, 'weight_decay': 0.0}
  results = []
  for groups in (LAST_FREE, ()):
    step, state = compiled_step(mesh_of(ONE), rule={**rule, 'groups': groups})
    state, _ = step(state, tiny_batch(0))
    results.append(flat(state.params))
  ours, whole = results
  for name, leaf in ours.items():
    free = ~np.asarray(is_frozen(name, LAST_FREE))
    new, expected = np.asarray(leaf), np.asarray(whole[name])
    if free.ndim:
      new, expected = new[free], expected[free]
    if free.any():
      np.testing.assert_allclose(new, expected, atol=1e-6, err_msg=name)


@functools.cache
def flops(groups, **how):
  """Of a step's matrix products, loops counted as often as they run."""
  mesh = mesh_of(ONE)
  step, state = compiled_step(
    mesh, config=DEEP, rule={'groups': groups}, how=how
  )
  text = step.lower(state, tiny_batch(0)).compile().as_text()
  return sum(o.flops * o.times for o in operations(hlo.parse(text)))


def forward_flops(method, *arrays):
  module = DualEncoder(DEEP)
  variables = jax.eval_shape(
    module.init,
    jax.random.key(0),
    jnp.zeros((1, 16, 16, 3)),
    jnp.zeros((1, 8), jnp.int32),
  )
  run = jax.jit(functools.partial(module.apply, method=method))
  text = run.lower(variables, *arrays).compile().as_text()
  return sum(o.flops * o.times for o in operations(hlo.parse(text)))


@pytest.mark.slow
def test_a_locked_tower_runs_without_a_backward_pass():
  """The backward pass of a product takes two products."""
  image = forward_flops('encode_image', jnp.zeros((16, 16, 16, 3)))
  saved = flops(()) - flops(LOCKED)
  assert saved == pytest.approx(2 * image, rel=0.06)
  free = flops((('image/transformer/blocks[-1:]', 1.0), *LOCKED))
  assert flops(LOCKED) < free < flops(LOCKED) + 0.8 * image


@pytest.mark.slow
def test_micro_batches_run_a_locked_tower_twice_at_most():
  image = forward_flops('encode_image', jnp.zeros((16, 16, 16, 3)))
  saved = flops((), micro_batch=4) - flops(LOCKED, micro_batch=4)
  assert saved > 1.9 * image


@pytest.mark.slow
def test_a_locked_resnet_keeps_its_running_statistics():
  step, state = compiled_step(
    mesh_of(ONE), config=TINY_RESNET, rule={'groups': LOCKED}
  )
  before = jax.tree.map(np.array, (state.params, state.batch_stats))
  state, _ = step(state, tiny_batch(0, 32))
  jax.tree.map(
    np.testing.assert_array_equal,
    (state.params['image'], state.batch_stats),
    (before[0]['image'], before[1]),
  )
  kernel = state.params['text_projection']['kernel']
  assert not np.array_equal(kernel, before[0]['text_projection']['kernel'])


@pytest.mark.slow
def test_a_frozen_temperature_is_not_clipped_either():
  groups = (('logit_scale', 0.0), ('*', 1.0))
  step, state = compiled_step(mesh_of(ONE), rule={'groups': groups})
  high = dict(state.params, logit_scale=jnp.float32(math.log(120.0)))
  state, _ = step(state.replace(params=high), tiny_batch(0))
  assert float(state.params['logit_scale']) == np.float32(math.log(120.0))


# The functions on trees.

PARAMS = {
  'a': jnp.arange(3.0),
  'blocks': {'w': jnp.arange(10.0).reshape(5, 2), 'b': jnp.arange(5.0)},
}


def partition(w, b, a=True):
  return Partition(
    {
      'a': np.array(a),
      'blocks/w': np.array(w, bool),
      'blocks/b': np.array(b, bool),
    }
  )


def test_free_layers_are_taken_out_and_put_back():
  layers = partition([0, 1, 0, 0, 1], [0, 0, 0, 0, 0], a=False)
  part = layers.trained(PARAMS)
  np.testing.assert_array_equal(part['blocks']['w'], [[2, 3], [8, 9]])
  assert set(flat(part)) == {'blocks/w'}
  assert set(flat(layers.averaged(PARAMS))) == {'blocks/w'}
  new = layers.updated(PARAMS, jax.tree.map(lambda x: -x, part))
  np.testing.assert_array_equal(
    new['blocks']['w'], [[0, 1], [-2, -3], [4, 5], [6, 7], [-8, -9]]
  )
  np.testing.assert_array_equal(new['blocks']['b'], PARAMS['blocks']['b'])


def test_stacks_are_split_where_any_of_their_arrays_changes():
  layers = partition([0, 0, 1, 1, 1], [0, 1, 1, 1, 0])
  joined = layers.joined(PARAMS, layers.trained(PARAMS))
  assert [len(stack['b']) for stack in joined['blocks']] == [1, 1, 2, 1]
  for name in 'wb':
    np.testing.assert_array_equal(
      jnp.concatenate([stack[name] for stack in joined['blocks']]),
      PARAMS['blocks'][name],
    )


def test_arrays_that_are_frozen_in_all_layers_need_no_other_stack():
  layers = partition([0, 0, 0, 0, 0], [1, 1, 1, 1, 1])
  joined = layers.joined(PARAMS, layers.trained(PARAMS))
  jax.tree.map(np.testing.assert_array_equal, joined, PARAMS)


def test_where_nothing_is_frozen_all_is_passed_on():
  fields = {**tiny_config().optimizer, 'layer_decay': 0.5}
  _, params = tiny_module_and_params()
  layers = make_optimizer(100, **fields)[0].partition(params)
  assert layers.trained(params) is params
  assert layers.averaged(params) is params
  other = {'other': 1}
  assert layers.joined(params, other) is other
  assert layers.updated(params, other) is other


@pytest.mark.parametrize(
  ('groups', 'image'),
  [
    (LOCKED, 1),
    (LAST_FREE, 0.5),
    ((('image/ln_post', 1.0), *LOCKED), 1),
    ((('image/patch_embedding', 1.0), *LAST_FREE), 0),
    ((('image/transformer/blocks[:1]', 1.0), *LOCKED), 0),
  ],
)
def test_blocks_below_all_that_is_trained_have_no_backward_pass(groups, image):
  _, params = tiny_module_and_params()
  fields = {**tiny_config().optimizer, 'groups': groups}
  layers = make_optimizer(100, **fields)[0].partition(params)
  shares = layers.without_gradient()
  assert shares.get('image', 0) == image
  assert shares.get('text', 0) == 0
  assert AllTrained().without_gradient() == {}


def test_the_moments_of_a_stack_have_its_trained_layers():
  _, params = tiny_module_and_params()
  fields = {**tiny_config().optimizer, 'groups': LAST_FREE}
  state = make_optimizer(100, **fields)[0].init(params)
  shapes = {
    leaf.shape[0] for name, leaf in flat(state).items() if '/image/' in name
  }
  assert shapes == {1}
