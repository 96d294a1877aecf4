"""NaFlex: images of any size in one batch, which pads them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.data.images import Patches
from clip_jax.models.config import VisionTransformerConfig
from clip_jax.models.image_tokens import image_tokens
from clip_jax.models.native_aspect import resize_positions
from clip_jax.models.vision_transformer import (
  VisionTransformer,
  split_into_patches,
)
from clip_jax.parallel.mesh import batch_sharding, make_mesh

SMALL = VisionTransformerConfig(
  image_size=16, patch_size=8, width=24, depth=2, heads=3
)
# Rows and columns of the patches of each image.
GRIDS = ((2, 2), (1, 4), (3, 2), (6, 1), (2, 3), (4, 1), (1, 6), (2, 2))
POOLINGS = {
  'class_token': SMALL,
  'average': dataclasses.replace(SMALL, pooling='average', class_token=False),
  'attention': dataclasses.replace(
    SMALL, pooling='attention', class_token=False, norm_after_pooling=True
  ),
}


def native_images(length):
  """Images of `GRIDS`, padded by noise."""
  rng = np.random.default_rng(5)
  pixels = rng.normal(size=(len(GRIDS), length, 8, 8, 3))
  return Patches(jnp.asarray(pixels), jnp.asarray(np.int32(GRIDS)))


@functools.cache
def noisy_tower(pooling):
  """A tower of float64 whose every parameter has noise."""
  config = POOLINGS[pooling]
  tower = VisionTransformer(config, jnp.float64)
  init = jax.jit(tower.init)
  variables = init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  rng = np.random.default_rng(3)
  return tower, jax.tree.map(
    lambda x: jnp.asarray(x + 0.1 * rng.normal(size=x.shape), jnp.float64),
    variables,
  )


def loss_and_gradients(tower, variables, images, targets):
  return _loss_and_gradients(tower)(variables, images, targets)


@functools.cache
def _loss_and_gradients(tower):
  def loss(variables, images, targets):
    return jnp.sum(tower.apply(variables, images) * targets)

  return jax.jit(jax.value_and_grad(loss))


def targets():
  return jnp.asarray(np.random.default_rng(4).normal(size=(8, 24)))


@functools.cache
def one_by_one(pooling):
  """What each image gives alone, without padding."""
  tower, variables = noisy_tower(pooling)
  images, alone = native_images(9), []
  for i, (rows, columns) in enumerate(GRIDS):
    pixels = images.pixels[i : i + 1, : rows * columns]
    one = Patches(pixels, images.grid[i : i + 1])
    alone.append(
      loss_and_gradients(tower, variables, one, targets()[i : i + 1])
    )
  return alone


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


@pytest.mark.parametrize('pooling', POOLINGS)
@pytest.mark.parametrize('devices', [1, 8])
def test_mixed_sizes_equal_the_images_one_by_one(pooling, devices, float64):
  """Values and gradients; each image alone is not padded at all."""
  tower, variables = noisy_tower(pooling)
  split = batch_sharding(make_mesh(devices=jax.devices()[:devices]))
  batch = jax.device_put((native_images(9), targets()), split)
  total, gradients = loss_and_gradients(tower, variables, *batch)
  alone = one_by_one(pooling)
  np.testing.assert_allclose(total, sum(x for x, _ in alone), rtol=1e-12)
  summed = jax.tree.map(lambda *x: sum(x), *(grads for _, grads in alone))
  jax.tree.map(
    lambda ours, theirs: np.testing.assert_allclose(
      ours, theirs, rtol=0, atol=1e-11
    ),
    gradients,
    summed,
  )


@pytest.mark.parametrize('pooling', POOLINGS)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), value=st.sampled_from([0, 1e9, np.nan]))
def test_what_is_padding_changes_no_bit(pooling, seed, value):
  apply, variables = compiled(pooling)
  images = native_images(9)
  other = np.array(images.pixels)
  noise = np.random.default_rng(seed).normal(size=other.shape) + value
  for i, (rows, columns) in enumerate(GRIDS):
    other[i, rows * columns :] = noise[i, rows * columns :]
  np.testing.assert_array_equal(
    apply(variables, images), apply(variables, images._replace(pixels=other))
  )


@functools.cache
def compiled(pooling):
  tower = VisionTransformer(POOLINGS[pooling])
  init = jax.jit(tower.init)
  variables = init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  return jax.jit(tower.apply), variables


@pytest.mark.parametrize('pooling', POOLINGS)
def test_patches_of_a_square_equal_the_square(pooling, float64):
  tower, variables = noisy_tower(pooling)
  squares = jnp.asarray(np.random.default_rng(6).normal(size=(2, 16, 16, 3)))
  patches = split_into_patches(squares, SMALL)
  padded = jnp.pad(patches, ((0, 0), (0, 3), *((0, 0),) * 3))
  grid = jnp.full((2, 2), 2, jnp.int32)
  np.testing.assert_allclose(
    tower.apply(variables, Patches(padded, grid)),
    tower.apply(variables, squares),
    rtol=0,
    atol=1e-12,
  )


def test_patch_tokens_of_padding_are_zeros(float64):
  tower, variables = noisy_tower('class_token')
  images = native_images(9)
  for first, options in (
    (0, {}),
    (1, {'class_token': True, 'final_norm': True}),
  ):
    [tokens] = tower.apply(
      variables, images, (1,), **options, method=image_tokens
    )
    for (rows, columns), row in zip(GRIDS, tokens, strict=True):
      own = first + rows * columns
      assert np.abs(row[:own]).min() > 0
      assert not np.abs(row[own:]).any()


@pytest.mark.parametrize('rows, columns', [(4, 4), (1, 9), (3, 5), (11, 2)])
def test_positions_are_resized_as_by_the_published_code(rows, columns):
  """big_vision's call of JAX's own resampling, which is as torch's."""
  table = jnp.asarray(np.random.default_rng(7).normal(size=(4, 4, 6)))
  table = table.astype(jnp.float32)
  expected = jax.image.scale_and_translate(
    table,
    (rows, columns, 6),
    (0, 1),
    jnp.array([rows / 4, columns / 4]),
    jnp.zeros(2),
    'linear',
    antialias=True,
  )
  grid = jnp.array([[rows, columns]])
  resized = resize_positions(table, grid, rows * columns + 2)[0]
  np.testing.assert_allclose(
    resized[: rows * columns], expected.reshape(-1, 6), atol=1e-6
  )
  assert np.isfinite(resized).all()


def test_patches_that_are_dropped_are_not_seen(float64):
  tower, variables = noisy_tower('average')
  images = native_images(9)
  kept = jnp.array([[1, 3, 8]] * len(GRIDS))  # the last is padding of all
  other = images._replace(pixels=images.pixels.at[:, jnp.array([0, 2])].set(7))

  @jax.jit
  def apply(images):
    return tower.apply(variables, images, kept_patches=kept)

  np.testing.assert_array_equal(apply(images), apply(other))
  changed = images._replace(pixels=images.pixels.at[:, 3].set(7.0))
  assert (np.abs(apply(images) - apply(changed)).max(1) > 1e-6).all()
