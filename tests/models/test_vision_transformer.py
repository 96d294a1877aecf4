"""The image tower: its tokens, its pooling, its depth."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.config import VisionTransformerConfig
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.models.layers import LayerNorm
from clip_jax.models.vision_transformer import VisionTransformer
from tests.models.open_clip_golden import TOLERANCES, load_golden

SMALL = VisionTransformerConfig(
  image_size=16, patch_size=8, width=24, depth=3, heads=3
)
IMAGES = jax.random.normal(jax.random.key(9), (2, 16, 16, 3))


@pytest.fixture(scope='module', params=list(TOLERANCES))
def golden(request):
  return load_golden(request.param)


@functools.cache
def initialised(config):
  tower = VisionTransformer(config)
  return tower, jax.jit(tower.init)(jax.random.key(0), IMAGES)


def test_patch_tokens_of_each_block_equal_open_clips(golden):
  module, variables = DualEncoder(golden.config), {'params': golden.params}
  for layer in range(golden.config.image.depth):
    name = f'image_block_{layer}'
    tokens = module.apply(
      variables, golden.images, layer, method='image_tokens'
    )
    np.testing.assert_allclose(
      tokens,
      golden.outputs[name][:, 1:],  # theirs has the class token first
      rtol=0,
      atol=TOLERANCES[golden.name][name],
    )


def test_normed_last_tokens_equal_open_clips(golden):
  tokens = DualEncoder(golden.config).apply(
    {'params': golden.params},
    golden.images,
    golden.config.image.depth - 1,
    method='image_tokens',
  )
  ln_post = {'params': golden.params['image']['ln_post']}
  golden.check('image_patch_tokens', LayerNorm().apply(ln_post, tokens))


def test_average_pooling_has_no_class_token():
  config = dataclasses.replace(SMALL, pooling='average')
  tower, variables = initialised(config)
  assert 'class_embedding' not in variables['params']
  assert variables['params']['position_embedding'].shape == (4, 24)
  assert tower.apply(variables, IMAGES).shape == (2, 24)


def test_average_pooling_does_not_see_the_order_of_patches():
  config = dataclasses.replace(SMALL, pooling='average')
  tower, variables = initialised(config)
  params = dict(variables['params'])
  params['position_embedding'] = jnp.zeros_like(params['position_embedding'])
  left, right = IMAGES[:, :, :8], IMAGES[:, :, 8:]
  swapped = jnp.concatenate([right, left], axis=2)
  np.testing.assert_allclose(
    tower.apply({'params': params}, IMAGES),
    tower.apply({'params': params}, swapped),
    atol=1e-5,
  )


def test_without_the_extra_norm_there_are_no_parameters_for_it():
  _, variables = initialised(dataclasses.replace(SMALL, pre_norm=False))
  assert 'ln_pre' not in variables['params']


@pytest.mark.parametrize('depth', [1, 5])
def test_the_scanned_stack_has_one_slice_a_block(depth):
  _, variables = initialised(dataclasses.replace(SMALL, depth=depth))
  blocks = variables['params']['transformer']['blocks']
  assert {leaf.shape[0] for leaf in jax.tree.leaves(blocks)} == {depth}
  kernel = np.asarray(blocks['mlp']['up']['kernel'])
  assert len({layer.tobytes() for layer in kernel}) == depth  # own values each


def test_the_program_does_not_grow_with_depth():
  def operations(depth):
    tower = VisionTransformer(dataclasses.replace(SMALL, depth=depth))
    shapes = jax.eval_shape(tower.init, jax.random.key(0), IMAGES)
    return str(jax.make_jaxpr(tower.apply)(shapes, IMAGES)).count('\n')

  assert operations(2) == operations(12)
