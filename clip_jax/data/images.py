"""Host-side images: resize, crop, convert; uint8 in and uint8 out.

The published evaluation transforms are exact, to the byte, because Pillow does
the resizing. Models differ in when the image is converted to RGB: see
`Preprocessing.convention`. Normalisation happens on the device.

`decoding` reads files; its names are here, too.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageColor, ImageOps

from clip_jax.data.decoding import (
  MAX_PIXELS,
  CorruptImageError,
  ImageLike,
  MissingImageError,
  convert,
  decode,
  limit_megapixels,
  pillow_errors,
  read_bytes,
)
from clip_jax.errors import UsageError

__all__ = [
  'CLIP_MEAN', 'CLIP_STD', 'CONVENTIONS', 'INTERPOLATIONS', 'MAX_PIXELS',
  'RESIZE_MODES', 'CorruptImageError', 'ImageLike', 'MissingImageError',
  'Preprocessing', 'check_colour', 'convert', 'decode', 'laid_upon',
  'limit_megapixels', 'pillow_errors', 'preprocess', 'read_bytes', 'upright',
]  # fmt: skip

# Channel means and deviations of [0, 1] values, as in OpenAI's weights.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

INTERPOLATIONS = {
  'bicubic': Image.Resampling.BICUBIC,
  'bilinear': Image.Resampling.BILINEAR,
  'nearest': Image.Resampling.NEAREST,
}
RESIZE_MODES = ('shortest', 'squash', 'longest')
CONVENTIONS = ('open_clip', 'transformers')
_SIXTEEN_BITS = ('I;16', 'I;16B', 'I;16L', 'I;16N', 'I')
# What a viewer does for each EXIF orientation; others leave an image alone.
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# Transparent images are laid upon their ground so many pixels at a time.
_STRIP_PIXELS = 2**22


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """How a picture becomes what a model reads; part of its description.

  Attributes:
    image_size: S, pixels; the result is S x S. A pair is its height and
      width, with open_clip's convention; models read squares.
    resize_mode: 'shortest' scales the picture until it covers the result, and
      crops the centre (OpenAI), 'squash' ignores the aspect, 'longest' scales
      it until it fits in, and pads with zeros.
    interpolation: 'bicubic', 'bilinear' or 'nearest'. A 'shortest' that is
      not square is always bicubic, as open_clip's.
    mean, std: per channel, of values in [0, 1]; applied on the device.
    background: a colour, such as 'white', that transparent pictures are laid
      upon before anything else; grey of 16 bits is scaled to 8, too. So a
      person sees them. None is what the published models saw: transparency as
      the convention has it, and such grey cut off at 255, which is nearly all
      white.
    exif: turn photographs as their EXIF orientation says. False takes the
      pixels as stored, which is what the published models saw.
    convention: whose transform it is. 'open_clip', and OpenAI's: resized and
      cropped in the file's own mode, then converted to RGB, which drops the
      transparency; an odd pixel of the crop goes where Python's `round` has
      it. 'transformers' (its Pillow image processors): laid upon white and
      converted to RGB first, and the odd pixel goes right or bottom.
  """

  image_size: int | tuple[int, int]
  resize_mode: str = 'shortest'
  interpolation: str = 'bicubic'
  mean: tuple[float, float, float] = CLIP_MEAN
  std: tuple[float, float, float] = CLIP_STD
  background: str | None = None
  exif: bool = False
  convention: str = 'open_clip'

  def __post_init__(self):
    if len(self.shape) != 2 or min(self.shape) < 1:
      raise UsageError(
        f'image_size={self.image_size}: use 1 or more, or a height and a width'
      )
    for field, known in (
      ('resize_mode', RESIZE_MODES),
      ('interpolation', INTERPOLATIONS),
      ('convention', CONVENTIONS),
    ):
      value = getattr(self, field)
      if value not in known:
        raise UsageError(f'{field}={value!r}: use one of {", ".join(known)}')
    if self.background is not None:
      check_colour('background', self.background)
    if len(set(self.shape)) > 1 and self.convention != 'open_clip':
      raise UsageError(
        f"image_size={self.image_size}: only open_clip's convention makes "
        'pictures that are not square'
      )

  @property
  def shape(self) -> tuple[int, int]:
    """Height and width of the result."""
    size = self.image_size
    return (size, size) if isinstance(size, int) else size

  @property
  def side(self) -> int:
    """S, for a model.

    Raises:
      UsageError: the result is not square.
    """
    height, width = self.shape
    if height != width:
      raise UsageError(
        f'image_size={self.image_size}: a model reads square pictures, so '
        'give it one number'
      )
    return height

  def to_dict(self) -> dict[str, Any]:
    """As JSON holds it."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, data: dict[str, Any]) -> 'Preprocessing':
    """The inverse of `to_dict`; unknown keys are a UsageError."""
    known = [field.name for field in dataclasses.fields(cls)]
    for key in data:
      if key not in known:
        raise UsageError(
          f'preprocessing has no field {key!r}: known are {", ".join(known)}'
        )
    values: dict[str, Any] = {  # JSON has lists where these have tuples.
      key: tuple(value) if isinstance(value, list) else value
      for key, value in data.items()
    }
    return cls(**values)


