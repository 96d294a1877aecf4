"""The state of a run: the same values on every mesh, each in its place."""

import functools
import math

import jax
import numpy as np
import pytest

from clip_jax.models import presets
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.parallel.mesh import make_mesh
from clip_jax.training.optimizer import make_optimizer
from clip_jax.training.state import (
  abstract_state,
  init_state,
  sharded_init,
  variables_of,
)
from clip_jax.trees import flat
from tests.tiny import TINY, tiny_config

ONE = (1, 1, 1, 1)


def optimizer():
  return make_optimizer(100, **tiny_config().optimizer)[0]


@functools.cache
def first_state(sizes):
  """Returns the state before any step, on a mesh of these sizes."""
  mesh = make_mesh(*sizes, jax.devices()[: math.prod(sizes)])
  return sharded_init(DualEncoder(TINY), optimizer(), mesh, seed=3)


@pytest.mark.parametrize('sizes', [(8, 1, 1, 1), (1, 2, 4, 1), (2, 1, 1, 4)])
def test_the_first_state_is_the_same_on_every_mesh(sizes):
  jax.tree.map(
    np.testing.assert_array_equal, first_state(sizes), first_state(ONE)
  )


def test_the_first_state_is_at_step_0_and_depends_on_the_seed():
  state = first_state(ONE)
  assert state.step.dtype == np.int32 and int(state.step) == 0
  other = jax.jit(lambda: init_state(DualEncoder(TINY), optimizer(), 4))()
  kernels = [x.params['text']['token_embedding'] for x in (state, other)]
  first, second = (jax.tree.leaves(x)[0] for x in kernels)
  assert not np.array_equal(first, second)


def test_parameters_are_sharded_as_the_table_of_rules_says():
  state = first_state((1, 8, 1, 1))
  kernel = state.params['image']['transformer']['blocks']['mlp']['up']
  kernel = kernel['kernel']
  assert kernel.sharding.shard_shape(kernel.shape) == (2, 32 // 8, 128)


def test_the_abstract_state_has_the_shapes_dtypes_and_shardings_of_the_state():
  sizes = (1, 2, 4, 1)
  abstract = abstract_state(DualEncoder(TINY), optimizer(), make_mesh(*sizes))
  state = first_state(sizes)
  assert jax.tree.structure(abstract) == jax.tree.structure(state)
  for shape, leaf in zip(
    jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True
  ):
    assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)
    assert shape.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


@pytest.mark.parametrize('name', ['lion', 'muon'])
def test_the_moments_of_other_rules_lie_where_their_parameters_do(name):
  fields = {**tiny_config().optimizer, 'name': name}
  rule = make_optimizer(100, **fields)[0]
  state = abstract_state(DualEncoder(TINY), rule, make_mesh(2, 2, 2))
  params = flat(state.params)
  momentum = 0
  for path, leaf in flat(state.opt_state).items():
    _, is_moment, parameter = path.rpartition('/mu/')
    if is_moment:
      assert leaf.shape == params[parameter].shape
      assert leaf.sharding == params[parameter].sharding
      momentum += leaf.size
  assert momentum == sum(leaf.size for leaf in params.values())


def test_variables_have_batch_statistics_only_where_there_are_some():
  assert variables_of({'a': 1}, {}) == {'params': {'a': 1}}
  assert variables_of({'a': 1}, {'b': 2}) == {
    'params': {'a': 1}, 'batch_stats': {'b': 2},
  }  # fmt: skip


@pytest.mark.slow
def test_fsdp_leaves_an_eighth_of_the_state_on_each_device():
  config = presets.resolve('ViT-B/32')
  state = abstract_state(DualEncoder(config), optimizer(), make_mesh(1, 8, 1))
  leaves = jax.tree.leaves(state)
  whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
  own = sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in leaves
  )
  assert own < 1.02 * whole / 8  # positions and biases are whole
