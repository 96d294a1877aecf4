"""The product of tokens and a kernel, with gradients that CPUs are fast at.

XLA multiplies [M, K] by [K, N] at full speed on a CPU, but at less than half
of it where the first axis of the left side is the contracted one. That is what
JAX's gradient of a kernel becomes: [D, T] by [T, F], over all T tokens.
Compilers for accelerators choose layouts themselves, and get JAX's gradients.

Shapes: T tokens; D and F the width before and after, each of one axis or more.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Columns beside those of an array that is to be transposed. Where rows are a
# multiple of 4 KiB apart, all of a column falls into a few lines of the cache.
_PADDING = 16


def dot_general(
  x: Float[Array, '...'],
  kernel: Float[Array, '...'],
  dimension_numbers: Any,
  precision: Any = None,
) -> Float[Array, '...']:
  """`lax.dot_general` for Flax's layers: the same value and gradients.

  The last axes of x are contracted with the first of the kernel, in order. It
  has no forward-mode derivative.

  Raises:
    ValueError: other axes are to be contracted, or a precision of its own is
      asked for.
  """
  axes = len(dimension_numbers[0][0])
  if dimension_numbers != _of_layers(x, axes) or precision is not None:
    raise ValueError(
      'only the product of the last axes with the first ones at the default '
      f'precision, not {dimension_numbers} at {precision}.'
    )
  return _product(x, kernel, axes)


def _of_layers(x: jax.Array, axes: int) -> Any:
  """The dimension numbers of Flax's layers, `axes` of them contracted."""
  last = tuple(range(x.ndim - axes, x.ndim))
  return ((last, tuple(range(axes))), ((), ()))


def _plain_product(x: jax.Array, kernel: jax.Array, axes: int) -> jax.Array:
  return lax.dot_general(x, kernel, _of_layers(x, axes))


_product = jax.custom_vjp(_plain_product, nondiff_argnums=(2,))


def _forward(x: jax.Array, kernel: jax.Array, axes: int):
  return _plain_product(x, kernel, axes), (x, kernel)


def _backward(
  axes: int, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
):
  def plain(x: jax.Array, kernel: jax.Array, gradient: jax.Array):
    product = functools.partial(_plain_product, axes=axes)
    return jax.vjp(product, x, kernel)[1](gradient)

  def on_cpu(x: jax.Array, kernel: jax.Array, gradient: jax.Array):
    width = math.prod(kernel.shape[:axes])
    of_x, of_kernel = _gradients_on_cpu(
      x.reshape(-1, width),
      kernel.reshape(width, -1),
      gradient.reshape(-1, kernel.size // width),
    )
    return of_x.reshape(x.shape), of_kernel.reshape(kernel.shape)

  return lax.platform_dependent(*kept, gradient, cpu=on_cpu, default=plain)


_product.defvjp(_forward, _backward)


def _gradients_on_cpu(
  x: Float[Array, 'T D'],
  kernel: Float[Array, 'D F'],
  gradient: Float[Array, 'T F'],
) -> tuple[Float[Array, 'T D'], Float[Array, 'D F']]:
  """The narrower side is the one that is transposed, for it costs less."""
  of_x = lax.dot_general(gradient, kernel, (((1,), (1,)), ((), ())))
  width = x.shape[1]
  if width <= gradient.shape[1]:
    return of_x, _turned(x) @ gradient
  x = jnp.pad(x, ((0, 0), (0, _PADDING)))
  return of_x, _turned(_turned(gradient) @ x)[:width]


def _turned(x: Float[Array, 'M N']) -> Float[Array, 'N M']:
  """The transposition as an array; XLA would fold it into a product."""
  return lax.optimization_barrier(x.T)
