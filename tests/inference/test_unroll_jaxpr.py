"""Unrolling: the same numbers, and nothing left but plain operations."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.inference.onnx_export import unroll_jaxpr

WEIGHTS = np.arange(12, dtype=np.float32).reshape(3, 2, 2) / 10


def model(weights, rows, reverse=False):
  """A stack of layers, with a call and a constant in each."""

  @jax.checkpoint
  def layer(x, w):
    mask = jnp.tril(jnp.ones((2, 2), bool))
    return jax.nn.relu(x @ jnp.where(mask, w, 0)) + 1, None

  return jax.lax.scan(layer, rows, weights, reverse=reverse)[0]


def names(jaxpr):
  return {eqn.primitive.name for eqn in jaxpr.eqns}


@pytest.mark.parametrize('reverse', [False, True])
def test_it_computes_the_same(reverse):
  rows = np.ones((4, 2), np.float32)
  closed = jax.make_jaxpr(lambda w, x: model(w, x, reverse))(WEIGHTS, rows)
  result = unroll_jaxpr(closed, [WEIGHTS])(rows)
  np.testing.assert_allclose(result, model(WEIGHTS, rows, reverse), rtol=1e-6)


def test_nothing_is_left_but_operations_on_the_rows():
  (b,) = jax.export.symbolic_shape('b')
  rows = jax.ShapeDtypeStruct((b, 2), jnp.float32)
  closed = jax.make_jaxpr(model)(WEIGHTS, rows)
  assert 'scan' in names(closed.jaxpr)
  flat = jax.make_jaxpr(unroll_jaxpr(closed, [WEIGHTS]))(rows)
  # Masked weights are known, so nothing is left of the mask.
  assert names(flat.jaxpr) == {'dot_general', 'max', 'add'}
  assert len(flat.jaxpr.eqns) == 3 * len(WEIGHTS)
  assert flat.out_avals[0].shape == (b, 2)


def test_a_scan_that_gathers_outputs_is_refused():
  def cumulative(weights, x):
    return jax.lax.scan(lambda x, w: (x + w, x), x, weights)[1]

  closed = jax.make_jaxpr(cumulative)(WEIGHTS, WEIGHTS[0])
  with pytest.raises(NotImplementedError, match='gathers outputs'):
    unroll_jaxpr(closed, [WEIGHTS])(WEIGHTS[0])
