"""CLIP as a module: two towers, two projections and a temperature.

Shapes: B pairs, S pixels a side, T tokens, E the joint space.
"""

import math
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Num

from clip_jax.data.images import Patches
from clip_jax.models.config import (
  CLIPConfig,
  ImageConfig,
  ResNetConfig,
  TextTransformerConfig,
)
from clip_jax.models.layers import (
  MLP,
  Dtype,
  accumulation_dtype,
  normal,
  take_token,
)
from clip_jax.models.text_transformer import TextTransformer, pooled_index
from clip_jax.models.vision_transformer import Images, VisionTransformer

if TYPE_CHECKING:
  from clip_jax.models.decoder import Decoder


class DualEncoder(nn.Module):
  """CLIP (paper, figure 3), a module without state of its own.

  Its variables are the collection 'params', and with a ResNet 'batch_stats'.

  `dtype` is that of the towers' arithmetic; parameters are float32, and so
  are the features and the temperature. `remat` is as `kernels.remat_policies`
  takes it; of two, the text tower and the decoder have the second.
  """

  config: CLIPConfig
  dtype: Dtype = jnp.float32
  remat: str | tuple[str, str] = 'none'

  def setup(self):
    config, dtype, both = self.config, self.dtype, self.remat
    remat, text_remat = (both, both) if isinstance(both, str) else both
    lora = config.lora_of
    if isinstance(config.image, ResNetConfig):
      from clip_jax.models.resnet import ResNet

      self.image = ResNet(config.image, dtype, remat)
    else:
      self.image = VisionTransformer(config.image, dtype, remat, lora('image'))
    self.text = TextTransformer(config.text, dtype, text_remat, lora('text'))
    self.image_projection = self._projection(
      config.image, config.image.pooled_width
    )
    self.text_projection = self._projection(config.text, config.text.width)
    constant = nn.initializers.constant
    self.logit_scale = self.param(
      'logit_scale', constant(math.log(config.initial_logit_scale)), ()
    )
    if config.initial_logit_bias is not None:
      self.logit_bias = self.param(
        'logit_bias', constant(config.initial_logit_bias), ()
      )
    self.decoder = self._decoder(text_remat)

  def _decoder(self, remat: str) -> 'Decoder | None':
    if self.config.decoder is None:
      return None
    from clip_jax.models.decoder import make_decoder

    return make_decoder(self.config, self.dtype, remat)

  def _projection(
    self, tower: ImageConfig | TextTransformerConfig, width: int
  ) -> nn.Dense | MLP | None:
    if tower.projection == 'none':
      return None
    embed_dim, std = self.config.embed_dim, width**-0.5
    if not isinstance(tower, ResNetConfig) and tower.projection == 'mlp':
      return MLP(width, tower.activation, std, self.dtype, embed_dim)
    return nn.Dense(
      embed_dim,
      use_bias=tower.projection == 'affine',
      kernel_init=normal(std),
      dtype=self.dtype,
    )

  def __call__(
    self,
    images: Images,
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
      images: normalised pixels (see `normalize`); for a ViT, also `Patches`.
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
    if self.decoder is not None and self.is_initializing():
      self.decoder.make_parameters(tokens)
    return (
      outputs['image_features'],
      outputs['text_features'],
      *self.temperature(),
    )

  def outputs(
    self,
    images: Images,
    tokens: Int[Array, 'C T'],
    names: frozenset[str],
    train: bool = False,
    kept_patches: Int[Array, 'B K'] | None = None,
  ) -> dict[str, Array]:
    """Returns what an objective reads of the towers, each of them run once.

    Args:
      images, tokens, train, kept_patches: as in `__call__`. A ResNet whose
        'batch_stats' are not mutable uses them, as outside of training.
      names: what is read; a tower of which nothing is read is not run.
    Returns:
      Those of `names`:
      'image_features' [B, E], 'text_features' [C, E]: unit length.
      'pooled_image' [B, D]: what enters the projection.
      'image_tokens' [B, L, D]: what a decoder reads: all tokens after the last
      LayerNorm, a class token first, or those of `DecoderConfig.image_layer`;
      of a ResNet, the positions of its last map.
      'text_tokens' [C, T, D]: likewise.
    """
    train = train and self.is_mutable_collection('batch_stats')
    return {
      **self._image_outputs(images, names, train, kept_patches),
      **self._text_outputs(tokens, names),
    }

  def _image_outputs(
    self,
    images: Images,
    names: frozenset[str],
    train: bool,
    kept_patches: Int[Array, 'B K'] | None,
  ) -> dict[str, Array]:
    """Returns those of `names` that are of images."""
    read = names & {'image_features', 'pooled_image', 'image_tokens'}
    if not read:
      return {}
    tower: Any = self.image
    # Only a ViT takes patches.
    patches = () if kept_patches is None else (kept_patches,)
    outputs = {}
    if 'image_tokens' in read:
      pooled, tokens = self._pooled_and_tokens(images, train, *patches)
      outputs['image_tokens'] = tokens
    else:
      pooled = tower(images, train, *patches)
    outputs['pooled_image'] = pooled
    if 'image_features' in read:
      outputs['image_features'] = unit_length(self._project_image(pooled))
    return {name: outputs[name] for name in read}

  def _pooled_and_tokens(
    self, images: Images, train: bool, *kept_patches: Int[Array, 'B K']
  ) -> tuple[Float[Array, 'B D'], Float[Array, 'B L D']]:
    tower: Any = self.image
    decoder = self.config.decoder
    if decoder is None or decoder.image_layer is None:
      return tower.pooled_and_tokens(images, train, *kept_patches)
    from clip_jax.models.image_tokens import pooled_and_block

    return pooled_and_block(tower, images, decoder.image_layer, *kept_patches)

  def _text_outputs(
    self, tokens: Int[Array, 'C T'], names: frozenset[str]
  ) -> dict[str, Array]:
    """Returns those of `names` that are of texts."""
    if 'text_tokens' not in names:
      if 'text_features' not in names:
        return {}
      return {'text_features': unit_length(self.encode_text(tokens))}
    states = self.text(tokens, all_tokens=True)
    outputs = {'text_tokens': states}
    if 'text_features' in names:
      pooled = take_token(states, pooled_index(tokens, self.config.text))
      outputs['text_features'] = unit_length(self._project_text(pooled))
    return outputs

  def first_teacher(self, params: Any) -> dict[str, Any]:
    """Returns a momentum teacher: none, but of a `SelfDistilledEncoder`."""
    del params
    return {}

  def temperature(self) -> tuple[Float[Array, ''], Float[Array, '']]:
    """Returns the exponentiated logit scale, and the logit bias, or 0."""
    scale = jnp.exp(self.logit_scale)
    if self.config.initial_logit_bias is None:
      return scale, jnp.zeros((), scale.dtype)
    return scale, jnp.asarray(self.logit_bias)

  def encode_image(
    self,
    images: Images,
    train: bool = False,
    kept_patches: Int[Array, 'B K'] | None = None,
  ) -> Float[Array, 'B E']:
    """Returns image features, float32, before they are normalised."""
    # Only a ViT takes patches.
    patches = () if kept_patches is None else (kept_patches,)
    tower: Any = self.image
    return self._project_image(tower(images, train, *patches))

  def pooled_and_projected(
    self, images: Images
  ) -> tuple[Float[Array, 'B D'], Float[Array, 'B E']]:
    """Returns image features before the projection and after it, float32.

    Before it they are the pooled token of a ViT (I_f of the paper's figure 3).
    A ResNet's last product belongs to its pooling, so that both are the same.
    """
    tower: Any = self.image
    pooled = tower(images)
    projected = self._project_image(pooled)
    if isinstance(self.config.image, ResNetConfig):
      return projected, projected
    return _in_float32(pooled), projected

  def encode_text(self, tokens: Int[Array, 'B T']) -> Float[Array, 'B E']:
    """Returns text features, float32, before they are normalised."""
    return self._project_text(self.text(tokens))

  def _project_text(self, x: Float[Array, 'B D']) -> Float[Array, 'B E']:
    return _in_float32(self.text_projection(x) if self.text_projection else x)

  def caption_scores(
    self,
    seen: Float[Array, 'B *L D'],
    tokens: Int[Array, 'N T'],
  ) -> Float[Array, 'B N']:
    """Returns what the decoder's `scores` are.

    Args:
      seen: of `outputs`, the one that `DecoderConfig.reads_image` names.
      tokens: of captions.
    """
    assert self.config.decoder is not None and self.decoder is not None
    states = None
    if self.config.decoder.reads == 'text_tower':
      states = self.text(tokens, all_tokens=True)
    return self.decoder.scores(seen, tokens, states)

  def _project_image(self, x: Float[Array, 'B D']) -> Float[Array, 'B E']:
    return _in_float32(self.image_projection(x) if self.image_projection else x)

  def image_tokens(self, images: Images, *layers: Any, **options: Any) -> Any:
    """Returns what `models.image_tokens.image_tokens` does of the tower."""
    from clip_jax.models.image_tokens import image_tokens

    return image_tokens(self.image, images, *layers, **options)


def unit_length(x: Float[Array, '*B E']) -> Float[Array, '*B E']:
  """Returns rows divided by their L2 norm; a row of zeros stays one."""
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  return x * jnp.where(square > 0, jnp.maximum(square, 1e-24), 1.0) ** -0.5


def normalize(
  images: Num[Array, '*B S S 3'] | Patches,
  mean: tuple[float, float, float],
  std: tuple[float, float, float],
) -> Any:
  """Returns what an image tower reads: (uint8 pixels / 255 - mean) / std."""
  if isinstance(images, Patches):
    return images._replace(pixels=normalize(images.pixels, mean, std))
  pixels = images.astype(jnp.float32) / 255.0
  return (pixels - jnp.asarray(mean)) / jnp.asarray(std)


def _in_float32(x: Float[Array, '*B E']) -> Float[Array, '*B E']:
  return x.astype(accumulation_dtype(x.dtype))
