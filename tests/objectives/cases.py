"""What the losses are tried on."""

import jax
import jax.numpy as jnp
import numpy as np


def unit_rows(pairs: int, width: int, seed: int = 0) -> jax.Array:
  """Two sets of random unit rows, [2, pairs, width]."""
  rows = np.random.default_rng(seed).normal(size=(2, pairs, width))
  return jnp.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))
