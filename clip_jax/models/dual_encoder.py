"""CLIP as a module: two towers, two projections and a temperature.

Shapes: B pairs, S pixels a side, T tokens, E the joint space.
"""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Num

from clip_jax.models.config import CLIPConfig, ResNetConfig
from clip_jax.models.layers import Dtype, accumulation_dtype, normal
from clip_jax.models.resnet import ResNet
from clip_jax.models.text_transformer import TextTransformer
from clip_jax.models.vision_transformer import VisionTransformer


class DualEncoder(nn.Module):
  """CLIP (paper, figure 3), a module without state of its own.

  Its variables are the collection 'params', and with a ResNet 'batch_stats'.

  `dtype` is that of the towers' arithmetic; parameters are float32, and so
  are the features and the temperature. `remat` is one of `REMAT_POLICIES`.
  """

  config: CLIPConfig
  dtype: Dtype = jnp.float32
  remat: str = 'none'

  def setup(self):
    config = self.config
    if isinstance(config.image, ResNetConfig):
      self.image = ResNet(config.image, self.dtype, self.remat)
    else:
      self.image = VisionTransformer(config.image, self.dtype, self.remat)
    self.text = TextTransformer(config.text, self.dtype, self.remat)
    self.image_projection = self._projection(
      config.image.projection, config.image.pooled_width
    )
    self.text_projection = self._projection(
      config.text.projection, config.text.width
    )
    constant = nn.initializers.constant
    self.logit_scale = self.param(
      'logit_scale', constant(math.log(config.initial_logit_scale)), ()
    )
    if config.initial_logit_bias is not None:
      self.logit_bias = self.param(
        'logit_bias', constant(config.initial_logit_bias), ()
      )

  def _projection(self, kind: str, width: int) -> nn.Dense | None:
    if kind == 'none':
      return None
    return nn.Dense(
      self.config.embed_dim,
      use_bias=kind == 'affine',
      kernel_init=normal(width**-0.5),
      dtype=self.dtype,
    )

  def __call__(
    self,
    images: Float[Array, 'B S S 3'],
    tokens: Int[Array, 'C T'],
    train: bool = False,
    kept_patches: Int[Array, 'B K'] | None = None,
  ) -> tuple[
    Float[Array, 'B E'],
    Float[Array, 'C E'],
    Float[Array, ''],
    Float[Array, ''],
  ]:
    """Returns what a contrastive loss takes, from both towers.

    Args:
      images: normalised pixels (see `normalize`).
      tokens: int32 ids, padded to the context length.
      train: a ResNet normalises by the batch, and updates the collection
        'batch_stats', which must then be mutable.
      kept_patches: the indices of each image's patches that a ViT sees; None
        is all.
    Returns:
      Unit-length image features, unit-length text features, the exponentiated
      logit scale, and the logit bias (0 where the model has none).
    """
    outputs = self.outputs(
      images,
      tokens,
      frozenset({'image_features', 'text_features'}),
      train=train,
      kept_patches=kept_patches,
    )
    return (
      outputs['image_features'],
      outputs['text_features'],
      *self.temperature(),
    )

  def outputs(
    self,
    images: Float[Array, 'B S S 3'],
    tokens: Int[Array, 'C T'],
    names: frozenset[str],
    train: bool = False,
    kept_patches: Int[Array, 'B K'] | None = None,
  ) -> dict[str, Array]:
    """Returns what an objective reads of the towers, each of them run once.

    Args:
      images, tokens, train, kept_patches: as in `__call__`.
      names: what is read; a tower of which nothing is read is not run.
    Returns:
      Of `names`, 'image_features' [B, E] and 'text_features' [C, E], unit
      length.
    """
    outputs = {}
    if 'image_features' in names:
      features = self.encode_image(images, train, kept_patches)
      outputs['image_features'] = unit_length(features)
    if 'text_features' in names:
      outputs['text_features'] = unit_length(self.encode_text(tokens))
    return outputs

  def temperature(self) -> tuple[Float[Array, ''], Float[Array, '']]:
    """Returns the exponentiated logit scale, and the logit bias, or 0."""
    scale = jnp.exp(self.logit_scale)
    if self.config.initial_logit_bias is None:
      return scale, jnp.zeros((), scale.dtype)
    return scale, jnp.asarray(self.logit_bias)

  def encode_image(
    self,
    images: Float[Array, 'B S S 3'],
    train: bool = False,
    kept_patches: Int[Array, 'B K'] | None = None,
  ) -> Float[Array, 'B E']:
    """Returns image features, float32, before they are normalised."""
    # Only a ViT takes patches.
    patches = () if kept_patches is None else (kept_patches,)
    tower: Any = self.image
    return self._project_image(tower(images, train, *patches))

  def pooled_and_projected(
    self, images: Float[Array, 'B S S 3']
  ) -> tuple[Float[Array, 'B D'], Float[Array, 'B E']]:
    """Returns image features before the projection and after it, float32.

    Before it they are the pooled token of a ViT (I_f of the paper's figure 3).
    A ResNet's last product belongs to its pooling, so that both are the same.
    """
    pooled = self.image(images)
    projected = self._project_image(pooled)
    if isinstance(self.config.image, ResNetConfig):
      return projected, projected
    return _in_float32(pooled), projected

  def encode_text(self, tokens: Int[Array, 'B T']) -> Float[Array, 'B E']:
    """Returns text features, float32, before they are normalised."""
    x = self.text(tokens)
    return _in_float32(self.text_projection(x) if self.text_projection else x)

  def _project_image(self, x: Float[Array, 'B D']) -> Float[Array, 'B E']:
    return _in_float32(self.image_projection(x) if self.image_projection else x)

  def image_tokens(
    self, images: Float[Array, 'B S S 3'], layer: int
  ) -> Float[Array, 'B L D']:
    """Returns patch tokens, float32, after block or stage `layer`, from 0."""
    return _in_float32(self.image.tokens(images, layer))


def unit_length(x: Float[Array, 'B E']) -> Float[Array, 'B E']:
  """Returns rows divided by their L2 norm; a row of zeros stays one."""
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  return x * jnp.where(square > 0, jnp.maximum(square, 1e-24), 1.0) ** -0.5


def normalize(
  images: Num[Array, 'B S S 3'],
  mean: tuple[float, float, float],
  std: tuple[float, float, float],
) -> Float[Array, 'B S S 3']:
  """Returns what an image tower reads: (uint8 pixels / 255 - mean) / std."""
  pixels = images.astype(jnp.float32) / 255.0
  return (pixels - jnp.asarray(mean)) / jnp.asarray(std)


def _in_float32(x: Float[Array, '*B E']) -> Float[Array, '*B E']:
  return x.astype(accumulation_dtype(x.dtype))
