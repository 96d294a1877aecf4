"""The sigmoid loss: the formula, by hand and by its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.objectives.sigmoid import sigmoid_loss
from tests.objectives.cases import unit_rows


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def test_two_pairs_by_hand():
  images = texts = jnp.eye(2)
  loss = sigmoid_loss(images, texts, jnp.float64(3.0), jnp.float64(-1.0))
  # Each image: yes to a logit of 3 - 1, no to one of -1.
  expected = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0))
  np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_a_high_bias_says_yes_to_all():
  images, texts = unit_rows(16, 4)
  loss = sigmoid_loss(images, texts, jnp.float64(0.0), jnp.float64(50.0))
  np.testing.assert_allclose(loss, 15 * 50.0, rtol=1e-12)


def test_loss_ignores_the_order_of_pairs():
  images, texts = unit_rows(16, 4)
  order = np.random.default_rng(1).permutation(16)
  scalars = jnp.float64(20.0), jnp.float64(-10.0)
  np.testing.assert_allclose(
    sigmoid_loss(images[order], texts[order], *scalars),
    sigmoid_loss(images, texts, *scalars),
    rtol=1e-12,
  )
