"""The parts that both towers share: attention, MLP, block, stack.

Letters in shapes: B examples, L tokens (M where they are attended to), D width,
N heads, K width of a head.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from clip_jax.models.products import dot_general

Dtype = Any
normal = nn.initializers.normal

# What is done to activations [B, ...] where they leave a part of a tower: with
# parameters split over devices, a compiler may split activations likewise, and
# send them to and fro. The caller says here how they are to lie; a module
# knows nothing of meshes.
Layout = Callable[[jax.Array], jax.Array]

# Of each row of tokens, the position of one: the same in all rows, or [B].
Place = int | Int[Array, ' B']


def as_it_is(x: jax.Array) -> jax.Array:
  """No layout: the default, and all that one device needs."""
  return x


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'gelu': lambda x: nn.gelu(x, approximate=False),
  'gelu_tanh': lambda x: nn.gelu(x, approximate=True),
  # Hendrycks and Gimpel's sigmoid form, which all of OpenAI's weights use.
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),
}

# What the backward pass keeps of a block's forward pass; the rest it computes
# again. 'none' keeps all, 'dots' the outputs of the weight products, 'full'
# nothing but the block's input (the paper's gradient checkpointing).
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
  'none': None,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}


def wide(dtype: Dtype) -> Dtype:
  """The dtype of sums that bfloat16 would spoil: float32 or wider."""
  return jnp.promote_types(dtype, jnp.float32)


class LayerNorm(nn.Module):
  """LayerNorm in float32; the result has the dtype of the input."""

  eps: float = 1e-5

  @nn.compact
  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
    h = x.astype(wide(x.dtype))
    h = h - h.mean(-1, keepdims=True)
    h = h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + self.eps)
    return (h * scale + bias).astype(x.dtype)


class Attention(nn.Module):
  """Multi-head self-attention.

  Queries, keys and values come from one product, as in OpenAI's
  `in_proj_weight`: kernel [D, 3, N, K].
  """

  heads: int
  out_std: float
  dtype: Dtype

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B L D'],
    mask: Bool[Array, 'L L'] | None = None,
    place: Place | None = None,
  ) -> Float[Array, 'B *L D']:
    """All tokens, or [B, D] for the one at `place`: others then ask nothing."""
    width = x.shape[-1]
    if place is None:
      qkv = nn.DenseGeneral(
        (3, self.heads, width // self.heads),
        kernel_init=normal(width**-0.5),
        dtype=self.dtype,
        dot_general=dot_general,
        name='qkv',
      )(x)  # B L 3 N K
      # Heads before tokens, once for all three: CPUs are faster so.
      qkv = jnp.moveaxis(qkv, (2, 3), (0, 2))  # 3 B N L K
      q, k, v = (part[0] for part in jax.lax.split(qkv, (1, 1, 1)))
      mixed = attend(q, k, v, mask)
    else:
      seen = None if mask is None else mask[place][..., None, None, :]
      read = QueryAttention(self.heads, self.dtype, name='qkv')
      mixed = read(at(x, place), x, seen)
    return nn.DenseGeneral(
      width,
      axis=(-2, -1),
      kernel_init=normal(self.out_std),
      dtype=self.dtype,
      dot_general=dot_general,
      name='out',
    )(mixed)


class QueryAttention(nn.Module):
  """What one query reads in a row of tokens: the heart of attention pooling.

  Parameters are those of `Attention` without its output product.
  """

  heads: int
  dtype: Dtype

  @nn.compact
  def __call__(
    self,
    query: Float[Array, 'B D'],
    x: Float[Array, 'B L D'],
    mask: Bool[Array, '*B 1 L'] | None = None,
  ) -> Float[Array, 'B N K']:
    width = x.shape[-1]
    shape = (3, self.heads, width // self.heads)
    kernel = self.param('kernel', normal(width**-0.5), (width, *shape))
    bias = self.param('bias', nn.initializers.zeros, shape)
    query, x, kernel, bias = (
      jnp.asarray(array, self.dtype) for array in (query, x, kernel, bias)
    )
    q = jnp.einsum('BD,DNK->BNK', query, kernel[:, 0]) + bias[0]
    over_width = (((x.ndim - 1,), (0,)), ((), ()))
    kv = dot_general(x, kernel[:, 1:], over_width) + bias[1:]  # B L 2 N K
    k, v = jnp.moveaxis(kv, (2, 3), (0, 2))  # B N L K
    return attend(q[:, :, None], k, v, mask)[:, 0]


def at(x: Float[Array, 'B L D'], place: Place) -> Float[Array, 'B D']:
  """The token at `place`."""
  if isinstance(place, int):
    return x[:, place]
  return jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0]


def attend(
  q: Float[Array, 'B N L K'],
  k: Float[Array, 'B N M K'],
  v: Float[Array, 'B N M K'],
  mask: Bool[Array, '*B L M'] | None = None,
) -> Float[Array, 'B L N K']:
  """Scaled dot-product attention; softmax in float32 or wider."""
  logits = jnp.einsum('BNLK,BNMK->BNLM', q * q.shape[-1] ** -0.5, k)
  logits = logits.astype(wide(q.dtype))
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
  weights = jax.nn.softmax(logits).astype(v.dtype)
  return jnp.einsum('BNLM,BNMK->BNLK', weights, v).swapaxes(1, 2)


class MLP(nn.Module):
  """Two products with an activation between them."""

  hidden: int
  activation: str
  out_std: float
  dtype: Dtype

  @nn.compact
  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    width = x.shape[-1]
    h = nn.Dense(
      self.hidden,
      kernel_init=normal((2 * width) ** -0.5),
      dtype=self.dtype,
      dot_general=dot_general,
      name='up',
    )(x)
    down = nn.Dense(
      width,
      kernel_init=normal(self.out_std),
      dtype=self.dtype,
      dot_general=dot_general,
      name='down',
    )

    def activated(down: nn.Dense, h: jax.Array) -> jax.Array:
      return down(ACTIVATIONS[self.activation](h))

    # The backward pass keeps h alone and computes the activation again, which
    # is cheaper than to keep four arrays of the hidden width.
    return nn.remat(activated, prevent_cse=False)(down, h)


class Block(nn.Module):
  """One residual block with LayerNorm first.

  Standard deviations of the initial weights follow OpenAI's code: the outputs
  of the two residual branches shrink with the depth of the stack.
  """

  depth: int
  heads: int
  mlp_ratio: float
  activation: str
  norm_eps: float
  dtype: Dtype
  layout: Layout = as_it_is

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B L D'],
    mask: Bool[Array, 'L L'] | None = None,
    place: Place | None = None,
  ) -> Float[Array, 'B *L D']:
    """All tokens, or [B, D] for the one at `place`."""
    width = x.shape[-1]
    out_std = width**-0.5 * (2 * self.depth) ** -0.5
    attention = Attention(self.heads, out_std, self.dtype, name='attention')
    mlp = MLP(
      int(width * self.mlp_ratio),
      self.activation,
      out_std,
      self.dtype,
      name='mlp',
    )
    mixed = attention(LayerNorm(self.norm_eps, name='ln_1')(x), mask, place)
    x = self.layout(mixed + (x if place is None else at(x, place)))
    return self.layout(x + mlp(LayerNorm(self.norm_eps, name='ln_2')(x)))


class Transformer(nn.Module):
  """`depth` blocks under `lax.scan`: compile time does not grow with depth.

  Their parameters are stacked in `blocks`, the first axis of each being that of
  the layers. With `unroll`, they are `block_0`, `block_1`, … instead: CPUs
  would copy each block's weights out of the stack at every step of the scan
  (`inference/cpu_layout.py` makes such parameters). `remat` is for training and
  means nothing then.
  """

  depth: int
  heads: int
  mlp_ratio: float
  activation: str
  norm_eps: float
  dtype: Dtype
  remat: str = 'none'
  unroll: bool = False
  layout: Layout = as_it_is

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B L D'],
    mask: Bool[Array, 'L L'] | None = None,
    place: Place | None = None,
    kept_layer: int | None = None,
  ) -> Float[Array, 'B *L D']:
    """The residual stream after the last block, or after `kept_layer`.

    Args:
      x: tokens.
      mask: true where a row's token may look at a column's.
      place: the only token that is asked for, [B, D]. In the last block, others
        are but keys and values, which spares most of its arithmetic.
      kept_layer: a block's index from 0; None is the last.
    """
    block: Any = Block(
      self.depth,
      self.heads,
      self.mlp_ratio,
      self.activation,
      self.norm_eps,
      self.dtype,
      self.layout,
      parent=None,  # its parameters are held here, as those of all blocks
    )

    def new(key: jax.Array) -> Any:
      return block.init(key, x, mask)['params']

    def run(x: jax.Array, params: Any) -> tuple[jax.Array, None]:
      return block.apply({'params': params}, x, mask), None

    def run_last(x: jax.Array, params: Any) -> jax.Array:
      return block.apply({'params': params}, x, mask, place)

    end = self.depth if kept_layer is None else kept_layer + 1
    if self.unroll:
      *first, last = (self.param(f'block_{i}', new) for i in range(end))
      for params in first:
        x, _ = run(x, params)
      return run_last(x, last)
    blocks = self.param(
      'blocks', lambda key: jax.vmap(new)(jax.random.split(key, self.depth))
    )
    if self.remat != 'none':
      run = jax.checkpoint(
        run,
        policy=REMAT_POLICIES[self.remat],
        prevent_cse=False,  # a scanned body needs no guard against CSE
      )
    if place is None:
      return jax.lax.scan(run, x, jax.tree.map(lambda p: p[:end], blocks))[0]
    # A split's derivative is one concatenation, that of two slices is a sum.
    leaves, structure = jax.tree.flatten(blocks)
    parts = [jax.lax.split(leaf, (self.depth - 1, 1)) for leaf in leaves]
    first, last = (
      structure.unflatten(part) for part in zip(*parts, strict=True)
    )
    x, _ = jax.lax.scan(run, x, first)
    return run_last(x, jax.tree.map(lambda p: p[0], last))
