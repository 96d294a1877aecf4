"""The towers' operations, written so that XLA compiles them to fast programs.

None changes a value: a reader of `layers.py` may think of `dot_general` as
`lax.dot_general`, and of the rest as a scan over blocks. What each saves was
measured by leaving it out of a train step of ViT-B/32 with four blocks in each
tower and 8 pairs, in turns on one AMD EPYC core.

- `dot_general` has gradients that are fast on a CPU: with JAX's own the step
  takes 1.10 times as long.
- `unstack` separates queries, keys and values: with slices, 1.05 times.
- `split_stacks` sets the last block apart, which computes only the token that
  is pooled: with all tokens, 1.20 times (of twelve blocks, a third of that).
- `remat` trades memory for time.
- `run_unrolled` runs blocks whose parameters are not stacked, for inference on
  CPUs: `inference/cpu_layout.py` says what that saves.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from clip_jax.errors import UsageError

# Columns beside those of an array that is to be transposed. Where rows are a
# multiple of 4 KiB apart, all of a column falls into a few lines of the cache.
_PADDING = 16

# The rules for what a block's forward pass keeps for its backward pass, which
# computes the rest again. 'none' keeps all, 'dots' the outputs of the weight
# products, 'full' nothing but the block's input (the paper's gradient
# checkpointing). Those between are for memory that 'full' leaves free: each
# keeps four widths D of a token, with an MLP of 4 D, or both of them.
_save = jax.checkpoint_policies.save_only_these_names
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
  'none': None,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'save_both': _save('qkv', 'attention', 'mlp_hidden'),
  'save_qkv': _save('qkv', 'attention'),
  'save_mlp': _save('mlp_hidden'),
  'full': jax.checkpoint_policies.nothing_saveable,
}

_TWO_POLICIES = re.compile(r'(\w+):(0?\.\d+),(\w+)')


def dot_general(
  x: Float[Array, '...'],
  kernel: Float[Array, '...'],
  dimension_numbers: Any,
  precision: Any = None,
) -> Float[Array, '...']:
  """Returns `lax.dot_general` of tokens and a kernel, for Flax's layers.

  XLA multiplies [M, K] by [K, N] at full speed on a CPU, but at less than half
  of it where the first axis of the left side is the contracted one. That is
  what JAX's gradient of a kernel becomes: [D, T] by [T, F], over all T tokens.
  Compilers for accelerators choose layouts themselves, and get JAX's gradients.

  The last axes of x are contracted with the first of the kernel, in order.
  There is no forward-mode derivative.

  Raises:
    ValueError: other axes are to be contracted, or a precision is given.
  """
  axes = len(dimension_numbers[0][0])
  if dimension_numbers != _dimension_numbers(x, axes) or precision is not None:
    raise ValueError(
      'only the product of the last axes with the first ones at the default '
      f'precision, not {dimension_numbers} at {precision}.'
    )
  return _product(x, kernel, axes, False)


def project(
  x: Float[Array, '*B C'], kernel: Float[Array, 'C n N K']
) -> Float[Array, '*B n W']:
  """Returns n projections of x, each with its heads side by side (W = N x K).

  As heads of their own, K columns would fill half of a TPU's registers, and all
  that reads them would be laid out for it. The derivative is that of
  `dot_general`.
  """
  return _product(x, kernel, 1, True)


def _dimension_numbers(x: jax.Array, axes: int) -> Any:
  """Returns the dimension numbers of Flax's layers, `axes` contracted."""
  last = tuple(range(x.ndim - axes, x.ndim))
  return ((last, tuple(range(axes))), ((), ()))


def _plain_product(
  x: jax.Array, kernel: jax.Array, axes: int, merged: bool
) -> jax.Array:
  # One contracted axis: the last of two may fill a part of a register only.
  x = x.reshape(*x.shape[: x.ndim - axes], -1)
  return lax.dot_general(
    x, _flat(kernel, axes, merged), _dimension_numbers(x, 1)
  )


def _flat(kernel: jax.Array, axes: int, merged: bool) -> jax.Array:
  """Returns a kernel with one contracted axis, its heads side by side."""
  kernel = kernel.reshape(-1, *kernel.shape[axes:])
  return kernel.reshape(*kernel.shape[:-2], -1) if merged else kernel


_product = jax.custom_vjp(_plain_product, nondiff_argnums=(2, 3))


def _forward(x: jax.Array, kernel: jax.Array, axes: int, merged: bool):
  return _plain_product(x, kernel, axes, merged), (x, kernel)


