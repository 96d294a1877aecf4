"""The image tower: a Vision Transformer with CLIP's LayerNorm in front.

Shapes: B images, S pixels a side, P pixels a side of a patch, L tokens, D
width.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from clip_jax.data.images import Patches
from clip_jax.models.config import LoRAConfig, VisionTransformerConfig
from clip_jax.models.layers import (
  MLP,
  Dtype,
  LayerNorm,
  QueryAttention,
  Transformer,
  normal,
)

# Squares, or images of any aspect as padded patches (NaFlex).
Images = Float[Array, 'B S S 3'] | Patches
NoPadding = Bool[Array, 'B 1 1 L']  # a mask, as attention takes it


class VisionTransformer(nn.Module):
  """Turns the normalised pixels of an image into one vector (section 2.4)."""

  config: VisionTransformerConfig
  dtype: Dtype = jnp.float32
  remat: str = 'none'
  lora: LoRAConfig | None = None

  def setup(self):
    config = self.config
    std = config.width**-0.5
    # The paper's convolution, whose stride is its size, as a matrix product
    # with kernel [P, P, 3, D], which is faster on a CPU.
    self.patch_embedding = nn.DenseGeneral(
      config.width,
      axis=(-3, -2, -1),
      use_bias=config.patch_bias,
      dtype=self.dtype,
    )
    if config.class_token:
      self.class_embedding = self.param(
        'class_embedding', normal(std), (config.width,)
      )
    tokens = config.patches + config.class_token
    self.position_embedding = self.param(
      'position_embedding', normal(std), (tokens, config.width)
    )
    if config.pre_norm:
      self.ln_pre = LayerNorm(config.norm_eps)
    self.transformer = Transformer(config, self.dtype, self.remat, self.lora)
    self.ln_post = LayerNorm(config.norm_eps)
    if config.pooling == 'attention':
      self.attention_pool = AttentionPool(config, self.dtype)

  def embed(
    self, images: Images, kept_patches: Int[Array, 'B K'] | None = None
  ) -> tuple[Float[Array, 'B L D'], NoPadding | None]:
    """Returns tokens for the first block, a class token first, and a mask."""
    if isinstance(images, Patches):
      from clip_jax.models import native_aspect

      x = native_aspect.without_padding(images).astype(self.dtype)
      table = self.position_embedding
      positions = native_aspect.positions(table, self.config, images)
      mask = native_aspect.mask(self.config, images, kept_patches)
    else:
      x = split_into_patches(images.astype(self.dtype), self.config)
      positions, mask = self.position_embedding, None
    x = self.patch_embedding(x)
    if self.config.class_token:
      first = self.class_embedding.astype(x.dtype)
      first = jnp.broadcast_to(first, (x.shape[0], 1, x.shape[-1]))
      x = jnp.concatenate([first, x], axis=1)  # B L D
    x = x + positions.astype(x.dtype)
    if kept_patches is not None:
      first = int(self.config.class_token)
      kept = jnp.take_along_axis(x[:, first:], kept_patches[..., None], axis=1)
      x = jnp.concatenate([x[:, :first], kept], axis=1)
    return self.ln_pre(x) if self.config.pre_norm else x, mask

  def __call__(
    self,
    images: Images,
    train: bool = False,
    kept_patches: Int[Array, 'B K'] | None = None,
  ) -> Float[Array, 'B D']:
    """Returns the pooled vector, before its projection to the joint space.

    Args:
      images: normalised pixels; of `Patches`, what is padding is not seen.
      train: ignored; a ViT computes the same in training.
      kept_patches: the indices of each image's patches to keep; None is all.
    """
    if self.config.pooling == 'class_token':
      # LayerNorm acts on each token by itself: one token is enough.
      x, mask = self.embed(images, kept_patches)
      return self.ln_post(self.transformer(x, mask, token_index=0))
    return self.pooled_and_tokens(images, train, kept_patches)[0]

  def pooled_and_tokens(
    self,
    images: Images,
    train: bool = False,
    kept_patches: Int[Array, 'B K'] | None = None,
  ) -> tuple[Float[Array, 'B D'], Float[Array, 'B L D']]:
    """Returns the pooled vector, and all tokens after the last LayerNorm.

    A class token comes first.

    Args:
      images, train, kept_patches: as in `__call__`.
    """
    del train
    x, mask = self.embed(images, kept_patches)
    return self.pool(self.transformer(x, mask), mask)

  def pool(
    self, x: Float[Array, 'B L D'], mask: NoPadding | None
  ) -> tuple[Float[Array, 'B D'], Float[Array, 'B L D']]:
    """Returns what `pooled_and_tokens` does, from what the last block gave."""
    tokens = self.ln_post(x)
    if self.config.pooling == 'class_token':
      return tokens[:, 0], tokens
    if self.config.norm_after_pooling:
      return self.ln_post(self._pool(x, mask)), tokens
    return self._pool(tokens, mask), tokens

  def _pool(
    self, x: Float[Array, 'B L D'], mask: NoPadding | None
  ) -> Float[Array, 'B D']:
    if self.config.pooling == 'attention':
      return self.attention_pool(x, mask)
    first = int(self.config.class_token)
    if mask is None:
      return x[:, first:].mean(1)
    from clip_jax.models.native_aspect import average

    return average(x, mask, first)


def split_into_patches(
  images: Float[Array, 'B S S 3'], config: VisionTransformerConfig
) -> Float[Array, 'B L P P 3']:
  """Returns the patches row by row, without a border that fills none."""
  count, grid, size = images.shape[0], config.grid, config.patch_size
  images = images[:, : grid * size, : grid * size]
  x = images.reshape(count, grid, size, grid, size, 3)
  return x.swapaxes(2, 3).reshape(count, grid * grid, size, size, 3)


class AttentionPool(nn.Module):
  """A learned query reads the tokens; a residual MLP follows (MAP head).

  SigLIP (arXiv 2303.15343), after Set Transformer's pooling by multi-head
  attention (arXiv 1810.00825): no LayerNorm before the attention.
  """

  config: VisionTransformerConfig
  dtype: Dtype

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B L D'], mask: NoPadding | None = None
  ) -> Float[Array, 'B D']:
    config, width = self.config, x.shape[-1]
    probe = self.param('probe', normal(width**-0.5), (width,))
    probe = jnp.broadcast_to(probe, (x.shape[0], width))
    attention = QueryAttention(config.heads, self.dtype, name='qkv')
    read = attention(probe, x, mask)
    x = nn.DenseGeneral(
      width,
      axis=(-2, -1),
      kernel_init=normal(width**-0.5),
      dtype=self.dtype,
      name='out',
    )(read)
    mlp = MLP(
      int(width * config.mlp_ratio),
      config.activation,
      width**-0.5,
      self.dtype,
      name='mlp',
    )
    return x + mlp(LayerNorm(config.norm_eps, name='ln')(x))
