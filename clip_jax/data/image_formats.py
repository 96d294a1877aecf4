"""Recognises the image format of a file by its first bytes alone.

A name's suffix says little: phones write HEIC files called .jpg, browsers save
.jfif, object stores keep no suffix at all. Nothing is decoded here.
"""

import importlib.util
import re

from PIL import Image, features

# The number of first bytes that `format_of` looks at.
HEAD_BYTES = 64

# Formats as Pillow names them, and how a file of each begins. A few that have
# no such mark (TGA, PCX) are left to `UNMARKED_SUFFIXES`.
_BEGINNINGS: tuple[tuple[str, re.Pattern[bytes]], ...] = tuple(
  (name, re.compile(pattern, re.DOTALL))
  for name, pattern in (
    ('JPEG', rb'\xff\xd8\xff'),
    ('PNG', rb'\x89PNG\r\n\x1a\n'),
    ('GIF', rb'GIF8[79]a'),
    ('WEBP', rb'RIFF....WEBP'),
    # A bitmap must also have a header of a known size: texts start with "BM",
    # too.
    ('BMP', rb'BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0'),
    # Canon's raw files look the same for eight bytes, and hold a thumbnail.
    ('TIFF', rb'(?:II\*\0|MM\0\*|II\x2b\0|MM\0\x2b)(?!....CR)'),
    ('JPEG2000', rb'\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n'),
    ('PPM', rb'P[1-6fFy]\s'),
    ('PSD', rb'8BPS\0\x01'),
    ('ICO', rb'\0\0\x01\0[^\0]\0'),
    ('ICNS', rb'icns'),
    ('QOI', rb'qoif'),
    ('DDS', rb'DDS \x7c\0\0\0'),
    ('SGI', rb'\x01\xda[\0\x01][\x01\x02]\0[\x01-\x03]'),
    ('SUN', rb'\x59\xa6\x6a\x95'),
    ('FITS', rb'SIMPLE  ='),
    ('XPM', rb'/\* XPM \*/'),
  )
)
# Brands of the ISO container, whose first box lists those of the file.
_HEIF_BRANDS = {
  b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'hevm', b'hevs',
  b'mif1', b'msf1',
}  # fmt: skip
_AVIF_BRANDS = {b'avif', b'avis'}

# Formats without a mark of their own, and plain ones whose suffix is enough.
UNMARKED_SUFFIXES = ('.tga', '.pcx')
PLAIN_SUFFIXES = (
  '.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.webp', '.gif', '.bmp', '.tif',
  '.tiff', *UNMARKED_SUFFIXES,
)  # fmt: skip

# Formats that Pillow reads only if it was built with a library, and the name
# of that feature.
_FEATURES = {'WEBP': 'webp', 'AVIF': 'avif', 'JPEG2000': 'jpg_2000'}


def format_of(head: bytes) -> str:
  """Returns the format of a file that starts so, as Pillow names it, or ''.

  Args:
    head: its first `HEAD_BYTES`, or more.
  """
  if head[4:8] == b'ftyp':
    size = min(int.from_bytes(head[:4], 'big'), len(head), HEAD_BYTES)
    # The file's main brand, a version, then those that it is also of.
    brands = {head[8:12], *(head[i : i + 4] for i in range(16, size - 3, 4))}
    if brands & _AVIF_BRANDS:
      return 'AVIF'
    return 'HEIF' if brands & _HEIF_BRANDS else ''
  for name, beginning in _BEGINNINGS:
    if beginning.match(head):
      return name
  return ''


def is_format_name(suffix: str) -> bool:
  """Returns whether a suffix is Pillow's name of a format that it reads."""
  Image.init()  # loads the plugins of the rare formats, too
  return suffix.upper() in Image.OPEN


def why_unreadable(image_format: str) -> str:
  """Returns why a format cannot be read here and what to install, or ''."""
  if image_format == 'HEIF':
    installed = importlib.util.find_spec('pillow_heif') is not None
    return '' if installed else 'HEIC needs an extra: pip install ".[heif]"'
  feature = _FEATURES.get(image_format)
  if feature and not features.check(feature):
    return f'this Pillow was built without {image_format}'
  return ''
