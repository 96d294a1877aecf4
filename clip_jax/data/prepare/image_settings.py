"""Checks an image, makes it smaller, or writes it in another format."""

import dataclasses
import io
from typing import NamedTuple

from PIL import ExifTags, Image

from clip_jax.data.decoding import SIXTEEN_BITS, decode, pillow_errors
from clip_jax.data.image_formats import HEAD_BYTES, format_of
from clip_jax.data.images import eight_bits, on_white
from clip_jax.errors import UsageError, check_choice

# As a flag names them, and as Pillow does.
FORMATS = {'jpeg': 'JPEG', 'png': 'PNG', 'webp': 'WEBP'}
_KEEP_FORMAT = 'keep'
_DEFAULT_QUALITY = 95
# Images of these formats are written as JPEG when they are resized.
_LOSSY = ('MPO', 'HEIF', 'AVIF', 'JPEG2000')


class PreparedImage(NamedTuple):
  """An image as it is written.

  Attributes:
    content: None where its bytes stay as they are.
    size: width and height in pixels.
    format: as `image_formats.format_of` names it.
  """

  content: bytes | None
  size: tuple[int, int]
  format: str


@dataclasses.dataclass(frozen=True)
class ImageSettings:
  """Says how images are resized and encoded; by default they are kept.

  Attributes:
    max_side: pixels; an image with a longer side is scaled down to it.
    format: 'jpeg', 'png', 'webp', or 'keep'. An image that has this format and
      no longer side keeps its bytes, unless a quality is named.
    quality: of JPEG and WebP, 1 to 100; None is 95, where one is written.
  """

  max_side: int | None = None
  format: str = _KEEP_FORMAT
  quality: int | None = None

  def __post_init__(self) -> None:
    """Checks the settings.

    Raises:
      UsageError: one is out of its range, or has no effect.
    """
    check_choice('--format', self.format, (*FORMATS, _KEEP_FORMAT))
    if self.max_side is not None and self.max_side < 1:
      raise UsageError(f'--max_side={self.max_side}: use 1 pixel or more.')
    if self.quality is not None:
      if not 1 <= self.quality <= 100:
        raise UsageError(f'--quality={self.quality}: use 1 to 100.')
      if self.format == 'png':
        raise UsageError('--quality is of JPEG and WebP, not of --format=png.')

  def prepare(self, content: bytes) -> PreparedImage:
    """Decodes an image, and encodes it anew where the settings ask for it.

    Raises:
      CorruptImageError: it cannot be decoded, or not be written.
    """
    image = decode(content)
    old = format_of(content[:HEAD_BYTES]) or image.format or ''
    new = FORMATS.get(self.format) or self._kept_format(image, old)
    size = self._fit(image.size)
    lossy = new in ('JPEG', 'WEBP')
    stays = self.format == _KEEP_FORMAT or new == old
    if stays and size == image.size and not (self.quality and lossy):
      return PreparedImage(None, image.size, old)
    return PreparedImage(encode(image, size, new, self.quality), size, new)

  def _kept_format(self, image: Image.Image, old: str) -> str:
    """Returns the format to write an image in whose format is kept."""
    if old in FORMATS.values():
      return old
    return 'JPEG' if old in _LOSSY or image.format in _LOSSY else 'PNG'

  def _fit(self, size: tuple[int, int]) -> tuple[int, int]:
    longest = max(size)
    if self.max_side is None or longest <= self.max_side:
      return size
    width, height = (
      max(1, round(side * self.max_side / longest)) for side in size
    )
    return width, height


KEEP = ImageSettings()


@pillow_errors()
def encode(
  image: Image.Image,
  size: tuple[int, int],
  image_format: str,
  quality: int | None = None,
) -> bytes:
  """Encodes an image, with its colour profile and orientation.

  The pixels are not turned: a model that reads them without regard to EXIF
  sees what it saw before. Grey of 16 bits is scaled to 8, except in PNG, which
  has both. Other metadata, such as places, is left out.

  Args:
    size: width and height, to which it is resized.
    image_format: of `FORMATS`, as Pillow names it.
    quality: of JPEG and WebP; None is 95.
  Raises:
    CorruptImageError: it cannot be converted or written.
  """
  metadata = _metadata(image)
  if image.mode in SIXTEEN_BITS:
    is_png = image_format == 'PNG'
    image = image.convert('I;16') if is_png else eight_bits(image)
  if image_format == 'JPEG' and image.mode != 'L':
    if image.mode == 'CMYK':
      metadata.pop('icc_profile', None)  # of the inks
    image = on_white(image)
  elif image.mode not in ('L', 'RGB', 'RGBA', 'I;16'):
    image = image.convert('RGBA' if image.has_transparency_data else 'RGB')
  if size != image.size:
    image = image.resize(size, Image.Resampling.BICUBIC)
  options = {'quality': quality or _DEFAULT_QUALITY}
  if image_format == 'PNG':
    options = {'compress_level': 6}
  encoded = io.BytesIO()
  image.save(encoded, image_format, **options, **metadata)
  return encoded.getvalue()


def _metadata(image: Image.Image) -> dict[str, bytes]:
  """Returns the metadata that say how the pixels are to be shown."""
  kept: dict[str, bytes] = {}
  profile = image.info.get('icc_profile')
  if isinstance(profile, bytes) and profile:
    kept['icc_profile'] = profile
  try:
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
  except Exception:  # damaged metadata; the pixels are whole
    return kept
  if orientation in range(2, 9):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    kept['exif'] = exif.tobytes()
  return kept
