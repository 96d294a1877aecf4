"""Learned positions for another image size or context length.

A grid of image positions is resized as an image is. The libraries of the field
do this in two ways, which differ even where the grid grows: open_clip when it
loads weights (cubic, a = -0.5, antialiased, as Pillow does), transformers when
it runs (cubic, a = -0.75, never antialiased, the border repeated: what torch's
`interpolate` does by default).

The positions of a text do not depend on the context length, so that they stay,
and new ones are appended. Interpolation, linear as in open_clip, would move
every token of every text.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from clip_jax.errors import check_choice
from clip_jax.models.config import TEXT_METHODS, CLIPConfig

METHODS = ('open_clip', 'transformers')
_A = -0.75  # of torch's cubic kernel


def resize_model(
  variables: dict[str, Any],
  config: CLIPConfig,
  *,
  image_size: int | None = None,
  context_length: int | None = None,
  method: str = 'open_clip',
  text_method: str = 'append',
) -> tuple[dict[str, Any], CLIPConfig]:
  """Resizes a model's positions for other images or texts; None leaves them.

  Args:
    variables: collections of numpy arrays; not changed.
    config: of the variables.
    image_size: pixels a side.
    context_length: tokens.
    method: one of METHODS, for the image's positions.
    text_method: one of TEXT_METHODS, for the text's.
  Raises:
    UsageError: a size is impossible, or a method unknown.
  """
  check_choice('text positions', text_method, TEXT_METHODS)
  params = dict(variables['params'])
  image, text = config.image, config.text
  if image_size not in (None, image.image_size):
    image = dataclasses.replace(image, image_size=image_size)
    table = params['image']['position_embedding']
    first = len(table) - config.image.patches  # a class token's row
    resized = resize_grid(
      np.asarray(table, np.float32),
      (config.image.grid, config.image.grid),
      (image.grid, image.grid),
      first=first,
      method=method,
    )
    params['image'] = {**params['image'], 'position_embedding': resized}
  if context_length not in (None, text.context_length):
    text = dataclasses.replace(text, context_length=context_length)
    table = params['text']['position_embedding']
    if text_method == 'append':
      pooled_last = text.pooling == 'last'
      resized = append_or_truncate(
        np.asarray(table), context_length, pooled_last
      )
    else:
      resized = resize_line(np.asarray(table, np.float32), context_length)
    params['text'] = {**params['text'], 'position_embedding': resized}
    decoder = params.get('decoder', {})
    if 'position_embedding' in decoder:
      table = decoder['position_embedding']
      resized = append_or_truncate(np.asarray(table), context_length)
      params['decoder'] = {**decoder, 'position_embedding': resized}
  config = dataclasses.replace(config, image=image, text=text)
  return {**variables, 'params': params}, config


def resize_grid(
  table: Float[np.ndarray, 'L D'],
  old: tuple[int, int],
  new: tuple[int, int],
  *,
  first: int,
  method: str,
) -> Float[np.ndarray, 'M D']:
  """Resizes the positions of a grid of patches, which come row by row.

  Args:
    table: float32.
    old, new: rows and columns of the grids.
    first: rows of the table before the grid, which stay as they are.
    method: one of METHODS.
  Raises:
    UsageError: the method is unknown.
  """
  resizers: dict[str, Callable[..., np.ndarray]] = {
    'open_clip': _antialiased,
    'transformers': _repeating,
  }
  check_choice('positions', method, METHODS)
  grid = table[first:].reshape(*old, -1)  # rows columns D
  resized = resizers[method](grid, new).reshape(new[0] * new[1], -1)
  return np.concatenate([table[:first], resized])


def append_or_truncate(
  table: Float[np.ndarray, 'T D'], length: int, keep_last: bool = False
) -> Float[np.ndarray, 'U D']:
  """Returns a text's positions for another length; the first stay the same.

  New ones are copies of the last, which differ once they are trained.

  Args:
    table: of any dtype, which the result has, too.
    keep_last: whether a shorter table ends with the old last position, as a
      tower needs that pools there (SigLIP's).
  """
  new = np.repeat(table[-1:], max(length - len(table), 0), axis=0)
  longer = np.concatenate([table, new])[:length]
  return np.concatenate([longer[:-1], table[-1:]]) if keep_last else longer


def resize_line(
  table: Float[np.ndarray, 'T D'], length: int
) -> Float[np.ndarray, 'U D']:
  """Interpolates positions of a text for another length, as open_clip does."""
  shape = (length, table.shape[1])
  return np.asarray(jax.image.resize(table, shape, 'linear', antialias=False))


def _antialiased(grid: np.ndarray, new: tuple[int, int]) -> np.ndarray:
  return np.asarray(
    jax.image.resize(grid, (*new, grid.shape[-1]), 'cubic', antialias=True)
  )


def _repeating(grid: np.ndarray, new: tuple[int, int]) -> np.ndarray:
  rows, columns = (
    _cubic_weights(old, size)
    for old, size in zip(grid.shape, new, strict=False)
  )
  resized = np.einsum('ir,jc,rcd->ijd', rows, columns, grid.astype(np.float64))
  return resized.astype(np.float32)


def _cubic_weights(old: int, new: int) -> Float[np.ndarray, 'M L']:
  """Returns the weight of each old position in each new one; rows sum to 1."""
  centres = (np.arange(new) + 0.5) * old / new - 0.5
  left = np.floor(centres).astype(int)
  weights = np.zeros((new, old))
  for tap in (-1, 0, 1, 2):
    distance = np.abs(centres - (left + tap))
    near = ((_A + 2) * distance - (_A + 3)) * distance**2 + 1
    far = _A * (((distance - 5) * distance + 8) * distance - 4)
    sources = np.clip(left + tap, 0, old - 1)
    taken = np.where(distance <= 1, near, far)
    np.add.at(weights, (np.arange(new), sources), taken)
  return weights
