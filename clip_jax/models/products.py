"""The product of tokens and a kernel, with a gradient that CPUs are fast at.

XLA multiplies [M, K] by [K, N] at full speed on a CPU, but at less than half
of it where the first axis of the left side is the contracted one. That is what
JAX's gradient of a kernel becomes: [D, T] by [T, F], over all T tokens.
Compilers for accelerators choose layouts themselves, and get JAX's gradient.

Shapes: D and F the width before and after.
"""

from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Float


def dot_general(
  x: Float[Array, '*B D'],
  kernel: Float[Array, 'D F'],
  dimension_numbers: Any,
  precision: Any = None,
) -> Float[Array, '*B F']:
  """`lax.dot_general` for `nn.Dense`: the same value and the same gradient.

  It has no forward-mode derivative.

  Raises:
    ValueError: anything but the last axis of x is to be contracted, or a
      precision of its own is asked for.
  """
  if dimension_numbers != _last_axis(x) or precision is not None:
    raise ValueError(
      'only the product of nn.Dense at the default precision, not '
      f'{dimension_numbers} at {precision}.'
    )
  return _product(x, kernel)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return lax.dot_general(x, kernel, _last_axis(x))


def _forward(x: jax.Array, kernel: jax.Array):
  return _product(x, kernel), (x, kernel)


def _backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array):
  x, kernel = kept
  of_x = lax.dot_general(gradient, kernel, (((x.ndim - 1,), (1,)), ((), ())))
  of_kernel = lax.platform_dependent(
    x, gradient, cpu=_of_kernel_on_cpu, default=_of_kernel
  )
  return of_x, of_kernel


_product.defvjp(_forward, _backward)


def _of_kernel(
  x: Float[Array, '*B D'], gradient: Float[Array, '*B F']
) -> Float[Array, 'D F']:
  return _over_rows(gradient, x).T


def _of_kernel_on_cpu(
  x: Float[Array, '*B D'], gradient: Float[Array, '*B F']
) -> Float[Array, 'D F']:
  """The narrower side is the one that is transposed, for it costs less."""
  if x.shape[-1] <= gradient.shape[-1]:
    return _over_rows(x, gradient)
  # Without the barrier XLA would fold this transposition into the product.
  return lax.optimization_barrier(_over_rows(gradient, x)).T


def _over_rows(
  a: Float[Array, '*B M'], b: Float[Array, '*B N']
) -> Float[Array, 'M N']:
  rows = tuple(range(a.ndim - 1))
  return lax.dot_general(a, b, ((rows, rows), ((), ())))


def _last_axis(x: jax.Array) -> Any:
  """The dimension numbers of `nn.Dense`."""
  return (((x.ndim - 1,), (0,)), ((), ()))
