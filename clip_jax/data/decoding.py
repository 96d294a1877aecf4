"""Decodes images from outside: the one way from a path or bytes to pixels.

What is too large is refused by its header, before memory is taken; a JPEG of
more pixels than a phone's ordinary photograph is decoded at half its size or
less. Pillow's plugins raise nearly everything, also long after an image was
opened: whatever is done with one happens in `pillow_errors`, whose one error
is CorruptImageError.
"""

import contextlib
import functools
import io
import itertools
import os
import threading
from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from clip_jax import files
from clip_jax.data import image_formats
from clip_jax.errors import (
  FailureError,
  MissingFileError,
  UsageError,
  reason_of,
)

# An image that would fill the memory is refused before it is decoded. Pillow
# only warns from here on, and refuses from twice as many.
MAX_PIXELS = 89_478_485
# A JPEG may have more pixels, as its decoder makes a smaller image at no cost,
# and phones have 200 megapixels. A progressive one takes six bytes a pixel.
MAX_JPEG_PIXELS = 5 * MAX_PIXELS // 2
# Each row costs memory, however few pixels it has.
MAX_SIDE = 2**20
MAX_FILE_BYTES = 2**29
# Lifts the limit; in the environment, so that worker processes have it, too.
LIMIT_VARIABLE = 'CLIP_JAX_MAX_MEGAPIXELS'

# Modes of 16 bits and more: grey that `convert` cuts off at 255.
SIXTEEN_BITS = ('I;16', 'I;16B', 'I;16L', 'I;16N', 'I')

_OPENING = threading.Lock()

# The types in which images are given: encoded bytes, a path, uint8 pixels
# (`decode` checks their shape, with a message for users), or Pillow's.
ImageLike = bytes | str | os.PathLike | np.ndarray | Image.Image


class CorruptImageError(FailureError):
  """An image that cannot be read: missing, damaged, or far too large."""


class MissingImageError(CorruptImageError, MissingFileError):
  """An image whose file is not there."""


def check_corrupt(
  corrupt: Mapping[str, str], limit: int, spec: str = ''
) -> None:
  """Refuses to go on where more than `limit` records cannot be read.

  Args:
    corrupt: id to reason, of the records that were left out so far.
    limit: how many may be left out.
    spec: the data set that they are of; '' for all those of a training run.
  Raises:
    FailureError: more were left out; the message names the first.
  """
  if len(corrupt) > limit:
    option = f'data {spec!r}: over ' if spec else 'over data.'
    raise FailureError(
      f'{option}max_corrupt_records={limit} records are '
      f'corrupt{first_reasons(corrupt)}.'
    )


def first_reasons(corrupt: Mapping[str, str]) -> str:
  """Returns the end of a message: why the first records cannot be read.

  Args:
    corrupt: id to reason.
  Returns:
    ': id: reason; id: reason', or '' for none.
  """
  first = itertools.islice(corrupt.items(), 3)
  reasons = '; '.join(f'{key}: {reason}' for key, reason in first)
  return f': {reasons}' if reasons else ''


@contextlib.contextmanager
def pillow_errors() -> Iterator[None]:
  """Makes a CorruptImageError of whatever Pillow raises inside.

  Also a decorator: of each function that touches the pixels or the metadata of
  an image from outside.
  """
  try:
    yield
  except (FailureError, UsageError):
    raise
  except UnidentifiedImageError:
    raise CorruptImageError('not an image in a known format') from None
  except (Image.DecompressionBombError, MemoryError) as error:
    reason = ' '.join(str(error).split()) or 'there is not enough memory'
    raise CorruptImageError(f'too large an image: {reason}') from error
  except Exception as error:  # Pillow's plugins raise nearly everything.
    reason = (str(error) or repr(error)).splitlines()[0]
    raise CorruptImageError(f'damaged image: {reason}') from error


def decode(image: ImageLike) -> Image.Image:
  """Returns an image with all its pixels read, in its own mode.

  A JPEG of more than MAX_PIXELS is scaled down while it is decoded, by the
  smallest power of two that brings it below. LAB becomes RGB.

  Raises:
    CorruptImageError: missing, not an image, cut off, or over the limit of
      pixels; see `limit_megapixels`.
    UsageError: an array that is not uint8 [H, W, 3], [H, W, 4] or [H, W].
  """
  if isinstance(image, np.ndarray):
    colours = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
    if image.dtype != np.uint8 or not colours or not image.size:
      raise UsageError(
        f'an image array of {image.dtype} {list(image.shape)}: '
        'use uint8 [H, W, 3], [H, W, 4] or [H, W], with pixels'
      )
    return Image.fromarray(image)
  if isinstance(image, str | os.PathLike):
    image = read_bytes(image)
  if isinstance(image, bytes):
    image = open_image(image)
  with pillow_errors():
    if image.format == 'EPS':  # Pillow would run another program on it
      raise CorruptImageError('EPS is a program that draws, not an image')
    image.load()
    if image.mode == 'LAB':
      return _lab_to_rgb(image)
    _check_converts(image)
    return image


@pillow_errors()
def open_image(data: bytes) -> Image.Image:
  """Returns an image of which only the header was read.

  `decode` reads its pixels. Nothing too large gets this far.

  Raises:
    CorruptImageError: not an image, or over the limit of pixels.
  """
  image = _open(data)
  _limit_size(image)
  return image


