"""Checks a fetched image, and makes it smaller where that is asked for."""

import dataclasses

from PIL import Image

from clip_jax.data.decoding import CorruptImageError, decode, pillow_errors
from clip_jax.data.fetching.failure import FetchError
from clip_jax.data.prepare.image_settings import encode
from clip_jax.data.prepare.webdataset_shards import suffix_of

# How images are resized, in the words of img2dataset; none is ever enlarged.
MODES = ('no', 'keep_ratio', 'keep_ratio_largest', 'center_crop')
# The names of formats: as flags and suffixes of files, and as in Pillow.
_FORMATS = {'jpg': 'JPEG', 'png': 'PNG', 'webp': 'WEBP'}
FORMATS = tuple(_FORMATS)


@dataclasses.dataclass(frozen=True)
class Resizing:
  """Says how images are resized and encoded on arrival, and which are taken.

  Attributes:
    mode: of `MODES`: 'no' keeps the bytes as they came; 'keep_ratio' brings the
      shorter side to `image_size`, 'keep_ratio_largest' the longer one, and
      'center_crop' also cuts the longer one off.
    image_size: in pixels.
    image_format, quality: of images that are encoded anew.
    min_side, max_aspect_ratio: of images that are taken; 0 is any.
  """

  mode: str = 'no'
  image_size: int = 256
  image_format: str = 'jpg'
  quality: int = 95
  min_side: int = 0
  max_aspect_ratio: float | int = 0


@dataclasses.dataclass(frozen=True)
class TakenImage:
  """An image as it goes into a shard; sizes are (width, height)."""

  data: bytes
  suffix: str
  size: tuple[int, int]
  original_size: tuple[int, int]


def take_image(data: bytes, resizing: Resizing) -> TakenImage:
  """Decodes an image, so that a damaged one is refused, and resizes it.

  Raises:
    FetchError: it is no image, damaged, or of a size that is not taken.
  """
  try:
    image = decode(data)
    _check_size(image, resizing)
    return _resize(data, image, resizing)
  except CorruptImageError as error:
    if data[:1024].lstrip().lower().startswith((b'<!doctype html', b'<html')):
      raise FetchError('HTML, not an image') from None
    reason, _, detail = str(error).partition(':')
    raise FetchError(reason, detail.strip()) from None


def _check_size(image: Image.Image, resizing: Resizing) -> None:
  short, long = sorted(image.size)
  size = f'{image.width} x {image.height} pixels'
  if short < resizing.min_side:
    raise FetchError('too small', size)
  if resizing.max_aspect_ratio and long > resizing.max_aspect_ratio * short:
    raise FetchError('too elongated', size)


def _resize(data: bytes, image: Image.Image, resizing: Resizing) -> TakenImage:
  original = image.size
  short, long = sorted(original)
  size = resizing.image_size
  side = long if resizing.mode == 'keep_ratio_largest' else short
  crops = resizing.mode == 'center_crop' and long > max(size, short)
  if resizing.mode == 'no' or (side <= size and not crops):
    return TakenImage(data, suffix_of(data), original, original)
  if crops:
    image = _crop(image, max(size, short))
  new = image.size
  if side > size:
    new = (
      max(1, round(image.width * size / side)),
      max(1, round(image.height * size / side)),
    )
  encoded = encode(
    image, new, _FORMATS[resizing.image_format], resizing.quality
  )
  return TakenImage(encoded, resizing.image_format, new, original)


@pillow_errors()
def _crop(image: Image.Image, most: int) -> Image.Image:
  """Returns the centre of an image, with no side over `most` pixels."""
  width, height = (min(x, most) for x in image.size)
  left, top = (image.width - width) // 2, (image.height - height) // 2
  return image.crop((left, top, left + width, top + height))
