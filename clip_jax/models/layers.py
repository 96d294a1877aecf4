"""The layers that both towers share, from LayerNorm up to the Transformer.

Letters in shapes: B examples, L tokens (M where they are attended to), D width,
N heads, K width of a head, W = N x K.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from clip_jax.models import kernels
from clip_jax.models.config import (
  DecoderConfig,
  LoRAConfig,
  TextTransformerConfig,
  VisionTransformerConfig,
)

Dtype = Any
TransformerConfig = (
  VisionTransformerConfig | TextTransformerConfig | DecoderConfig
)
normal = nn.initializers.normal

# One position in all rows of tokens, or an array [B] with one for each row.
TokenIndex = int | Int[Array, ' B']

# A mask is True where a token (row) attends to another (column), alike in all
# examples, best a NumPy array, which a kernel can see to be causal; or, of each
# example, True for the tokens that are attended to, all before its padding.
AnyArray = Array | np.ndarray
Mask = Bool[AnyArray, 'L L'] | Bool[Array, 'B 1 1 L']

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'gelu': lambda x: nn.gelu(x, approximate=False),
  'gelu_tanh': lambda x: nn.gelu(x, approximate=True),
  # Hendrycks and Gimpel's sigmoid form, which all of OpenAI's weights use.
  'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),
}


def accumulation_dtype(dtype: Dtype) -> Dtype:
  """Returns the dtype for sums that bfloat16 would spoil: float32 or wider."""
  return jnp.promote_types(dtype, jnp.float32)


class LayerNorm(nn.Module):
  """Normalises each token in float32; the result has the input's dtype."""

  eps: float = 1e-5

  @nn.compact
  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
    h = x.astype(accumulation_dtype(x.dtype))
    h = h - h.mean(-1, keepdims=True)
    h = h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + self.eps)
    return (h * scale + bias).astype(x.dtype)


def dot_product_attention(
  q: Float[Array, 'B N L K'],
  k: Float[Array, 'B N M K'],
  v: Float[Array, 'B N M K'],
  mask: Bool[AnyArray, '*B #L M'] | None = None,
) -> Float[Array, 'B L N K']:
  """Returns softmax(q k^T / sqrt(K)) v; the softmax is in float32 or wider."""
  logits = jnp.einsum('BNLK,BNMK->BNLM', q * q.shape[-1] ** -0.5, k)
  logits = logits.astype(accumulation_dtype(q.dtype))
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
  weights = jax.nn.softmax(logits).astype(v.dtype)
  return jnp.einsum('BNLM,BNMK->BNLK', weights, v).swapaxes(1, 2)


