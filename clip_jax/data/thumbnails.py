"""Pictures as data: URIs, small enough to put dozens on a page."""

import base64
import io

from PIL import Image

from clip_jax.data.image_formats import format_of
from clip_jax.data.images import (
  ImageLike,
  as_displayed,
  decode,
  pillow_errors,
)

SIDE = 144  # pixels: 72 on the page, on a screen of double density
SMALL_FILE = 16_384  # bytes
_WEB_FORMATS = {'PNG': 'png', 'JPEG': 'jpeg'}


@pillow_errors()
def data_uri(image: ImageLike, side: int = SIDE) -> str:
  """A picture for an `img` element.

  A small PNG or JPEG is taken as it is; anything else becomes a JPEG on
  white.

  Args:
    image: see `decode`.
    side: pixels, at most, of either side.
  Raises:
    CorruptImageError: the picture cannot be read.
  """
  picture = decode(image)
  if isinstance(image, bytes) and len(image) <= SMALL_FILE:
    name = _WEB_FORMATS.get(format_of(image))
    if name and max(picture.size) <= side:
      return _uri(name, image)
  encoded = io.BytesIO()
  thumbnail(picture, side).save(encoded, 'JPEG', quality=85)
  return _uri('jpeg', encoded.getvalue())


@pillow_errors()
def thumbnail(picture: Image.Image, side: int) -> Image.Image:
  """Returns an image as it is displayed, with no side longer than `side`.

  Raises:
    CorruptImageError: its palette or its transparency is damaged.
  """
  # Before it is scaled, so that no colour of clear pixels bleeds into others.
  small = as_displayed(picture).copy()
  small.thumbnail((side, side))
  return small


def _uri(name: str, data: bytes) -> str:
  return f'data:image/{name};base64,{base64.b64encode(data).decode()}'
