"""Distillation is its formula, in all forms, and needs no more memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.objectives.distillation import (
  distillation_loss,
  distillation_term,
  distributed_distillation_loss,
  teacher_arrays,
)
from clip_jax.objectives.sharded import exchange_of
from clip_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh
from tests.objectives.cases import unit_rows

PAIRS = 32
SCALES = (40.0, 90.0)
SCALE = 20.0


def student():
  return unit_rows(PAIRS, 12)


def teachers():
  return [tuple(unit_rows(PAIRS, width, seed=width)) for width in (8, 20)]


def expected_value_and_gradients():
  """Returns the paper's formula and its gradient, in loops of numpy."""
  images, texts = map(np.asarray, student())
  logits = SCALE * images @ texts.T
  loss, by_logits = 0.0, np.zeros_like(logits)
  for scale, (teacher_images, teacher_texts) in zip(
    SCALES, teachers(), strict=True
  ):
    target = scale * np.asarray(teacher_images) @ np.asarray(teacher_texts).T
    for transpose in (False, True):
      ours, theirs = (logits.T, target.T) if transpose else (logits, target)
      for i in range(PAIRS):
        q = np.exp(ours[i]) / np.exp(ours[i]).sum()
        p = np.exp(theirs[i]) / np.exp(theirs[i]).sum()
        loss += sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)) / 4
        if transpose:
          by_logits[:, i] += (q - p) / 4
        else:
          by_logits[i] += (q - p) / 4
  by_logits /= PAIRS
  return loss / PAIRS, (
    SCALE * by_logits @ texts,
    SCALE * by_logits.T @ images,
    np.sum(by_logits * logits) / SCALE,
  )


def loss_of(form, devices):
  if form == 'dense':
    return lambda *arguments: distillation_loss(*arguments, SCALES)
  mesh = make_mesh(devices=jax.devices()[:devices])
  exchange = exchange_of(form, BATCH_AXES, chunk=2)
  return distributed_distillation_loss(mesh, BATCH_AXES, exchange, SCALES)


@pytest.mark.parametrize(
  ('form', 'devices'),
  [
    ('dense', 1),
    ('all_gather', 1),
    ('all_gather', 8),
    ('chunked', 8),
    ('ring', 8),
  ],
)
def test_value_and_gradients_are_those_of_the_formula(form, devices):
  with jax.enable_x64(True):
    loss, gradients = jax.jit(
      jax.value_and_grad(loss_of(form, devices), argnums=(0, 1, 2))
    )(*student(), jnp.asarray(SCALE), teachers())
    expected, expected_gradients = expected_value_and_gradients()
    assert loss > 0.1
  np.testing.assert_allclose(loss, expected, rtol=1e-10)
  for gradient, right in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(gradient, right, rtol=1e-8, atol=1e-12)


def test_a_student_that_agrees_with_its_teacher_has_no_loss():
  images, texts = student()
  for form in ('dense', 'chunked'):
    mesh = make_mesh(devices=jax.devices()[:1])
    term = distillation_term((SCALE,), form, mesh, BATCH_AXES, 8)
    arrays = dict(zip(teacher_arrays(0), (images, texts), strict=True))
    pairs = {'image_features': images, 'text_features': texts}
    loss = term.loss(pairs, {'logit_scale': jnp.asarray(SCALE)}, arrays)
    np.testing.assert_allclose(loss, 0, atol=1e-6)


def scratch_bytes(devices, form, own=256, width=64, chunk=32):
  """Returns the scratch memory of value and gradient on one of the devices."""
  mesh = make_mesh(devices=jax.devices()[:devices])
  loss = distributed_distillation_loss(
    mesh, BATCH_AXES, exchange_of(form, BATCH_AXES, chunk), (50.0,)
  )
  features = jax.ShapeDtypeStruct(
    (own * devices, width), jnp.float32, sharding=batch_sharding(mesh)
  )
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  value_and_gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))
  arguments = features, features, scalar, [(features, features)]
  lowered = jax.jit(value_and_gradients).lower(*arguments)
  return lowered.compile().memory_analysis().temp_size_in_bytes


def test_a_ring_needs_no_more_memory_on_more_devices():
  assert scratch_bytes(8, 'ring') < 1.1 * scratch_bytes(2, 'ring')
