"""The image tower: its tokens, its pooling, its depth."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.config import VisionTransformerConfig
from clip_jax.models.image_tokens import image_tokens
from clip_jax.models.layers import LayerNorm
from clip_jax.models.vision_transformer import VisionTransformer
from tests.golden_models import HUGGING_FACE, OPEN_CLIP, load_golden

VITS = [name for name in OPEN_CLIP if 'resnet' not in name]
SMALL = VisionTransformerConfig(
  image_size=16, patch_size=8, width=24, depth=3, heads=3
)
IMAGES = jax.random.normal(jax.random.key(9), (2, 16, 16, 3))


@functools.cache
def initialised(config):
  tower = VisionTransformer(config)
  return tower, jax.jit(tower.init)(jax.random.key(0), IMAGES)


@pytest.mark.parametrize('name', VITS)
def test_patch_tokens_of_each_block_equal_open_clips(name):
  golden = load_golden(name)
  for layer in range(golden.config.image.depth):
    [tokens] = golden.apply(golden.images, (layer,), method='image_tokens')
    patches = np.s_[:, 1:]  # theirs has the class token first
    golden.check(f'image_block_{layer}', tokens, patches)


@pytest.mark.parametrize('name', HUGGING_FACE)
def test_patch_tokens_of_each_block_equal_those_of_transformers(name):
  golden = load_golden(name)
  patches = np.s_[:, golden.config.image.class_token * 1 :]
  for layer in range(golden.config.image.depth):
    [tokens] = golden.apply(golden.images, (layer,), method='image_tokens')
    golden.check(f'vision_hidden_state_{layer + 1}', tokens, patches)


@pytest.mark.parametrize('name', VITS)
def test_last_tokens_equal_open_clips(name):
  golden = load_golden(name)
  last = golden.config.image.depth - 1
  [tokens] = golden.apply(golden.images, (last,), method='image_tokens')
  if not golden.config.image.norm_after_pooling:
    ln_post = {'params': golden.variables['params']['image']['ln_post']}
    tokens = LayerNorm().apply(ln_post, tokens)
  golden.check('image_patch_tokens', tokens)


def test_average_pooling_has_no_class_token():
  config = dataclasses.replace(SMALL, pooling='average', class_token=False)
  tower, variables = initialised(config)
  assert 'class_embedding' not in variables['params']
  assert variables['params']['position_embedding'].shape == (4, 24)
  assert tower.apply(variables, IMAGES).shape == (2, 24)


def test_average_pooling_does_not_see_the_order_of_patches():
  config = dataclasses.replace(SMALL, pooling='average', class_token=False)
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


def test_average_pooling_leaves_a_class_token_out():
  config = dataclasses.replace(SMALL, pooling='average')
  tower, variables = initialised(config)
  assert variables['params']['position_embedding'].shape == (5, 24)
  last = (SMALL.depth - 1,)
  [tokens] = tower.apply(variables, IMAGES, last, method=image_tokens)
  ln_post = {'params': variables['params']['ln_post']}
  np.testing.assert_allclose(
    tower.apply(variables, IMAGES),
    LayerNorm().apply(ln_post, tokens).mean(1),
    atol=1e-5,
  )


def test_pixels_beyond_the_last_whole_patch_are_not_seen():
  config = dataclasses.replace(SMALL, image_size=20)
  tower, variables = initialised(config)
  larger = jnp.pad(IMAGES, ((0, 0), (0, 4), (0, 4), (0, 0)))
  other = larger.at[:, 16:].set(3.0)
  np.testing.assert_array_equal(
    tower.apply(variables, larger), tower.apply(variables, other)
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
