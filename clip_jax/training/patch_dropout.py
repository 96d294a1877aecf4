"""Patch dropout: a ViT trains on some of each image's patches (FLIP).

arXiv 2212.00794: the patches are drawn anew for each image, so that a step
costs less, and larger batches fit.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from clip_jax.data.images import Patches
from clip_jax.models.config import VisionTransformerConfig
from clip_jax.models.native_aspect import patch_counts


def draw_patches(
  key: jax.Array, images: Any, tower: VisionTransformerConfig, dropout: float
) -> Int[Array, 'B K']:
  """Draws the patches that are kept, independently for each image.

  Of images of native aspect, the same fraction is kept of each, without its
  padding; where one keeps fewer than K, its padding follows.

  Args:
    images: a batch of squares, or `Patches`.
    dropout: the fraction of patches that is left out.
  """
  if not isinstance(images, Patches):
    noise = jax.random.uniform(key, (len(images), tower.patches))
    return jax.lax.top_k(noise, tower.kept_patches(dropout))[1]
  length = images.pixels.shape[1]
  counts = patch_counts(images)
  kept_of = [tower.kept_patches(dropout, max(n, 1)) for n in range(length + 1)]
  noise = jax.random.uniform(key, images.pixels.shape[:2])
  noise = jnp.where(jnp.arange(length) < counts, noise, -1)
  drawn = jax.lax.top_k(noise, kept_of[length])[1]
  kept = jnp.array(kept_of)[counts]
  # An image that keeps fewer than K has fewer than L: its last is padding.
  return jnp.where(jnp.arange(drawn.shape[1]) < kept, drawn, length - 1)
