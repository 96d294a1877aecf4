"""The image tower: a Vision Transformer with CLIP's LayerNorm in front.

Shapes: B images, S pixels a side, G patches a side, L tokens, D width.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from clip_jax.models.config import VisionTransformerConfig
from clip_jax.models.layers import Dtype, LayerNorm, Transformer, normal


class VisionTransformer(nn.Module):
  """Normalised pixels to one vector an image (paper, section 2.4)."""

  config: VisionTransformerConfig
  dtype: Dtype = jnp.float32
  remat: str = 'none'

  def setup(self):
    config = self.config
    std = config.width**-0.5
    self.patch_embedding = nn.Conv(
      config.width,
      (config.patch_size, config.patch_size),
      strides=(config.patch_size, config.patch_size),
      padding='VALID',
      use_bias=False,
      dtype=self.dtype,
    )
    tokens = config.patches
    if config.pooling == 'class_token':
      tokens += 1
      self.class_embedding = self.param(
        'class_embedding', normal(std), (config.width,)
      )
    self.position_embedding = self.param(
      'position_embedding', normal(std), (tokens, config.width)
    )
    if config.pre_norm:
      self.ln_pre = LayerNorm()
    self.transformer = Transformer(
      config.depth,
      config.heads,
      config.mlp_ratio,
      config.activation,
      self.dtype,
      self.remat,
    )
    self.ln_post = LayerNorm()

  def embed(self, images: Float[Array, 'B S S 3']) -> Float[Array, 'B L D']:
    """The tokens that enter the first block; a class token comes first."""
    x = self.patch_embedding(images.astype(self.dtype))  # B G G D
    x = x.reshape(x.shape[0], -1, x.shape[-1])  # B G*G D
    if self.config.pooling == 'class_token':
      first = self.class_embedding.astype(x.dtype)
      first = jnp.broadcast_to(first, (x.shape[0], 1, x.shape[-1]))
      x = jnp.concatenate([first, x], axis=1)  # B L D
    x = x + self.position_embedding.astype(x.dtype)
    return self.ln_pre(x) if self.config.pre_norm else x

  def __call__(self, images: Float[Array, 'B S S 3']) -> Float[Array, 'B D']:
    """The pooled vector, before the projection into the joint space."""
    x = self.ln_post(self.transformer(self.embed(images)))
    return x[:, 0] if self.config.pooling == 'class_token' else x.mean(1)

  def tokens(
    self, images: Float[Array, 'B S S 3'], layer: int
  ) -> Float[Array, 'B L D']:
    """Patch tokens after block `layer` (0-based), row by row, no class token.

    They are the residual stream as it is: `ln_post` belongs to the pooling.
    """
    x = self.transformer(self.embed(images), kept_layer=layer)
    return x[:, 1:] if self.config.pooling == 'class_token' else x
