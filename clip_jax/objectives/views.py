"""Views of a batch's images, made on the device: crops, and masks of patches.

What is drawn is a few numbers for each image, so that micro-batches and a
resumed run make the same views again.

Shapes: B images, V views of each, S pixels a side, M masked patches.
"""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from clip_jax.models.config import VisionTransformerConfig

# Fractions of an image's area (SILC, arXiv 2310.13355, as in DINO).
GLOBAL_AREA = 0.4, 1.0
LOCAL_AREA = 0.05, 0.4
_ASPECTS = 3 / 4, 4 / 3  # width over height


def draw_crops(
  key: jax.Array, shape: Sequence[int], area: tuple[float, float]
) -> Float[Array, '*B 5']:
  """Draws rectangles: top, left, height, width, and whether it is mirrored.

  Area and aspect are drawn as for Inception's crops (arXiv 1409.4842), the
  latter on a logarithmic scale; a side that would be longer than the image is
  cut to it.

  Args:
    shape: of what is drawn, as (B, V).
    area: the least and the largest fraction of an image.
  Returns:
    Fractions of a side, and 0 or 1.
  """
  draws = jax.random.uniform(key, (5, *shape))
  areas = area[0] + (area[1] - area[0]) * draws[0]
  low, high = map(jnp.log, _ASPECTS)
  aspects = jnp.exp(low + (high - low) * draws[1])
  height = jnp.minimum(jnp.sqrt(areas / aspects), 1)
  width = jnp.minimum(jnp.sqrt(areas * aspects), 1)
  top, left = draws[2] * (1 - height), draws[3] * (1 - width)
  mirrored = (draws[4] < 0.5).astype(height.dtype)
  return jnp.stack([top, left, height, width, mirrored], axis=-1)


def draw_masked_patches(
  key: jax.Array, images: int, tower: VisionTransformerConfig, fraction: float
) -> Int[Array, 'B M']:
  """Draws the patches of each image that are hidden, independently."""
  noise = jax.random.uniform(key, (images, tower.patches))
  count = masked_patches(tower, fraction)
  return jnp.sort(jax.lax.top_k(noise, count)[1], axis=1)


def masked_patches(tower: VisionTransformerConfig, fraction: float) -> int:
  """Returns how many patches of an image are hidden: at least one."""
  return max(1, round(fraction * tower.patches))


def crop(
  images: Float[Array, 'B S S 3'], crops: Float[Array, 'B 5'], size: int
) -> Float[Array, 'B size size 3']:
  """Cuts rectangles out and resizes them: bilinear, antialiased.

  Args:
    images: of any scale of values.
    crops: as `draw_crops` draws them.
    size: pixels a side of the results.
  """

  def cut(image, crop):
    start, extent, mirrored = crop[:2], crop[2:4], crop[4]
    scale = size / (extent * image.shape[0])
    moved = -start * image.shape[0] * scale
    result = jax.image.scale_and_translate(
      image, (size, size, 3), (0, 1), scale, moved, 'linear', antialias=True
    )
    return jnp.where(mirrored > 0, result[:, ::-1], result)

  return jax.vmap(cut)(images, crops.astype(images.dtype))


def draw_views(
  key: jax.Array,
  images: int,
  tower: VisionTransformerConfig,
  fields: Any,
  names: Collection[str],
) -> dict[str, Array]:
  """Draws what the terms of self-distillation see of a batch.

  Args:
    images: how many there are.
    tower: that sees them.
    fields: `objective.self_distillation` of configs/base.py.
    names: of these terms.
  Returns:
    'global_crop' [B, 5]; with 'self_distillation', 'local_crops' [B, V, 5];
    with 'masked_prediction', 'masked_patches' [B, M] of the global crop.
  """
  keys = jax.random.split(key, 3)
  draws = {'global_crop': draw_crops(keys[0], (images,), GLOBAL_AREA)}
  if 'self_distillation' in names:
    shape = images, fields.local_views
    draws['local_crops'] = draw_crops(keys[1], shape, LOCAL_AREA)
  if 'masked_prediction' in names:
    draws['masked_patches'] = draw_masked_patches(
      keys[2], images, tower, fields.masked
    )
  return draws
