"""Resizes positions and masks padding for images of any aspect ratio (NaFlex).

They come as `Patches`. SigLIP 2 (arXiv 2502.14786, section 2.4.2): positions
are resized to the grid of each image, and padding is masked. The parameters are
those of a tower that reads squares, and a square has the same features.

Shapes: B images, P pixels a side of a patch, L patches with padding, D width, G
patches a side of the positions.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clip_jax.data.images import Patches
from clip_jax.models.config import VisionTransformerConfig
from clip_jax.models.layers import accumulation_dtype


def patch_counts(images: Patches) -> Int[Array, 'B 1']:
  """Returns how many patches each image has, without its padding."""
  return images.grid.prod(1, keepdims=True)


def without_padding(images: Patches) -> Float[Array, 'B L P P 3']:
  """Returns the pixels with zeros for padding, whatever that was."""
  mask = jnp.arange(images.pixels.shape[1]) < patch_counts(images)
  return jnp.where(mask[..., None, None, None], images.pixels, 0)


def resize_positions(
  table: Float[Array, 'G G D'], grid: Int[Array, 'B 2'], length: int
) -> Float[Array, 'B L D']:
  """Resizes positions to the grid of each image: bilinear, antialiased.

  SigLIP 2 (arXiv 2502.14786, section 2.4.2); the same weights as of big_vision
  (`jax.image.scale_and_translate`) and transformers (torch's `interpolate`).
  An image of G x G patches has the table itself.

  Args:
    table: positions as they are learned.
    grid: rows and columns of each image's patches.
    length: L; those of padding are of some patch.
  """
  rows, columns = jnp.split(jnp.maximum(grid, 1), 2, axis=1)  # B 1
  index = jnp.arange(length)
  down = _resampling(jnp.minimum(index // columns, rows - 1), rows, table)
  across = _resampling(index % columns, columns, table)
  weights = jnp.einsum('BLi,BLj->BLij', down, across)
  return jnp.einsum('BLij,ijD->BLD', weights, table)


def _resampling(
  index: Int[Array, 'B L'], count: Int[Array, 'B 1'], table: Array
) -> Float[Array, 'B L G']:
  """Returns the weight of each of G old positions in the new one at `index`.

  It falls linearly with the distance, over one old position, or over one new
  position where these are further apart; weights sum to 1.
  """
  old = jnp.arange(len(table)) + 0.5
  dtype = accumulation_dtype(table.dtype)
  step = len(table) / count.astype(dtype)
  centre = (index.astype(dtype) + 0.5) * step
  distance = jnp.abs(old.astype(dtype) - centre[..., None])
  weights = jnp.maximum(1 - distance / jnp.maximum(step, 1)[..., None], 0)
  return (weights / weights.sum(-1, keepdims=True)).astype(table.dtype)


def positions(
  table: Float[Array, 'M D'], config: VisionTransformerConfig, images: Patches
) -> Float[Array, 'B L D']:
  """Returns the embeddings of each image's positions, a class token's first.

  Args:
    table: the tower's, of a class token and of a square, row by row.
  """
  first, square = jnp.split(table, [int(config.class_token)])
  square = square.reshape(config.grid, config.grid, -1)
  resized = resize_positions(square, images.grid, images.pixels.shape[1])
  first = jnp.broadcast_to(first, (len(resized), *first.shape))
  return jnp.concatenate([first, resized], axis=1)


def mask(
  config: VisionTransformerConfig,
  images: Patches,
  kept_patches: Int[Array, 'B K'] | None,
) -> Bool[Array, 'B 1 1 L']:
  """Returns which tokens are no padding; a class token never is.

  Args:
    kept_patches: the indices of the patches that are left; None is all.
  """
  index = kept_patches
  if index is None:
    index = jnp.arange(images.pixels.shape[1])
  own = index < patch_counts(images)
  first = ((0, 0), (int(config.class_token), 0))
  return jnp.pad(own, first, constant_values=True)[:, None, None]


def average(
  x: Float[Array, 'B L D'], mask: Bool[Array, 'B 1 1 L'], first: int
) -> Float[Array, 'B D']:
  """Returns the mean of each image's patches, which begin at token `first`."""
  own = mask[:, 0, 0, first:, None]  # B M 1
  count = jnp.maximum(own.sum(1), 1).astype(x.dtype)
  return jnp.where(own, x[:, first:], 0).sum(1) / count
