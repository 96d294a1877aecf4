"""The sharding table covers every parameter, once."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax.models import presets
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.parallel import partitioning
from clip_jax.parallel.mesh import make_mesh


def abstract_params(model):
  size = model.image.image_size
  return jax.eval_shape(
    DualEncoder(model).init,
    jax.random.key(0),
    jnp.zeros((1, size, size, 3)),
    jnp.zeros((1, model.text.context_length), jnp.int32),
  )['params']


@pytest.mark.parametrize('preset', presets.PRESETS)
def test_every_parameter_has_one_row_of_its_rank(preset):
  params = abstract_params(presets.resolve(preset))
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    spec = partitioning.rule_for(partitioning.path_name(path))
    assert len(spec) <= leaf.ndim


def test_an_unknown_parameter_is_an_error():
  with pytest.raises(KeyError, match='image/mystery/kernel matches 0 rows'):
    partitioning.rule_for('image/mystery/kernel')


def test_large_arrays_are_split_over_fsdp_and_tensor():
  mesh = make_mesh(2, 2, 2)
  placed = partitioning.shardings(
    abstract_params(presets.resolve('ViT-B/32')), mesh
  )
  blocks = placed['text']['transformer']['blocks']
  assert blocks['mlp']['up']['kernel'].spec == P(None, 'fsdp', 'tensor')
  assert placed['logit_scale'].spec == P()


def test_moments_are_sharded_as_their_parameters():
  mesh = make_mesh(2, 2, 2)
  params = abstract_params(presets.resolve('ViT-B/32'))
  moments = jax.eval_shape(optax.scale_by_adam().init, params)
  placed = partitioning.shardings(moments, mesh)
  expected = partitioning.shardings(params, mesh)
  assert placed.mu == expected
  assert placed.nu == expected


def test_an_axis_that_does_not_divide_stays_whole():
  mesh = make_mesh(1, 1, 8)
  params = abstract_params(presets.resolve('ViT-B/32'))  # 12 image heads
  placed = partitioning.shardings(params, mesh)
  kernel = placed['image']['transformer']['blocks']['attention']['qkv']
  assert kernel['kernel'].spec == P(None, 'fsdp', None, None, None)
