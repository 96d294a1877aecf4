"""The formula of the softmax loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.objectives.contrastive import softmax_loss
from tests.objectives.cases import unit_rows


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


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
