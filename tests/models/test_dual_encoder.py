"""The pair of towers computes what open_clip's does, in every mode it has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.dual_encoder import DualEncoder, normalize, unit_length
from tests.golden_models import HUGGING_FACE, OPEN_CLIP, load_golden
from tests.tiny import TINY


@pytest.fixture(scope='module', params=OPEN_CLIP)
def golden(request):
  return load_golden(request.param)


@pytest.fixture(scope='module', params=HUGGING_FACE)
def golden_of_transformers(request):
  return load_golden(request.param)


@functools.cache
def initial_params():
  images, tokens = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 8), jnp.int32)
  init = jax.jit(DualEncoder(TINY).init)
  return init(jax.random.key(0), images, tokens)['params']


@functools.cache
def tiny_params():
  """Initial parameters with noise, so that no bias is a silent zero."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: x + jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32),
    initial_params(),
  )


def tiny_batch(size=3, seed=0):
  rng = np.random.default_rng(seed)
  images = rng.normal(size=(size, 16, 16, 3)).astype(np.float32)
  tokens = rng.integers(2, 64, (size, 8), dtype=np.int32)
  tokens[:, 5] = TINY.text.end_token
  return jnp.asarray(images), jnp.asarray(tokens)


def features(dtype=jnp.float32):
  """Of a batch by the noisy parameters."""
  apply = jax.jit(DualEncoder(TINY, dtype).apply)
  return apply({'params': tiny_params()}, *tiny_batch())[:2]


def test_outputs_equal_open_clips(golden):
  image, text, scale, bias = golden.apply(golden.images, golden.tokens)
  golden.check('image_features_normalized', image)
  golden.check('text_features_normalized', text)
  golden.check('logit_scale_exp', scale[None])
  golden.check('logits_per_image', scale * image @ text.T)
  assert bias == 0


def test_features_before_normalisation_equal_open_clips(golden):
  image = golden.apply(golden.images, method='encode_image')
  text = golden.apply(golden.tokens, method='encode_text')
  golden.check('image_features', image)
  golden.check('text_features', text)


def test_outputs_equal_those_of_transformers(golden_of_transformers):
  golden = golden_of_transformers
  image, text, scale, bias = golden.apply(golden.images, golden.tokens)
  golden.check('image_embeds', image)
  golden.check('text_embeds', text)
  golden.check('logits_per_image', scale * image @ text.T + bias)
  golden.check('logits_per_text', scale * text @ image.T + bias)
  golden.check(
    'image_features', golden.apply(golden.images, method='encode_image')
  )
  golden.check(
    'text_features', golden.apply(golden.tokens, method='encode_text')
  )


@pytest.mark.parametrize('name', [*OPEN_CLIP, *HUGGING_FACE])
def test_relative_error_is_below_2e_5(name):
  # Of the normalised features, and 1e-4 of the logits.
  golden = load_golden(name)
  image, text, scale, bias = golden.apply(golden.images, golden.tokens)
  theirs = 'embeds' if name in HUGGING_FACE else 'features_normalized'
  for ours, key, limit in (
    (image, f'image_{theirs}', 2e-5),
    (text, f'text_{theirs}', 2e-5),
    (scale * image @ text.T + bias, 'logits_per_image', 1e-4),
  ):
    expected = golden.outputs[key]
    error = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
    assert error < limit, key


def test_features_have_unit_length():
  for rows in features():
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)


def test_unit_length_leaves_zero_alone_and_has_a_finite_gradient():
  zero = jnp.zeros((1, 4))
  np.testing.assert_array_equal(unit_length(zero), zero)
  gradient = jax.grad(lambda x: unit_length(x).sum())(zero)
  assert np.isfinite(gradient).all()


def test_the_initial_temperature_is_that_of_figure_3():
  scale = np.exp(initial_params()['logit_scale'])
  np.testing.assert_allclose(scale, 1 / 0.07, rtol=1e-6)


def test_parameters_are_float32_whatever_the_arithmetic():
  shapes = jax.eval_shape(
    DualEncoder(TINY, jnp.bfloat16).init, jax.random.key(0), *tiny_batch()
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {
    np.dtype('float32')
  }


def test_bfloat16_is_close_to_float32_and_returns_float32():
  for a, b in zip(features(), features(jnp.bfloat16), strict=True):
    assert b.dtype == np.float32
    assert not np.array_equal(a, b)
    # Unit vectors, of which bfloat16 keeps eight bits.
    np.testing.assert_allclose(a, b, atol=0.01)


def test_normalize_is_the_published_formula():
  pixels = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
  mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
  expected = (pixels / 255 - np.array(mean)) / np.array(std)
  actual = normalize(jnp.asarray(pixels), mean, std)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
