"""What the encoders take: one picture or many, of whatever kind."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from clip_jax.data.images import CorruptImageError, Preprocessing, preprocess
from clip_jax.errors import UsageError

ImageInput = (
  str | os.PathLike | bytes | Image.Image | UInt8[np.ndarray, '_H _W 3']
)
ImageInputs = (
  ImageInput | UInt8[np.ndarray, '_B _H _W 3'] | Iterable[ImageInput]
)


def many(images: ImageInputs) -> Iterable[Any]:
  """One image or many, as many.

  Raises:
    UsageError: an array that is neither an image nor a batch of them.
  """
  if isinstance(images, np.ndarray):
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
      raise UsageError(
        f'an array of {images.dtype} {list(images.shape)}: give images as '
        'uint8 [H, W, 3] or [B, H, W, 3].'
      )
    return [images] if images.ndim == 3 else images
  if isinstance(images, str | bytes | os.PathLike | Image.Image):
    return [images]
  return images


def prepared(
  image: Any, index: int, preprocessing: Preprocessing
) -> UInt8[np.ndarray, 'S S 3']:
  """One image as the model reads it.

  Raises:
    CorruptImageError: it cannot be read; the message names it.
    UsageError: it is something else; likewise.
  """
  if isinstance(image, str | os.PathLike):
    name = os.fspath(image)
  else:
    name = f'image {index}'
  if isinstance(image, np.ndarray):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
      raise UsageError(
        f'{name} is an array of {image.dtype} {list(image.shape)}: give '
        'uint8 [H, W, 3].'
      )
  elif not isinstance(image, str | bytes | os.PathLike | Image.Image):
    raise UsageError(
      f'{name} is of type {type(image).__name__}: give a path, bytes, a PIL '
      'image or uint8 [H, W, 3].'
    )
  try:
    return preprocess(image, preprocessing)
  except CorruptImageError as error:
    if str(error).startswith(str(name)):
      raise
    raise CorruptImageError(f'{name}: {error}') from error
