"""Two towers, two projections and a temperature: all there is to CLIP.

Shapes: B pairs, S pixels a side, T tokens, E the joint space.
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Num

from clip_jax.models.config import CLIPConfig
from clip_jax.models.layers import Dtype, normal, wide
from clip_jax.models.text_transformer import TextTransformer
from clip_jax.models.vision_transformer import VisionTransformer


class DualEncoder(nn.Module):
  """CLIP (paper, figure 3): `init` and `apply`, no state.

  `dtype` is that of the towers' arithmetic; parameters are float32, and so
  are the features and the temperature. `unroll`: see `Transformer`.
  """

  config: CLIPConfig
  dtype: Dtype = jnp.float32
  remat: str = 'none'
  unroll: bool = False

  def setup(self):
    config = self.config
    how = (self.dtype, self.remat, self.unroll)
    self.image = VisionTransformer(config.image, *how)
    self.text = TextTransformer(config.text, *how)
    self.image_projection = nn.Dense(
      config.embed_dim,
      use_bias=False,
      kernel_init=normal(config.image.width**-0.5),
      dtype=self.dtype,
    )
    self.text_projection = nn.Dense(
      config.embed_dim,
      use_bias=False,
      kernel_init=normal(config.text.width**-0.5),
      dtype=self.dtype,
    )
    self.logit_scale = self.param(
      'logit_scale',
      nn.initializers.constant(math.log(config.initial_logit_scale)),
      (),
    )

  def __call__(
    self, images: Float[Array, 'B S S 3'], tokens: Int[Array, 'C T']
  ) -> tuple[
    Float[Array, 'B E'],
    Float[Array, 'C E'],
    Float[Array, ''],
    Float[Array, ''],
  ]:
    """Both towers.

    Args:
      images: normalised pixels (see `normalize`).
      tokens: int32 ids, padded to the context length.
    Returns:
      Unit-length image features, unit-length text features, the exponentiated
      logit scale, and the logit bias (0: the softmax does not see one).
    """
    return (
      unit_length(self.encode_image(images)),
      unit_length(self.encode_text(tokens)),
      jnp.exp(self.logit_scale),
      jnp.zeros((), self.logit_scale.dtype),
    )

  def encode_image(
    self, images: Float[Array, 'B S S 3']
  ) -> Float[Array, 'B E']:
    """Image features, float32, before they are brought to unit length."""
    return _features(self.image_projection(self.image(images)))

  def encode_text(self, tokens: Int[Array, 'B T']) -> Float[Array, 'B E']:
    """Text features, float32, before they are brought to unit length."""
    return _features(self.text_projection(self.text(tokens)))

  def image_tokens(
    self, images: Float[Array, 'B S S 3'], layer: int
  ) -> Float[Array, 'B L D']:
    """Patch tokens after block `layer`: see `VisionTransformer.tokens`."""
    return self.image.tokens(images, layer).astype(wide(self.dtype))


def unit_length(x: Float[Array, 'B E']) -> Float[Array, 'B E']:
  """Rows divided by their L2 norm; a row of zeros stays one."""
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  return x * jnp.where(square > 0, jnp.maximum(square, 1e-24), 1.0) ** -0.5


def normalize(
  images: Num[Array, 'B S S 3'],
  mean: tuple[float, float, float],
  std: tuple[float, float, float],
) -> Float[Array, 'B S S 3']:
  """uint8 pixels to what the image tower reads: (x / 255 - mean) / std."""
  pixels = images.astype(jnp.float32) / 255.0
  return (pixels - jnp.asarray(mean)) / jnp.asarray(std)


def _features(x: Float[Array, 'B E']) -> Float[Array, 'B E']:
  return x.astype(wide(x.dtype))
