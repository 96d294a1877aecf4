"""Attention for short rows of tokens, on TPUs, without its logits in memory.

Made for the towers' 50 to some 1,100 tokens: all logits of a head fit into a
core's vector memory. There they are made, used and dropped, so that main memory
sees only queries, keys, values and the output. The kernels read the projection
as the matrix product wrote it, and pad nothing in main memory. The backward
kernel computes the weights again from whole rows, so that only the projection
is kept for it.

Letters in shapes: B examples, L tokens, N heads, K width of a head, W = N x K.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

# Columns are read and written in windows of whole vector registers.
_LANES = 128
_SUBLANES = 8
# Bytes of inputs and outputs that one program holds, if there is room for them.
# The next program's are on their way meanwhile.
_BLOCK_BYTES = 4 << 20
# Bytes of a core's vector memory that a program may take unless it asks for
# more. A core of v4 has no more.
VECTOR_MEMORY = 16 << 20


def can_fuse(
  qkv: Any, mask: Any, heads: int, memory: int = VECTOR_MEMORY
) -> bool:
  """Returns whether `fused_attention` and its gradient can be computed.

  Args:
    qkv, mask, heads: as `fused_attention` takes them, or arrays' shapes.
    memory: the bytes of vector memory that a program may take.
  """
  width = qkv.shape[-1]
  head = width // heads
  if width % _LANES or head > _LANES:
    return False
  gradient = jax.ShapeDtypeStruct(qkv.shape[1:], qkv.dtype)
  block = _Block.of(head, mask, (qkv, gradient, qkv))
  return block.memory <= memory


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def fused_attention(
  qkv: Float[Array, '3 B L W'],
  mask: Bool[Array, '#B #L L'] | None,
  heads: int,
  interpret: bool = False,
) -> Float[Array, 'B L W']:
  """Returns softmax(q k^T / sqrt(K)) v of all heads, side by side.

  The softmax is in float32 or wider.

  Args:
    qkv: queries, keys and values, each with its heads side by side.
    mask: True where a token (row) attends to another (column).
    heads: N.
    interpret: computes on any device, slowly, for tests.
  """
  shape = qkv.shape[1:]
  return _call(_forward_kernel, shape, heads, interpret, mask, qkv)


def _with_residuals(qkv, mask, heads, interpret):
  return fused_attention(qkv, mask, heads, interpret), (qkv, mask)


def _gradient(heads, interpret, residuals, gradient):
  qkv, mask = residuals
  options = (qkv.shape, heads, interpret, mask)
  return _call(_backward_kernel, *options, qkv, gradient), None


fused_attention.defvjp(_with_residuals, _gradient)


def _call(
  kernel: Any,
  shape: tuple[int, ...],
  heads: int,
  interpret: bool,
  mask: jax.Array | None,
  *arrays: jax.Array,
) -> jax.Array:
  """Runs a kernel in programs that each hold some heads of some examples."""
  *_, batch, length, width = shape
  head = width // heads
  result = jax.ShapeDtypeStruct(shape, arrays[0].dtype)
  block = _Block.of(head, mask, (*arrays, result))
  examples, columns = block.examples, block.columns

  def spec(array: Any) -> pl.BlockSpec:
    parts = array.shape[:-3]
    return pl.BlockSpec(
      (*parts, examples, length, columns),
      lambda b, c: (*(0 for _ in parts), b, 0, c),
    )

  masks = [] if mask is None else [mask.astype(jnp.int32)]
  of_each = mask is not None and len(mask) > 1
  mask_specs = [
    pl.BlockSpec(
      (examples if of_each else 1, *array.shape[1:]),
      lambda b, c: (b if of_each else 0, 0, 0),
    )
    for array in masks
  ]
  logits = batch * heads * length * length
  made, used = _PRODUCTS[kernel]
  read = f'{head}/{_window(head, columns)}'
  return pl.pallas_call(
    functools.partial(kernel, head=head),
    grid=(batch // examples, width // columns),
    in_specs=[*map(spec, arrays), *mask_specs],
    out_specs=spec(result),
    out_shape=result,
    interpret=interpret,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel'),
      # Stating the default, too, would make XLA plan other programs worse.
      vmem_limit_bytes=block.memory if block.memory > VECTOR_MEMORY else None,
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * (made + used) * logits * head,
      transcendentals=logits,
      bytes_accessed=sum(
        array.size * array.dtype.itemsize for array in (*arrays, *masks, result)
      ),
    ),
    # For `planning/products.py`: how many, rows, summed axis, columns. Of the
    # columns that are multiplied, only those of a head count.
    metadata={
      'products': f'{made * batch * heads}x{length}x{read}x{length} '
      f'{used * batch * heads}x{length}x{length}x{read}'
    },
  )(*arrays, *masks)


@dataclasses.dataclass(frozen=True)
class _Block:
  """The part of the arrays that one program holds.

  Attributes:
    examples, columns: of each array.
    memory: the bytes of vector memory that a program takes, by measure of what
      libtpu 0.0.42 says of programs that do not fit.
  """

  examples: int
  columns: int
  memory: int

  @classmethod
  def of(cls, head: int, mask: Any, arrays: tuple[Any, ...]) -> '_Block':
    """Returns the largest block that leaves room for the logits.

    Columns are whole heads and whole registers; where a program has room for
    all of them, it takes several examples, so that few programs have to start.
    """
    *_, batch, length, width = arrays[0].shape
    unit = math.lcm(head, _LANES)
    rows = _padded(length, _SUBLANES)
    keys = _padded(length, _LANES)
    # Two arrays of logits, and two of the columns that a head is read with.
    logits = 4 * rows * 2 * (keys + _window(head, unit))
    # Masks are integers there.
    masks = 0 if mask is None else 4 * _padded(mask.shape[1], _SUBLANES) * keys
    column = rows * sum(
      math.prod(a.shape[:-3]) * a.dtype.itemsize for a in arrays
    )
    room = min(_BLOCK_BYTES, (VECTOR_MEMORY - logits) // 2 - masks)
    examples = 1
    columns = unit * _largest_divisor(width // unit, room // (column * unit))
    if columns == width:
      examples = _largest_divisor(batch, room // (column * width + masks))
    used = examples * (column * columns + masks)
    return cls(examples, columns, logits + 2 * used)


def _padded(size: int, unit: int) -> int:
  return -(-size // unit) * unit


def _window(head: int, columns: int) -> int:
  """Returns how many columns, in whole registers, are read for one head."""
  return _LANES if _LANES % head == 0 else min(2 * _LANES, columns)


def _largest_divisor(number: int, limit: int) -> int:
  """Returns the largest divisor that is not above a limit, or 1."""
  return max(n for n in range(1, max(limit, 1) + 1) if number % n == 0)


def _forward_kernel(qkv_ref, *refs, head: int):
  *mask_ref, out_ref = refs

  def attend(example, columns, own):
    q, k, v = (qkv_ref[part, example, :, columns] for part in range(3))
    weights = _weights(q, k, own, _mask(mask_ref, example), head)
    out = _product(weights.astype(v.dtype), v, 1, 0)
    _write(out_ref, (example, slice(None), columns), own, out)

  _for_each_head(attend, out_ref.shape[0], out_ref.shape[-1], head)


def _backward_kernel(qkv_ref, gradient_ref, *refs, head: int):
  *mask_ref, out_ref = refs

  def differentiate(example, columns, own):
    q, k, v = (qkv_ref[part, example, :, columns] for part in range(3))
    gradient = gradient_ref[example, :, columns]
    mask = _mask(mask_ref, example)
    weights = _weights(q, k, own, mask, head)
    of_v = _product(weights.astype(v.dtype), gradient, 0, 0)
    of_weights = _product(jnp.where(own, gradient, 0), v, 1, 1)
    mean = jnp.sum(weights * of_weights, axis=-1, keepdims=True)
    of_logits = weights * (of_weights - mean) * head**-0.5
    if mask is not None:  # of a row that attends to nothing, all weights count
      of_logits = jnp.where(mask, of_logits, 0)
    of_logits = of_logits.astype(q.dtype)
    of_q = _product(of_logits, k, 1, 0)
    of_k = _product(of_logits, q, 0, 0)
    for part, of_part in enumerate((of_q, of_k, of_v)):
      _write(out_ref, (part, example, slice(None), columns), own, of_part)

  _for_each_head(differentiate, out_ref.shape[1], out_ref.shape[-1], head)


# How many matrix products a kernel computes for a head: those that make an
# array [L, L], and those that sum over one.
_PRODUCTS = {_forward_kernel: (1, 1), _backward_kernel: (2, 3)}


def _for_each_head(run: Any, examples: int, width: int, head: int) -> None:
  """Calls `run(example, columns, own)` for each head of each example.

  The columns are a window of whole registers in which the head is, with parts
  of its neighbours; `own` [1, columns] is True for the columns of its own.
  """
  heads = width // head
  size = _window(head, width)

  def one(i, _):
    example, start = lax.div(i, heads), lax.rem(i, heads) * head
    first = jnp.minimum(lax.div(start, _LANES) * _LANES, width - size)
    first = pl.multiple_of(first, _LANES)
    column = first + lax.broadcasted_iota(jnp.int32, (1, size), 1)
    own = (column >= start) & (column < start + head)
    run(example, pl.ds(first, size), own)

  lax.fori_loop(0, examples * heads, one, None)


def _weights(
  q: Float[Array, 'L C'],
  k: Float[Array, 'L C'],
  own: Bool[Array, '1 C'],
  mask: Bool[Array, '#L L'] | None,
  head: int,
) -> Float[Array, 'L L']:
  """Returns the softmax over the keys; of q, the head's own columns count."""
  logits = _product(jnp.where(own, q, 0), k, 1, 1) * head**-0.5
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
  powers = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  return powers / jnp.sum(powers, axis=-1, keepdims=True)


def _mask(mask_ref: Any, example: Int[Array, '']) -> jax.Array | None:
  if not mask_ref:
    return None
  [ref] = mask_ref
  return ref[example if ref.shape[0] > 1 else 0] != 0


def _product(x: jax.Array, y: jax.Array, axis: int, other: int) -> jax.Array:
  """Returns the matrix product over an axis of each, in float32 or wider."""
  return lax.dot_general(
    x,
    y,
    (((axis,), (other,)), ((), ())),
    preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
  )


def _write(ref: Any, where: tuple[Any, ...], own: jax.Array, x: jax.Array):
  """Writes a head's own columns, and leaves those of its neighbours."""
  ref[where] = jnp.where(own, x.astype(ref.dtype), ref[where])
