"""The loss: one number and one gradient, in every form, on any devices."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from clip_jax.errors import UsageError
from clip_jax.objectives.contrastive import (
  gathered_softmax_loss,
  make_softmax_loss,
  softmax_loss,
)
from clip_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh

GOLDENS = Path(__file__).parents[1] / 'goldens'


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def unit_rows(pairs, width, seed=0):
  rows = np.random.default_rng(seed).normal(size=(2, pairs, width))
  return jnp.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def value_and_gradients(loss):
  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))


@pytest.mark.parametrize(
  'sizes', [(8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 8, 1), (1, 1, 8)]
)
def test_gathered_loss_equals_the_dense_formula(sizes):
  mesh = make_mesh(*sizes)
  images, texts = unit_rows(32, 12)
  scale = jnp.float64(1 / 0.07)
  expected, expected_gradients = value_and_gradients(softmax_loss)(
    images, texts, scale
  )
  placed = [jax.device_put(x, batch_sharding(mesh)) for x in (images, texts)]
  value, gradients = value_and_gradients(
    gathered_softmax_loss(mesh, BATCH_AXES)
  )(*placed, scale)
  np.testing.assert_allclose(value, expected, rtol=1e-10, atol=0)
  for ours, theirs in zip(gradients, expected_gradients, strict=True):
    assert np.abs(theirs).max() > 1e-3  # there is something to compare
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('case', ['clip_0', 'clip_1'])
@pytest.mark.parametrize('devices', [1, 4])
def test_loss_equals_open_clip(case, devices):
  arrays = load_file(GOLDENS / 'losses.safetensors')
  expected = json.loads((GOLDENS / 'losses.json').read_text())
  expected = next(c for c in expected['cases'] if c['name'] == case)
  mesh = make_mesh(devices=jax.devices()[:devices])
  value, (images, texts, scale) = value_and_gradients(
    gathered_softmax_loss(mesh, BATCH_AXES)
  )(
    arrays['image_features'],
    arrays['text_features'],
    jnp.float64(expected['logit_scale']),
  )
  np.testing.assert_allclose(value, expected['loss'], rtol=1e-10)
  np.testing.assert_allclose(scale, expected['grad_logit_scale'], rtol=1e-10)
  for ours, name in ((images, 'image'), (texts, 'text')):
    np.testing.assert_allclose(
      ours, arrays[f'{case}.grad_{name}_features'], rtol=1e-10, atol=1e-14
    )


def test_loss_without_signal_is_the_log_of_the_batch():
  images, texts = unit_rows(16, 4)
  loss = softmax_loss(images, texts, jnp.float64(0.0))
  np.testing.assert_allclose(loss, np.log(16), rtol=1e-12)


def test_loss_ignores_the_order_of_pairs():
  images, texts = unit_rows(16, 4)
  order = np.random.default_rng(1).permutation(16)
  scale = jnp.float64(20.0)
  np.testing.assert_allclose(
    softmax_loss(images[order], texts[order], scale),
    softmax_loss(images, texts, scale),
    rtol=1e-12,
  )


def test_loss_is_symmetric_in_the_towers():
  images, texts = unit_rows(16, 4)
  scale = jnp.float64(20.0)
  np.testing.assert_allclose(
    softmax_loss(images, texts, scale),
    softmax_loss(texts, images, scale),
    rtol=1e-12,
  )


def test_loss_of_perfect_pairs_vanishes_as_the_scale_grows():
  rows = jnp.eye(8)
  assert softmax_loss(rows, rows, jnp.float64(100.0)) < 1e-12


def test_gathered_loss_is_one_collective_a_side():
  mesh = make_mesh()
  loss = gathered_softmax_loss(mesh, BATCH_AXES)
  shape = jax.ShapeDtypeStruct((32, 12), jnp.float64)
  scale = jax.ShapeDtypeStruct((), jnp.float64)
  text = jax.jit(loss).lower(shape, shape, scale).as_text()
  assert text.count('stablehlo.all_gather') == 2


def test_unknown_form_is_refused():
  with pytest.raises(UsageError, match=r"objective.form='rings': choose one"):
    make_softmax_loss('rings', make_mesh(), BATCH_AXES)
