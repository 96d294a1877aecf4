"""The product of Dense layers has the value and gradients of JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clip_jax.models.kernels import dot_general


def layer_and_inputs(shape, width, dtype=jnp.float32):
  plain = nn.Dense(width, dtype=dtype)
  x = jax.random.normal(jax.random.key(0), shape, dtype)
  return plain, plain.init(jax.random.key(1), x), x


def value_and_gradients(layer, variables, x):
  def objective(variables, x):
    y = layer.apply(variables, x)
    return jnp.sum(jnp.sin(y.astype(jnp.float32)))

  return jax.jit(jax.value_and_grad(objective, argnums=(0, 1)))(variables, x)


@pytest.mark.parametrize('shape', [(6, 8), (3, 5, 8), (2, 3, 4, 8)])
@pytest.mark.parametrize('width', [4, 8, 24])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_same_value_and_gradients(shape, width, dtype):
  plain, variables, x = layer_and_inputs(shape, width, dtype)
  expected = value_and_gradients(plain, variables, x)
  ours = plain.clone(dot_general=dot_general)
  result = value_and_gradients(ours, variables, x)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-5 if dtype == jnp.float32 else 2e-2, atol=1e-5
    ),
    jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), result),
    jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), expected),
  )


@pytest.mark.parametrize('features', [4, (3, 2, 4), (2, 8)])
@pytest.mark.parametrize('axis', [-1, (-2, -1)])
def test_several_axes_before_and_after(features, axis):
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 2))
  plain = nn.DenseGeneral(features, axis=axis)
  variables = plain.init(jax.random.key(1), x)
  ours = plain.clone(dot_general=dot_general)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    value_and_gradients(ours, variables, x),
    value_and_gradients(plain, variables, x),
  )


def test_a_tpu_gets_the_products_of_plain_layers():
  plain, variables, x = layer_and_inputs((3, 5, 8), 4)

  def program(layer, platform):
    step = jax.jit(lambda v, x: value_and_gradients(layer, v, x))
    lowered = step.trace(variables, x).lower(lowering_platforms=(platform,))
    return lowered.as_text()

  ours = plain.clone(dot_general=dot_general)
  assert program(ours, 'tpu').count('stablehlo.optimization_barrier') == 1
  expected = operations(program(plain, 'tpu'))
  assert operations(program(ours, 'tpu')) == expected
  assert operations(program(ours, 'cpu')) != expected


def operations(module):
  """Numbers of products and transpositions of a program."""
  kinds = ('stablehlo.dot_general', 'stablehlo.transpose')
  return [module.count(kind) for kind in kinds]


def test_other_products_are_refused():
  x = jnp.ones((2, 3))
  with pytest.raises(ValueError, match='only the product of'):
    dot_general(x, jnp.ones((3, 2)), (((0,), (1,)), ((), ())))
  with pytest.raises(ValueError, match='highest'):
    dot_general(x, jnp.ones((3, 2)), (((1,), (0,)), ((), ())), 'highest')
