"""One number and one gradient in every form, on any devices."""

import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from clip_jax.errors import UsageError
from clip_jax.objectives import registry
from clip_jax.objectives.registry import FORMS, check_chunk, make_loss
from clip_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh
from tests.objectives.cases import unit_rows

GOLDENS = Path(__file__).parents[1] / 'goldens'
SCALARS = {'softmax': (1 / 0.07, 0.0), 'sigmoid': (10.0, -3.0)}
# Rows and columns of a tile: 32 pairs are at most 32 on a device.
FORMS_AND_CHUNKS = [('all_gather', 1), ('chunked', 2), ('chunked', 16),
                    ('ring', 2), ('ring', 64)]  # fmt: skip


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def value_and_gradients(loss):
  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))


def placed(mesh, arrays):
  return [jax.device_put(x, batch_sharding(mesh)) for x in arrays]


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('form, chunk', FORMS_AND_CHUNKS)
@pytest.mark.parametrize(
  'sizes', [(1, 1, 1, 1), (8, 1, 1, 1), (2, 2, 2, 1), (1, 2, 1, 4)]
)
@pytest.mark.parametrize('name', ['softmax', 'sigmoid'])
def test_every_form_equals_the_dense_formula(name, sizes, form, chunk):
  data, fsdp, tensor, slices = sizes
  devices = jax.devices()[: math.prod(sizes)]
  mesh = make_mesh(data, fsdp, tensor, slices, devices)
  scalars = [jnp.float64(x) for x in SCALARS[name]]
  arrays = unit_rows(32, 12)
  dense = make_loss(name, 'dense', mesh, BATCH_AXES, chunk)
  loss = make_loss(name, form, mesh, BATCH_AXES, chunk)
  expected = value_and_gradients(dense)(*arrays, *scalars)
  result = value_and_gradients(loss)(*placed(mesh, arrays), *scalars)
  np.testing.assert_allclose(result[0], expected[0], rtol=1e-10, atol=0)
  for ours, theirs in zip(result[1], expected[1], strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)
  for theirs in expected[1][: 4 if name == 'sigmoid' else 3]:
    assert np.abs(theirs).max() > 1e-3  # there is something to compare


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('case', ['clip_0', 'clip_1', 'siglip_0', 'siglip_1'])
def test_loss_equals_open_clip(case, form):
  arrays = load_file(GOLDENS / 'losses.safetensors')
  expected = json.loads((GOLDENS / 'losses.json').read_text())
  expected = next(c for c in expected['cases'] if c['name'] == case)
  name = 'softmax' if case.startswith('clip') else 'sigmoid'
  mesh = make_mesh(devices=jax.devices()[:4])
  value, (images, texts, scale, bias) = value_and_gradients(
    make_loss(name, form, mesh, BATCH_AXES, 3)
  )(
    arrays['image_features'],
    arrays['text_features'],
    jnp.float64(expected['logit_scale']),
    jnp.float64(expected.get('logit_bias', 0.0)),
  )
  np.testing.assert_allclose(value, expected['loss'], rtol=1e-10)
  np.testing.assert_allclose(scale, expected['grad_logit_scale'], rtol=1e-10)
  np.testing.assert_allclose(
    bias, expected.get('grad_logit_bias', 0.0), rtol=1e-10, atol=1e-14
  )
  for ours, side in ((images, 'image'), (texts, 'text')):
    np.testing.assert_allclose(
      ours, arrays[f'{case}.grad_{side}_features'], rtol=1e-10, atol=1e-14
    )


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', ['softmax', 'sigmoid'])
def test_float32_stays_near_float64_at_the_highest_temperature(name, form):
  """Logits of ±100, nearly all pairs certain: sums must not cancel badly."""
  mesh = make_mesh()
  arrays = unit_rows(64, 8).astype(jnp.float32)
  arrays = arrays.at[1].set(arrays[0] + 1e-3 * arrays[1])
  arrays /= jnp.linalg.norm(arrays, axis=-1, keepdims=True)
  scalars = jnp.float32(100.0), jnp.float32(-10.0)
  loss = make_loss(name, form, mesh, BATCH_AXES, 4)
  value, gradients = value_and_gradients(loss)(*arrays, *scalars)
  with jax.enable_x64(True):
    wide = [np.asarray(x, np.float64) for x in (*arrays, *scalars)]
    dense = make_loss(name, 'dense', mesh, BATCH_AXES, 4)
    expected, expected_gradients = value_and_gradients(dense)(*wide)
  np.testing.assert_allclose(value, expected, atol=2e-5)
  for ours, theirs in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize(
  'field, name, form',
  [('name', 'triplet', 'dense'), ('form', 'softmax', 'rings')],
)
def test_what_is_unknown_is_refused(field, name, form):
  with pytest.raises(UsageError, match=rf'objective.{field}=.*choose one of'):
    make_loss(name, form, make_mesh(), BATCH_AXES, 1)


def test_a_loss_that_is_only_a_formula_says_which_form_it_has(monkeypatch):
  def loss(images, texts, scale, bias):
    return scale * (images * texts).sum() + bias

  monkeypatch.setitem(registry.OBJECTIVES, 'triplet', registry.LossForms(loss))
  mesh = make_mesh()
  assert make_loss('triplet', 'dense', mesh, BATCH_AXES, 1) is loss
  with pytest.raises(UsageError, match="has the form 'dense' only"):
    make_loss('triplet', 'ring', mesh, BATCH_AXES, 1)


@pytest.mark.parametrize(
  'form, chunk, message',
  [
    ('chunked', 0, 'objective.chunk=0 does not divide the 96 pairs of a'),
    ('chunked', 36, 'the 96 pairs of a device: 32 does'),
    ('chunked', 100, 'the 768 pairs of the batch: 96 does'),
    ('ring', 36, 'the 96 pairs of a device: 32 does'),
  ],
)
def test_tiles_that_do_not_cover_the_logits_are_refused(form, chunk, message):
  with pytest.raises(UsageError, match=re.escape(message)):
    check_chunk(form, chunk, 96 * 8, 8)


@pytest.mark.parametrize(
  'form, chunk',
  [('chunked', 48), ('chunked', 256), ('chunked', 9999), ('ring', 100),
   ('dense', 7), ('all_gather', 0)],
)  # fmt: skip
def test_tiles_that_cover_the_logits_are_taken(form, chunk):
  check_chunk(form, chunk, 96 * 8, 8)
