"""The tokens of images, as vision-language models read them of a tower.

Shapes: B images, L tokens of each, D width of the tower.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from clip_jax.errors import UsageError
from clip_jax.models.config import CLIPConfig, ResNetConfig
from clip_jax.models.description import Description
from clip_jax.models.layers import accumulation_dtype
from clip_jax.models.vision_transformer import Images


def image_tokens(
  tower: Any,
  images: Images,
  layers: tuple[int, ...],
  class_token: bool = False,
  final_norm: bool = False,
) -> list[Float[Array, 'B L D']]:
  """Returns the tokens after some blocks, or stages of a ResNet, in one pass.

  Patches come row by row. They are the residual stream as it is, unless the
  tower's last LayerNorm is asked for. Padding is zeros.

  Args:
    tower: a `VisionTransformer` or a `ResNet`, bound.
    images: normalised pixels.
    layers: indices from 0, ascending.
    class_token: keep it, as the first.
    final_norm: send the tokens of every layer through the last LayerNorm.
  Returns:
    float32 (or wider), of each layer.
  """
  config = tower.config
  if isinstance(config, ResNetConfig):
    maps = tower.stages(images)[1:]
    states = [
      maps[i].reshape(len(images), -1, maps[i].shape[-1]) for i in layers
    ]
  else:
    x, mask = tower.embed(images)
    x = tower.transformer(x, mask, layers=layers)  # n B L D
    x = tower.ln_post(x) if final_norm else x
    if mask is not None:
      x = jnp.where(mask[:, 0, 0, :, None], x, 0)
    states = x if class_token or not config.class_token else x[:, :, 1:]
  return [x.astype(accumulation_dtype(x.dtype)) for x in states]


def layer_indices(config: CLIPConfig, layers: Sequence[Any]) -> list[int]:
  """Returns the indices of blocks or stages, some counted from the end.

  Raises:
    UsageError: one is not there, or none is named.
  """
  depth = config.image.depth
  if not layers:
    raise UsageError(f'layer={tuple(layers)}: name one, or more: (-2, -4).')
  for layer in layers:
    whole = isinstance(layer, int | np.integer) and not isinstance(layer, bool)
    if not whole or not -depth <= layer < depth:
      parts = 'stages' if isinstance(config.image, ResNetConfig) else 'blocks'
      raise UsageError(
        f'layer={layer}: the image tower has {depth} {parts}, so use 0 to '
        f'{depth - 1}, or -{depth} to -1 from the end.'
      )
  return [int(layer) % depth for layer in layers]


def check_options(
  config: CLIPConfig, *, class_token: bool, final_norm: bool
) -> None:
  """Refuses what an image tower does not have.

  Raises:
    UsageError: there is no class token, or no last LayerNorm.
  """
  tower = config.image
  is_resnet = isinstance(tower, ResNetConfig)
  if class_token and (is_resnet or not tower.class_token):
    raise UsageError(
      'class_token=True: the image tower has no class token; leave it out.'
    )
  if final_norm and is_resnet:
    raise UsageError(
      'final_norm=True: a ResNet ends without a LayerNorm; leave it out.'
    )


def token_shape(
  description: Description, layer: int, class_token: bool
) -> tuple[int, int]:
  """Returns L and D of the tokens after a layer."""
  image, preprocessing = description.model.image, description.preprocessing
  if isinstance(image, ResNetConfig):
    later = 2 ** (image.depth - 1 - layer)  # how much finer than the last map
    return image.patches * later**2, image.pooled_width // later
  patches = image.patches
  if preprocessing.is_native:
    patches = preprocessing.max_patches
  return patches + class_token, image.width


def pooled_and_block(
  tower: Any,
  images: Images,
  layer: int,
  kept_patches: Int[Array, 'B K'] | None = None,
) -> tuple[Float[Array, 'B D'], Float[Array, 'B L D']]:
  """Returns a ViT's pooled vector, and the patches' tokens after one block.

  Where only the tokens are read, a compiler leaves out the blocks above.

  Args:
    tower: a `VisionTransformer`, bound.
    layer: the index of a block; a negative one counts from the end.
    kept_patches: as in `VisionTransformer.__call__`.
  """
  depth = tower.config.depth
  x, mask = tower.embed(images, kept_patches)
  layers = sorted({layer % depth, depth - 1})
  states = tower.transformer(x, mask, layers=tuple(layers))
  pooled, _ = tower.pool(states[-1], mask)
  return pooled, states[0][:, int(tower.config.class_token) :]