@pillow_errors()
def preprocess(
  image: ImageLike, preprocessing: Preprocessing
) -> UInt8[np.ndarray, 'H W 3']:
  """The evaluation transform that a model was published with.

  Equal to `open_clip.transform.image_transform`, or to `process` of the Pillow
  image processors of transformers, before the normalisation; as large as
  `preprocessing.shape` says.

  Raises:
    CorruptImageError: see `decode`; or it is too thin to be scaled.
  """
  picture = upright(decode(image), preprocessing)
  rgb_first = preprocessing.convention == 'transformers'
  if rgb_first:
    picture = _on_white(picture)
  height, width = preprocessing.shape
  resample = INTERPOLATIONS[preprocessing.interpolation]
  if preprocessing.resize_mode == 'squash':
    picture = _resize(picture, (width, height), resample)
  elif preprocessing.resize_mode == 'shortest':
    if height != width:  # which open_clip does in a way of its own
      resample = Image.Resampling.BICUBIC
    size = _covering(picture.size, (width, height))
    # Python's round, halves to even, is torchvision's.
    whole = int if rgb_first else round
    picture = _resize(picture, size, resample)
    picture = _centre_crop(picture, (width, height), whole)
  else:
    ratio = max(picture.width / width, picture.height / height)
    new = [max(1, round(side / ratio)) for side in picture.size]
    picture = _resize(picture, (new[0], new[1]), resample)
    picture = _centre_pad(picture, (width, height))
  return np.asarray(picture.convert('RGB'))


def _covering(old: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
  """The size of a picture, widths first, that is scaled to cover the target.

  Raises:
    CorruptImageError: it would be a thread of vast length.
  """
  if target[0] == target[1]:
    size, short = target[0], min(old)
    new = [size if side == short else int(size * side / short) for side in old]
  else:
    ratio = min(side / goal for side, goal in zip(old, target, strict=True))
    new = [round(side / ratio) for side in old]
  if new[0] * new[1] > MAX_PIXELS:
    raise CorruptImageError(
      f'{old[0]:,} x {old[1]:,} pixels: too long for its width to be scaled'
    )
  return new[0], new[1]


def _resize(
  picture: Image.Image, size: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
  """The image at another size, the width first."""
  # Pillow scales the width first: rows of a thin image would fill the memory.
  if size[0] * picture.height > MAX_PIXELS:
    picture = picture.resize((picture.width, size[1]), resample)
  return picture.resize(size, resample)


@pillow_errors()
def upright(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
  """Applies the options for users' own pictures: EXIF and background.

  Raises:
    CorruptImageError: its palette or its transparency is damaged.
  """
  turn = _TURNS.get(_orientation(picture)) if preprocessing.exif else None
  if turn is not None:
    picture = picture.transpose(turn)
  if preprocessing.background:
    if picture.mode in _SIXTEEN_BITS:
      picture = _eight_bits(picture)
    if picture.has_transparency_data:
      picture = laid_upon(picture, preprocessing.background)
  return picture


def _orientation(picture: Image.Image) -> int:
  """The EXIF orientation; 1, as stored, where it is damaged or missing."""
  try:
    found = picture.getexif().get(ExifTags.Base.Orientation, 1)
  except Exception:  # The pixels are whole, and viewers show them, too.
    return 1
  return found if isinstance(found, int) else 1


@pillow_errors()
def laid_upon(picture: Image.Image, colour: str) -> Image.Image:
  """Returns a transparent image as RGB, upon a ground of one colour.

  Raises:
    CorruptImageError: its palette or its transparency is damaged.
  """
  width, height = picture.size
  rows = max(1, _STRIP_PIXELS // width)
  whole = Image.new('RGB', picture.size)
  for top in range(0, height, rows):
    strip = picture.crop((0, top, width, min(top + rows, height)))
    ground = Image.new('RGBA', strip.size, colour)
    ground.alpha_composite(strip.convert('RGBA'))
    whole.paste(ground.convert('RGB'), (0, top))
  return whole


def _on_white(picture: Image.Image) -> Image.Image:
  # Pillow cannot convert 16 bits with a transparent grey.
  if picture.has_transparency_data and picture.mode not in _SIXTEEN_BITS:
    return laid_upon(picture, 'white')
  return picture.convert('RGB')


def _eight_bits(picture: Image.Image) -> Image.Image:
  grey = np.asarray(picture).astype(np.float32)
  np.clip(grey, 0, 65_535, out=grey)
  grey /= 257
  np.rint(grey, out=grey)
  return Image.fromarray(grey.astype(np.uint8))


def check_colour(field: str, colour: str) -> None:
  """A UsageError unless Pillow knows the colour ('white', '#ffffff')."""
  try:
    ImageColor.getrgb(colour)
  except ValueError:
    raise UsageError(
      f'{field}={colour!r}: not a colour; use a name such as white, or #rrggbb'
    ) from None


def _centre_crop(
  picture: Image.Image, size: tuple[int, int], whole: Callable[[float], int]
) -> Image.Image:
  """`whole` makes a number of pixels of a half; the width comes first."""
  left = whole((picture.width - size[0]) / 2)
  top = whole((picture.height - size[1]) / 2)
  return picture.crop((left, top, left + size[0], top + size[1]))


def _centre_pad(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
  # The odd pixel goes right or bottom. Zero in the picture's own mode: white
  # for CMYK, the first colour of a palette.
  across, down = size[0] - picture.width, size[1] - picture.height
  left, top = across // 2, down // 2
  return ImageOps.expand(
    picture, (left, top, across - left, down - top), fill=0
  )
