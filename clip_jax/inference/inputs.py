"""The inputs of the encoders: one image or many, of whatever kind."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from clip_jax.data.decoding import CorruptImageError, ImageLike
from clip_jax.data.images import Patches, as_input, preprocess
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.reading import PreparedImage
from clip_jax.errors import UsageError, one_line
from clip_jax.files import is_url, typed_path

# One of: a path, encoded bytes, an open file, a Pillow image, or an array,
# which may be of any library whose arrays numpy takes; see `as_pixels`.
ImageInput = Any
# One, many, or an array [B, H, W, C] or [B, C, H, W] of many.
ImageInputs = ImageInput | Iterable[ImageInput]

# The ways to treat an image that cannot be read: 'raise' its error, 'skip' it
# (it has no row, and a line on stderr names it), or call a function with its
# index and the error (it has no row either).
OnError = str | Callable[[int, CorruptImageError], object]

_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_KINDS = (
  'a path, bytes, an open file, a PIL image, or an array [H, W, 3] or [3, H, W]'
)


class ImageReader:
  """Reads images for an encoder, and says which cannot be read.

  Threads may call `prepare` for different images.
  """

  def __init__(self, preprocessing: Preprocessing, on_error: OnError):
    """Reads nothing yet.

    Args:
      preprocessing: of the model.
      on_error: see `ZeroShotModel.encode_image`.
    Raises:
      UsageError: `on_error` is something else.
    """
    if not callable(on_error) and on_error not in ('raise', 'skip'):
      raise UsageError(
        f"on_error={on_error!r}: use 'raise', 'skip', or a function of an "
        "image's index and its error."
      )
    self._preprocessing = preprocessing
    self._on_error = on_error
    self._failed: dict[int, CorruptImageError] = {}

  def prepare(
    self, images: list[tuple[int, ImageInput]]
  ) -> UInt8[np.ndarray, 'n S S 3'] | Patches:
    """Returns the pixels of those images that can be read.

    Args:
      images: each with its index among all.
    Raises:
      CorruptImageError: one cannot be read, and none is left out.
      UsageError: one is something else than an image.
    """
    rows = []
    for index, image in images:
      try:
        pixels = prepare_image(image, index, self._preprocessing)
        rows.append(as_input(pixels, self._preprocessing))
      except CorruptImageError as error:
        if self._on_error == 'raise':
          raise
        self._failed[index] = error
    if rows:
      return jax.tree.map(lambda *arrays: np.stack(arrays), *rows)
    blank = np.zeros((*self._preprocessing.shape, 3), np.uint8)
    none = as_input(blank, self._preprocessing)
    return jax.tree.map(lambda array: array[None][:0], none)

  def report(self) -> None:
    """Reports the images that were left out, in their order."""
    for index, error in sorted(self._failed.items()):
      if callable(self._on_error):
        self._on_error(index, error)
      else:
        print(f'left out {error}', file=sys.stderr)


def as_image_list(images: ImageInputs) -> Iterable[Any]:
  """Returns an iterable of images, of one image or many.

  Open files are read as they come.

  Raises:
    UsageError: it is no image, and nothing that holds some.
  """
  one = str | bytes | bytearray | memoryview | os.PathLike | Image.Image
  if isinstance(images, one) or hasattr(images, 'read'):
    return [_read(images)]
  if hasattr(images, '__array__'):
    array = _as_array(images, 'the images')
    if array.dtype.kind in 'OUST' and array.ndim == 1:  # paths, or images
      return map(_read, array.tolist())
    if array.ndim not in (2, 3, 4):
      raise UsageError(
        f'an array of {array.dtype} {list(array.shape)}: give images as uint8 '
        '[H, W, 3] or [B, H, W, 3].'
      )
    return array if array.ndim == 4 else [array]
  if not isinstance(images, Iterable):
    raise UsageError(
      f'images of type {type(images).__name__}: give {_KINDS}, or many of them.'
    )
  # A list has a length, which a bar can show.
  return (
    _ReadOneByOne(images) if hasattr(images, '__len__') else map(_read, images)
  )


class _ReadOneByOne:
  """An iterable of images, read one by one, that knows its length."""

  def __init__(self, images: Any):
    self._images = images

  def __len__(self) -> int:
    return len(self._images)

  def __iter__(self) -> Iterator[Any]:
    return map(_read, self._images)


def prepare_image(
  image: Any, index: int, preprocessing: Preprocessing
) -> UInt8[np.ndarray, 'H W 3']:
  """Returns one image in the size in which the model reads it.

  Raises:
    CorruptImageError: it cannot be read; the message names it.
    UsageError: it is something else; likewise.
  """
  name = f'image {index}'
  known: ImageLike
  if isinstance(image, str | os.PathLike):
    refuse_url(os.fspath(image))
    known = typed_path(image)
    name = one_line(os.fspath(known))
  elif isinstance(image, bytes | bytearray | memoryview):
    known = bytes(image)
  elif isinstance(image, PreparedImage):
    return np.asarray(image)
  elif isinstance(image, Image.Image):
    known = image
  elif hasattr(image, '__array__'):
    known = as_pixels(image, name)
    if known.shape == (*preprocessing.shape, 3) and not preprocessing.resize_to:
      return known  # nothing to resize, to crop, to turn or to lay on white
  else:
    raise UsageError(
      f'{name} is of type {type(image).__name__}: give {_KINDS}.'
    )
  try:
    return preprocess(known, preprocessing)
  except CorruptImageError as error:
    if str(error).startswith(name):
      raise
    raise CorruptImageError(f'{name}: {error}') from error


def as_pixels(image: Any, name: str) -> UInt8[np.ndarray, '...']:
  """Returns an array of one image, as uint8 [H, W, 3], [H, W, 4] or [H, W].

  Channels may come last or first: [3, H, W] is such an image unless its last
  axis could be the channels, too. Floats are in [0, 1], integers in 0 to 255.

  Args:
    image: of numpy, jax, torch, or whatever has `__array__`.
    name: for the error.
  Raises:
    UsageError: it is of another shape, or has other values.
  """
  array = _as_array(image, name)
  described = f'{name} is an array of {array.dtype} {list(array.shape)}'
  if array.ndim == 3:
    if array.shape[2] not in _CHANNELS and array.shape[0] in _CHANNELS:
      array = array.transpose(1, 2, 0)
    if array.shape[2] == 1:
      array = array[:, :, 0]
  colours = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _CHANNELS)
  if not colours or not array.size:
    raise UsageError(f'{described}: give uint8 [H, W, 3], or [3, H, W].')
  if array.dtype == np.uint8:
    return array
  floats = jnp.issubdtype(array.dtype, jnp.floating)  # bfloat16, too
  if not floats and array.dtype.kind not in 'iu':
    raise UsageError(f'{described}: give uint8, or floats in [0, 1].')
  low, high = array.min(), array.max()
  most = 1 if floats else 255
  if not (low >= 0 and high <= most):  # also true of NaN
    raise UsageError(
      f'{described} with values from {low:.4g} to {high:.4g}: give uint8, or '
      'floats in [0, 1] (what is normalised already goes to module.apply).'
    )
  if floats:
    array = np.rint(array.astype(np.float32) * 255)
  return array.astype(np.uint8)


def refuse_url(name: str) -> None:
  """Refuses what is no path, but a URL.

  Raises:
    UsageError: it says what to do.
  """
  if is_url(name):
    raise UsageError(
      f'{name[:200]} is a URL, and images are read from files: download it '
      'first, and give its path.'
    )


def _read(image: Any) -> Any:
  """Returns an open file's bytes, as a whole; other images as they are."""
  if isinstance(image, Image.Image) or not hasattr(image, 'read'):
    return image
  try:
    if getattr(image, 'seekable', bool)():  # a buffer that was just written
      image.seek(0)
    data = image.read()
  except ValueError as error:  # it has been closed
    raise UsageError(f'an open file: {error}') from error
  if not isinstance(data, bytes):
    raise UsageError(
      f'an open file gave {type(data).__name__}: open it with mode "rb".'
    )
  return data


def _as_array(images: Any, name: str) -> np.ndarray:
  try:
    return np.asarray(images)
  except (TypeError, ValueError, RuntimeError) as error:
    # Tensors on a device or with a gradient: the message says what to do.
    raise UsageError(f'{name}: {error}') from error
