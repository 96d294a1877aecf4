"""The sharding table covers every parameter, once."""

import contextlib
import dataclasses
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax.models import presets
from clip_jax.models.config import LoRAConfig
from clip_jax.models.counting import abstract_variables
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.models.self_distillation import SelfDistilledEncoder
from clip_jax.parallel import partitioning
from clip_jax.parallel.mesh import make_mesh
from clip_jax.training.optimizer import make_optimizer
from clip_jax.trees import path_name
from tests.tiny import (
  TINY,
  TINY_BAG,
  TINY_CAPTIONER,
  TINY_COCA,
  TINY_PREFIXED,
  TINY_RESNET,
  tiny_config,
)


def abstract_params(model):
  return abstract_variables(model)['params']


@pytest.mark.parametrize('preset', presets.PRESETS)
def test_every_array_has_one_row_of_its_rank(preset):
  model = presets.resolve(preset)
  variables = abstract_variables(model)
  assert ('batch_stats' in variables) == preset.startswith('RN')
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    spec = partitioning.rule_for(path_name(path))
    assert len(spec) <= leaf.ndim


@pytest.mark.parametrize(
  'model', [TINY_COCA, TINY_CAPTIONER, TINY_PREFIXED, TINY_BAG]
)
def test_every_array_of_a_decoder_has_one_row_of_its_rank(model):
  params = abstract_params(model)['decoder']
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    spec = partitioning.rule_for(f'decoder/{path_name(path)}')
    assert len(spec) <= leaf.ndim
  placed = partitioning.shardings({'decoder': params}, make_mesh(2, 2, 2))
  logits = placed['decoder']['logits']['kernel']
  assert logits.spec == P('fsdp', 'tensor')


def state_with_a_teacher():
  """The parameters of heads, and a teacher's arrays."""
  module = SelfDistilledEncoder(TINY)
  images, tokens = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 8), jnp.int32)

  def init():
    params = module.init(jax.random.key(0), images, tokens)['params']
    return {'params': params, 'teacher': module.first_teacher(params)}

  return jax.eval_shape(init)


def test_every_array_of_a_teacher_has_one_row_of_its_rank():
  state = state_with_a_teacher()
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    assert len(partitioning.rule_for(path_name(path))) <= leaf.ndim
  placed = partitioning.shardings(state, make_mesh(2, 2, 2))
  teacher = placed['teacher']['params']
  assert teacher['image'] == placed['params']['image']
  head = teacher['self_distillation']['patch_head']
  assert head['prototypes'].spec == P('fsdp', 'tensor')
  assert placed['teacher']['centre']['patch_head'].spec == P('tensor')


def test_each_row_is_somebodys():
  """A row that no published shape needs would never be looked at again."""
  shapes = [
    presets.resolve(name) for name in ('RN50', 'ViT-B/32', 'ViT-B-16-SigLIP')
  ]
  adapted = dataclasses.replace(TINY, lora=LoRAConfig(rank=8, alpha=8.0))
  names = {
    path_name(path)
    for model in (*shapes, TINY_CAPTIONER, TINY_PREFIXED, TINY_BAG, adapted)
    for path, _ in jax.tree_util.tree_leaves_with_path(
      abstract_variables(model)
    )
  }
  muon, _ = make_optimizer(10, **{**tiny_config().optimizer, 'name': 'muon'})
  moments = jax.eval_shape(muon.init, abstract_params(TINY))
  names |= {
    path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(moments)
  }
  names |= {
    path_name(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(state_with_a_teacher())
  }
  for end, _ in partitioning.RULES:
    assert any(re.search(rf'(^|/){end}$', name) for name in names), end


def test_a_resnet_is_split_over_fsdp_and_tensor():
  placed = partitioning.shardings(
    abstract_variables(presets.resolve('RN50')), make_mesh(2, 2, 2)
  )
  image = placed['params']['image']
  kernel = image['stage4_2']['conv2']['kernel']
  assert kernel.spec == P(None, None, None, 'fsdp')
  pool = image['attention_pool']['kernel']
  assert pool.spec == P('fsdp', None, 'tensor', None)
  stats = jax.tree.leaves(placed['batch_stats'])
  assert stats
  assert all(sharding.is_fully_replicated for sharding in stats)


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


@pytest.mark.parametrize('model', [TINY, TINY_RESNET], ids=['vit', 'resnet'])
def test_activations_of_the_residual_stream_are_split_as_the_batch(model):
  mesh = make_mesh(2, 2, 2, devices=jax.devices()[:8])
  size, length = model.image.image_size, model.text.context_length
  arguments = (
    abstract_variables(model),
    jax.ShapeDtypeStruct((8, size, size, 3), jnp.float32),
    jax.ShapeDtypeStruct((8, length), jnp.int32),
  )

  def constraints(context):
    def apply(variables, images, tokens):
      with context:
        return DualEncoder(model).apply(variables, images, tokens)

    text = jax.jit(apply).lower(*arguments).as_text()
    return re.findall(r'sdy.sharding_constraint \S+ <@mesh, \[(\{.*?\}),', text)

  assert constraints(contextlib.nullcontext()) == []
  split = constraints(partitioning.activations_like_batch(mesh))
  # Of each part of a tower one at least: what enters, attention, and a block.
  assert len(split) >= 8
  assert set(split) == {'{"slice", "data", "fsdp"}'}
