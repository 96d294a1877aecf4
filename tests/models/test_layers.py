"""What the towers' parts keep for the backward pass."""

import jax
import jax.numpy as jnp
import pytest

from clip_jax.models.layers import ACTIVATIONS, MLP

WIDTH, HIDDEN, TOKENS = 8, 32, 5


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_the_backward_pass_of_an_mlp_keeps_one_array_of_the_hidden_width(
  activation,
):
  mlp = MLP(HIDDEN, activation, 0.1, jnp.float32)
  x = jax.random.normal(jax.random.key(0), (TOKENS, WIDTH))
  variables = mlp.init(jax.random.key(1), x)
  pull_back = jax.vjp(mlp.apply, variables, x)[1]
  kept = [leaf.shape for leaf in jax.tree.leaves(pull_back)]
  assert kept.count((TOKENS, HIDDEN)) == 1
