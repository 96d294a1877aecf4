"""The image tower: a Vision Transformer with CLIP's LayerNorm in front.

Shapes: B images, S pixels a side, P pixels a side of a patch, L tokens, D
width.
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
  unroll: bool = False

  def setup(self):
    config = self.config
    std = config.width**-0.5
    # The convolution of the paper as the product that it is: kernel
    # [P, P, 3, D]. CPUs are slow at it in the other form.
    self.patch_embedding = nn.DenseGeneral(
      config.width,
      axis=(-3, -2, -1),
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
      self.unroll,
    )
    self.ln_post = LayerNorm()

  def embed(self, images: Float[Array, 'B S S 3']) -> Float[Array, 'B L D']:
    """The tokens that enter the first block; a class token comes first."""
    x = self.patch_embedding(_patches(images, self.config.patch_size))
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


def _patches(
  images: Float[Array, 'B S S 3'], size: int
) -> Float[Array, 'B L P P 3']:
  """Squares of `size` pixels a side, row by row."""
  count, side = images.shape[0], images.shape[1] // size
  x = images.reshape(count, side, size, side, size, 3)
  return x.swapaxes(2, 3).reshape(count, side * side, size, size, 3)