def _backward(
  axes: int,
  merged: bool,
  saved: tuple[jax.Array, jax.Array],
  gradient: jax.Array,
):
  def plain(x: jax.Array, kernel: jax.Array, gradient: jax.Array):
    product = functools.partial(_plain_product, axes=1, merged=False)
    rows = x.reshape(*x.shape[: x.ndim - axes], -1)
    flat = _flat(kernel, axes, merged)
    of_x, of_kernel = jax.vjp(product, rows, flat)[1](gradient)
    # A parameter's layout, such as that of heads narrower than a register,
    # must not reach the product: a TPU would lay out all tokens for it.
    of_kernel = lax.optimization_barrier(of_kernel)
    return of_x.reshape(x.shape), of_kernel.reshape(kernel.shape)

  def on_cpu(x: jax.Array, kernel: jax.Array, gradient: jax.Array):
    width = math.prod(kernel.shape[:axes])
    of_x, of_kernel = _gradients_on_cpu(
      x.reshape(-1, width),
      kernel.reshape(width, -1),
      gradient.reshape(-1, kernel.size // width),
    )
    return of_x.reshape(x.shape), of_kernel.reshape(kernel.shape)

  return lax.platform_dependent(*saved, gradient, cpu=on_cpu, default=plain)


_product.defvjp(_forward, _backward)


def _gradients_on_cpu(
  x: Float[Array, 'T D'],
  kernel: Float[Array, 'D F'],
  gradient: Float[Array, 'T F'],
) -> tuple[Float[Array, 'T D'], Float[Array, 'D F']]:
  """Returns both gradients, T tokens from width D to F.

  The narrower side is the one that is transposed, for it costs less.
  """
  of_x = lax.dot_general(gradient, kernel, (((1,), (1,)), ((), ())))
  width = x.shape[1]
  if width <= gradient.shape[1]:
    return of_x, _transposed(x) @ gradient
  x = jnp.pad(x, ((0, 0), (0, _PADDING)))
  return of_x, _transposed(_transposed(gradient) @ x)[:width]


def _transposed(x: Float[Array, 'M N']) -> Float[Array, 'N M']:
  """Returns the transpose as an array; XLA would fold it into a product."""
  return lax.optimization_barrier(x.T)


def unstack(x: Float[Array, 'n ...']) -> list[Float[Array, '...']]:
  """Returns the rows of an array; their derivative is one concatenation.

  That of slices would be a sum of arrays that are zero but for a row.
  """
  return [part[0] for part in lax.split(x, (1,) * len(x))]


def remat_policies(remat: str, depth: int, name: str = 'remat') -> list[str]:
  """Returns the name of each block's remat policy.

  Args:
    remat: one of `REMAT_POLICIES`, or two of them as in 'full:0.75,none', the
      first for that share of the blocks, from the first one on. The backward
      pass begins where least is computed again, while memory is fullest.
    depth: the number of blocks.
    name: of the field, for an error.
  Raises:
    UsageError: it is neither.
  """
  match = _TWO_POLICIES.fullmatch(remat)
  first, share, rest = match.groups() if match else (remat, '1', remat)
  if not {first, rest} <= REMAT_POLICIES.keys():
    raise UsageError(
      f'{name}={remat!r}: choose one of {", ".join(REMAT_POLICIES)}, or two of '
      "them as in 'full:0.75,none', the first for 75 % of the blocks."
    )
  count = round(float(share) * depth)
  return [first] * count + [rest] * (depth - count)


def remat(run: Callable[..., Any], policy: str) -> Callable[..., Any]:
  """Returns a block that keeps what a policy says.

  Args:
    run: a block, as `lax.scan` takes it.
    policy: one of `REMAT_POLICIES`.
  """
  if policy == 'none':
    return run
  # The body of a scan needs no guard against common subexpressions.
  return jax.checkpoint(run, policy=REMAT_POLICIES[policy], prevent_cse=False)


def split_stacks(
  stacks: Sequence[Any], ends: Collection[int], stop: int
) -> list[tuple[range, Any]]:
  """Returns the parameters of blocks as stacks that also end at some layers.

  The derivative of a split is one concatenation.

  Args:
    stacks: parameters of blocks that follow each other, each stacked along the
      first axis.
    ends: the layers before which a stack ends, from 0.
    stop: the layer before which the last stack ends.
  Returns:
    Each stack after the indices of its layers.
  """
  parts, first = [], 0
  for stack in stacks:
    leaves, structure = jax.tree.flatten(stack)
    last = first + len(leaves[0])
    inside = sorted(end for end in ends if first < end < last)
    layers = [
      range(*pair) for pair in itertools.pairwise([first, *inside, last])
    ]
    sizes = [len(part) for part in layers]
    pieces = [lax.split(x, sizes) if inside else [x] for x in leaves]
    for part, piece in zip(layers, zip(*pieces, strict=True), strict=True):
      parts.append((part, structure.unflatten(piece)))
    first = last
  return [part for part in parts if part[0].stop <= stop]


def is_unrolled(transformer: nn.Module) -> bool:
  """Returns whether parameters are in `block_0`, `block_1`, …, not stacked."""
  return transformer.has_variable('params', 'block_0')


def run_unrolled(
  transformer: nn.Module,
  layers: Sequence[int],
  run: Callable[[jax.Array, Any], tuple[jax.Array, None]],
  run_last: Callable[[jax.Array, Any], jax.Array],
  x: Float[Array, 'B L D'],
) -> list[Float[Array, 'B *L D']]:
  """Runs blocks one after another, each with its own arrays.

  A CPU would copy each block's weights out of the stack at every step of a
  scan.

  Args:
    layers: indices of blocks, from 0 and ascending.
    run: a block, as `lax.scan` takes it.
    run_last: from tokens and a block's parameters to the token that is wanted.
    x: tokens.
  Returns:
    The tokens after each of the layers; of the last, what `run_last` returns.
  """
  states = []
  for i in range(layers[-1] + 1):
    params = transformer.get_variable('params', f'block_{i}')
    x = run_last(x, params) if i == layers[-1] else run(x, params)[0]
    if i in layers:
      states.append(x)
  return states