class Attention(nn.Module):
  """Multi-head attention of tokens to each other, or to those of a context.

  In the former, queries, keys and values come from one product, as in OpenAI's
  `in_proj_weight`: kernel [D, 3, N, K]. In the latter keys and values do, from
  tokens of any width C: [C, 2, N, K].
  """

  heads: int
  out_std: float
  dtype: Dtype

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B L D'],
    mask: Bool[AnyArray, '*B Q L'] | None = None,
    query: Float[Array, 'B D'] | None = None,
    context: Float[Array, 'B M C'] | None = None,
  ) -> Float[Array, 'B *L D']:
    """Returns the output for all tokens, or for `query` alone, [B, D]."""
    width = x.shape[-1]
    if context is not None:
      [q] = split_heads(self._projected(x, width, 1, 'q'), self.heads)
      k, v = split_heads(self._projected(context, width, 2, 'kv'), self.heads)
      heads = dot_product_attention(q, k, v, mask)
    elif query is None:
      qkv = checkpoint_name(self._projected(x, width, 3, 'qkv'), 'qkv')
      heads = checkpoint_name(self.attend(qkv, mask), 'attention')
    else:
      heads = QueryAttention(self.heads, self.dtype, name='qkv')(query, x, mask)
    return nn.DenseGeneral(
      width,
      axis=(-2, -1),
      kernel_init=normal(self.out_std),
      dtype=self.dtype,
      dot_general=kernels.dot_general,
      name='out',
    )(heads)

  def attend(
    self,
    qkv: Float[Array, 'B L 3 W'],
    mask: Bool[AnyArray, '*B #L L'] | None,
  ) -> Float[Array, 'B L N K']:
    """Returns softmax(q k^T / sqrt(K)) v of each head.

    TPUs and GPUs compute it by the kernels of `parallel/attention.py`, in train
    steps and in encoders; exported programs have this formula.
    """
    q, k, v = split_heads(qkv, self.heads)
    return dot_product_attention(q, k, v, mask)

  def _projected(
    self, x: Float[Array, 'B L C'], width: int, count: int, name: str
  ) -> Float[Array, 'B L count W']:
    """Returns `count` projections of tokens, each with its heads in a row."""
    shape = (count, self.heads, width // self.heads)
    return Projection(shape, self.dtype, name=name)(x)


class Projection(nn.Module):
  """A linear layer to n rows of heads, with the kernel [C, n, N, K]."""

  shape: tuple[int, int, int]  # n, N, K
  dtype: Dtype

  @nn.compact
  def __call__(self, x: Float[Array, 'B L C']) -> Float[Array, 'B L n W']:
    width = x.shape[-1]
    init = normal(width**-0.5)
    kernel = self.param('kernel', init, (width, *self.shape))
    bias = self.param('bias', nn.initializers.zeros, self.shape)
    x, kernel, bias = (
      jnp.asarray(array, self.dtype) for array in (x, kernel, bias)
    )
    return kernels.project(x, kernel) + bias.reshape(self.shape[0], -1)


def split_heads(
  projected: Float[Array, 'B L n W'], heads: int
) -> list[Float[Array, 'B N L K']]:
  """Returns each projection with heads before tokens.

  One transpose is faster on a CPU than one for each of them.
  """
  rows = projected.reshape(*projected.shape[:3], heads, -1)
  return kernels.unstack(jnp.moveaxis(rows, (2, 3), (0, 2)))


class QueryAttention(nn.Module):
  """Attention of one query to a row of tokens, as attention pooling uses it.

  The parameters are those of `Attention` without its output product.
  """

  heads: int
  dtype: Dtype

  @nn.compact
  def __call__(
    self,
    query: Float[Array, 'B D'],
    x: Float[Array, 'B L D'],
    mask: Bool[AnyArray, '*B 1 L'] | None = None,
  ) -> Float[Array, 'B N K']:
    width = x.shape[-1]
    shape = (3, self.heads, width // self.heads)
    kernel = self.param('kernel', normal(width**-0.5), (width, *shape))
    bias = self.param('bias', nn.initializers.zeros, shape)
    query, x, kernel, bias = (
      jnp.asarray(array, self.dtype) for array in (query, x, kernel, bias)
    )
    q = jnp.einsum('BD,DNK->BNK', query, kernel[:, 0]) + bias[0]
    contract = (((x.ndim - 1,), (0,)), ((), ()))
    kv = kernels.dot_general(x, kernel[:, 1:], contract) + bias[1:]
    k, v = jnp.moveaxis(kv, (2, 3), (0, 2))  # B N L K
    return dot_product_attention(q[:, :, None], k, v, mask)[:, 0]


class MLP(nn.Module):
  """Two products with an activation between them."""

  hidden: int
  activation: str
  out_std: float
  dtype: Dtype
  out_width: int | None = None  # None: that of the input

  @nn.compact
  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B E']:
    width = x.shape[-1]
    h = nn.Dense(
      self.hidden,
      kernel_init=normal((2 * width) ** -0.5),
      dtype=self.dtype,
      dot_general=kernels.dot_general,
      name='up',
    )(x)
    h = checkpoint_name(h, 'mlp_hidden')
    down = nn.Dense(
      self.out_width or width,
      kernel_init=normal(self.out_std),
      dtype=self.dtype,
      dot_general=kernels.dot_general,
      name='down',
    )

    def activate(down: nn.Dense, h: jax.Array) -> jax.Array:
      return down(ACTIVATIONS[self.activation](h))

    # The backward pass keeps h alone and computes the activation again, which
    # is cheaper than to keep four arrays of the hidden width.
    return nn.remat(activate, prevent_cse=False)(down, h)


class Block(nn.Module):
  """One residual block with LayerNorm first.

  Standard deviations of the initial weights follow OpenAI's code: the outputs
  of the residual branches shrink with the depth of the stack.
  """

  config: TransformerConfig
  dtype: Dtype

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B L D'],
    mask: Mask | None = None,
    token_index: TokenIndex | None = None,
    context: Float[Array, 'B M C'] | None = None,
  ) -> Float[Array, 'B *L D']:
    """Returns all tokens, or [B, D] for the one at `token_index`.

    With a `context`, all tokens read it between attention and MLP; it does
    not go together with `token_index`.
    """
    c = self.config
    hidden = int(c.width * c.mlp_ratio)
    out_std = c.width**-0.5 * (2 * c.depth) ** -0.5
    attention = Attention(c.heads, out_std, self.dtype, name='attention')
    mlp = MLP(hidden, c.activation, out_std, self.dtype, name='mlp')
    h = LayerNorm(c.norm_eps, name='ln_1')(x)
    query = None
    if token_index is not None:  # other tokens only give keys and values
      x, query = (take_token(array, token_index) for array in (x, h))
      if mask is not None and mask.ndim == 2:  # not each example's own
        mask = jnp.asarray(mask)[token_index][..., None, None, :]
    x = x + attention(h, mask, query)
    if context is not None:
      read = Attention(c.heads, out_std, self.dtype, name='cross_attention')
      h = LayerNorm(c.norm_eps, name='ln_cross')(x)
      x = x + read(h, context=context)
    return x + mlp(LayerNorm(c.norm_eps, name='ln_2')(x))


def take_token(
  x: Float[Array, 'B L D'], token_index: TokenIndex
) -> Float[Array, 'B D']:
  """Returns the token of each row at `token_index`."""
  if isinstance(token_index, int):
    return x[:, token_index]
  return jnp.take_along_axis(x, token_index[:, None, None], axis=1)[:, 0]


class Transformer(nn.Module):
  """A stack of blocks under `lax.scan`, which compiles one block only.

  The parameters are stacked in `blocks`: the first axis of each array is that
  of the layers. `remat` is as `kernels.remat_policies` takes it.
  """

  config: TransformerConfig
  dtype: Dtype = jnp.float32
  remat: str = 'none'
  lora: LoRAConfig | None = None  # adapters of each block

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B L D'],
    mask: Mask | None = None,
    token_index: TokenIndex | None = None,
    layers: tuple[int, ...] = (),
    context: Float[Array, 'B M C'] | None = None,
  ) -> Float[Array, '*n D']:
    """Returns the residual stream after the last block, or after `layers`.

    Args:
      x: tokens.
      mask: true where a token is attended to.
      token_index: the only token to return, [B, D]; None returns all.
      layers: indices of blocks, from 0 and ascending; the result is that after
        each of them, [n, B, L, D].
      context: tokens that each block reads by attention of its own, such as
        an image's.
    """
    depth = self.config.depth
    # This module holds the parameters of all blocks; `block` has none itself.
    block: Any = Block(self.config, self.dtype, parent=None)

    if self.lora is not None:
      from clip_jax.models.lora import AdaptedBlock

      block = AdaptedBlock(block, self.lora)

    def init_block(key: jax.Array) -> Any:
      return block.init(key, x, mask, context=context)

    def init(key: jax.Array) -> Any:
      keys = jax.random.split(key, depth)
      return jax.vmap(lambda key: init_block(key)['params'])(keys)

    def run(x: jax.Array, params: Any) -> tuple[jax.Array, None]:
      return block.apply({'params': params}, x, mask, context=context), None

    def run_last(x: jax.Array, params: Any) -> jax.Array:
      return block.apply({'params': params}, x, mask, token_index, context)

    wanted = layers or (depth - 1,)
    if kernels.is_unrolled(self):
      states = kernels.run_unrolled(self, wanted, run, run_last, x)
      return jnp.stack(states) if layers else states[0]
    # A train step that freezes some blocks gives a tuple of stacks.
    stacks = self.get_variable('params', 'blocks')
    if not isinstance(stacks, tuple):
      stacks = (self.param('blocks', init),)
    policies = kernels.remat_policies(self.remat, depth)
    # A scan ends where the policy changes, or where tokens are read.
    ends = {i for i in range(1, depth) if policies[i] != policies[i - 1]}
    ends |= {layer + 1 for layer in wanted}
    if token_index is not None:
      ends.add(depth - 1)
    states = []
    for part, stack in kernels.split_stacks(stacks, ends, wanted[-1] + 1):
      if token_index is not None and part[-1] == depth - 1:
        return run_last(x, jax.tree.map(lambda leaf: leaf[0], stack))
      x, _ = jax.lax.scan(kernels.remat(run, policies[part[0]]), x, stack)
      if part[-1] in wanted:
        states.append(x)
    return jnp.stack(states) if layers else states[0]