@pillow_errors()
def convert(image: Image.Image, mode: str) -> Image.Image:
  """Returns a decoded image in another mode, such as 'RGB' or 'L'.

  Raises:
    CorruptImageError: its palette or its transparency is damaged.
  """
  return image if image.mode == mode else image.convert(mode)


def read_bytes(path: str | os.PathLike) -> bytes:
  """Returns an image file's bytes; a pipe or a device is never waited for.

  Raises:
    MissingImageError: there is no such file.
    CorruptImageError: it is no regular file, too large, or unreadable.
  """
  most = max(MAX_FILE_BYTES, 8 * (_limit_in_pixels() or 0))
  try:
    with files.open_regular(path) as file:
      if (size := os.fstat(file.fileno()).st_size) > most:
        raise CorruptImageError(
          f'{os.fspath(path)}: too large, {size:,} bytes; '
          f'{_how_to_lift(-(-size // 8))}'
        )
      return file.read()
  except MissingFileError as error:
    raise MissingImageError(str(error)) from error
  except CorruptImageError:
    raise
  except FailureError as error:
    raise CorruptImageError(str(error)) from error
  except OSError as error:
    reason = reason_of(error)
    raise CorruptImageError(f'{os.fspath(path)}: {reason}') from error


def limit_megapixels(megapixels: float | int | None) -> None:
  """Lifts or lowers the limit of an image's pixels, in this process.

  The processes that it starts have it, too; those of other machines are given
  it by `prepare.engine`. As files are, JPEGs over MAX_PIXELS are still decoded
  at a smaller size.

  Args:
    megapixels: millions of pixels; None: the defaults, MAX_PIXELS, and
      MAX_JPEG_PIXELS of a JPEG.
  Raises:
    UsageError: it is not above 0.
  """
  if megapixels is None:
    os.environ.pop(LIMIT_VARIABLE, None)
  else:
    os.environ[LIMIT_VARIABLE] = f'{megapixels:.12g}'
    _limit_in_pixels()


def asked_megapixels() -> float | None:
  """Returns the limit that was asked for, as `limit_megapixels` takes it.

  Raises:
    UsageError: it is not above 0.
  """
  pixels = _limit_in_pixels()
  return None if pixels is None else float(os.environ[LIMIT_VARIABLE])


def _limit_in_pixels() -> int | None:
  """Returns the limit that was asked for, in pixels, or None."""
  text = os.environ.get(LIMIT_VARIABLE)
  if not text:
    return None
  try:
    pixels = int(1e6 * float(text))
  except (ValueError, OverflowError):
    pixels = 0
  if pixels < 1:
    raise UsageError(f'max_megapixels={text}: use a number above 0.')
  return pixels


def _how_to_lift(pixels: int) -> str:
  return (
    f'--max_megapixels={-(-pixels // 10**6)} lifts the limit (in a recipe '
    'data.max_megapixels, in Python clip_jax.data.decoding.limit_megapixels)'
  )


def _open(data: bytes) -> Image.Image:
  """Reads an image's header; `_limit_size` decides what is too large.

  Pillow's own limit is the whole process's: one thread at a time lifts it.
  """
  image_format = image_formats.format_of(data[: image_formats.HEAD_BYTES])
  if reason := image_formats.why_unreadable(image_format):
    raise CorruptImageError(reason)
  if image_format == 'HEIF':
    _register_heif()
  with _OPENING:
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
      return Image.open(io.BytesIO(data))
    finally:
      Image.MAX_IMAGE_PIXELS = before


@functools.cache
def _register_heif() -> None:
  """Lets Pillow read HEIC, from the first file of it on."""
  import pillow_heif

  pillow_heif.register_heif_opener()


def _limit_size(image: Image.Image) -> None:
  """Refuses an image by its header, or has it decoded at a smaller size.

  Raises:
    CorruptImageError: it has more pixels, or longer sides, than the limit.
  """
  width, height = image.size
  pixels = width * height
  jpeg = image.format in ('JPEG', 'MPO')
  limit = _limit_in_pixels() or (MAX_JPEG_PIXELS if jpeg else MAX_PIXELS)
  if pixels > limit:
    raise CorruptImageError(
      f'too large: {width:,} x {height:,} pixels, over the limit of '
      f'{limit / 1e6:,.4g} million; {_how_to_lift(pixels)}'
    )
  if max(width, height) > MAX_SIDE:
    raise CorruptImageError(
      f'too large: {width:,} x {height:,} pixels; no side may be over '
      f'{MAX_SIDE:,}'
    )
  factor = 1
  while jpeg and pixels > MAX_PIXELS * factor**2 and factor < 8:
    factor *= 2
  if factor > 1:
    image.draft(None, (width // factor, height // factor))


def _check_converts(image: Image.Image) -> None:
  """Finds a damaged palette or transparency, which later steps would meet."""
  clear = image.has_transparency_data
  if clear or image.mode not in ('RGB', 'L'):
    corner = image.crop((0, 0, 1, 1))
    corner.convert('RGB')
    if clear and image.mode not in SIXTEEN_BITS:  # see `images.on_white`
      corner.convert('RGBA')


def _lab_to_rgb(image: Image.Image) -> Image.Image:
  """Converts LAB by Pillow's colour management; its `convert` knows none."""
  lab, srgb = ImageCms.createProfile('LAB'), ImageCms.createProfile('sRGB')
  converted = ImageCms.profileToProfile(image, lab, srgb, outputMode='RGB')
  assert converted is not None  # inPlace is False
  return converted
