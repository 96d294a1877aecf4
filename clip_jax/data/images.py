"""Host-side images: resize, crop, convert; uint8 in and uint8 out.

The published evaluation transforms are exact, to the byte, because Pillow does
the resizing. Models differ in when the image is converted to RGB: see
`Preprocessing.convention`. Normalisation happens on the device.

`decoding` reads files; its names are here, too.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageColor, ImageOps

from clip_jax.data.decoding import (
  MAX_PIXELS,
  SIXTEEN_BITS,
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
  'Preprocessing', 'as_displayed', 'check_colour', 'convert', 'decode',
  'laid_upon', 'limit_megapixels', 'on_white', 'pillow_errors', 'preprocess',
  'read_bytes', 'upright',
]  # fmt: skip

# Channel means and deviations of [0, 1] values, as in OpenAI's weights.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

INTERPOLATIONS = {
  'bicubic': Image.Resampling.BICUBIC,
  'bilinear': Image.Resampling.BILINEAR,
  'nearest': Image.Resampling.NEAREST,
  'lanczos': Image.Resampling.LANCZOS,
  'box': Image.Resampling.BOX,
  'hamming': Image.Resampling.HAMMING,
}
RESIZE_MODES = ('shortest', 'squash', 'longest', 'none')
_MAX_SIDE = 16_384  # pixels; descriptions come from strangers' files
CONVENTIONS = ('open_clip', 'transformers')
_CHOICES = {
  'resize_mode': RESIZE_MODES,
  'interpolation': INTERPOLATIONS,
  'convention': CONVENTIONS,
}
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
      it until it fits in, and pads with zeros; 'none' only crops the centre,
      with black around what is smaller.
    interpolation: a key of `INTERPOLATIONS`. A 'shortest' that is not square
      is always bicubic, as open_clip's.
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
    resize_to: pixels before the centre is cropped, where a file of
      transformers has another number of them than the result: of the short
      side, or with 'squash' the height and the width. None: as the result.
  """

  image_size: int | tuple[int, int]
  resize_mode: str = 'shortest'
  interpolation: str = 'bicubic'
  mean: tuple[float, float, float] = CLIP_MEAN
  std: tuple[float, float, float] = CLIP_STD
  background: str | None = None
  exif: bool = False
  convention: str = 'open_clip'
  resize_to: int | tuple[int, int] | None = None

  def __post_init__(self):
    _check_values(vars(self))
    if self.resize_to is not None and self.resize_mode not in (
      ('squash',)
      if isinstance(self.resize_to, tuple)
      else ('shortest', 'squash')
    ):
      raise UsageError(
        f'resize_to={self.resize_to} with resize_mode={self.resize_mode!r}: '
        'shortest takes one number, squash one or two'
      )
    if len(set(self.shape)) > 1 and self.convention != 'open_clip':
      raise UsageError(
        f"image_size={self.image_size}: only open_clip's convention makes "
        'pictures that are not square'
      )

  @property
  def shape(self) -> tuple[int, int]:
    """Height and width of the result."""
    return _pair(self.image_size)

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

  def of_size(self, image_size: int) -> 'Preprocessing':
    """The same for a square result of another size, with as much cropped."""
    resize_to, old = self.resize_to, self.shape
    if resize_to is not None and old != (image_size, image_size):
      sides = [
        max(1, round(side * image_size / before))
        for side, before in zip(_pair(resize_to), old, strict=True)
      ]
      resize_to = (sides[0], sides[1])
      if isinstance(self.resize_to, int):
        resize_to = sides[0]
    return dataclasses.replace(self, image_size=image_size, resize_to=resize_to)

  def to_dict(self) -> dict[str, Any]:
    """As JSON holds it."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, data: Any) -> 'Preprocessing':
    """The inverse of `to_dict`.

    Raises:
      UsageError: a key is unknown or missing, or a value is impossible.
    """
    if not isinstance(data, dict) or 'image_size' not in data:
      raise UsageError('preprocessing: give an object with its image_size')
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
    _check_values(values)
    for key in ('mean', 'std'):
      if key in values:
        values[key] = tuple(map(float, values[key]))
    return cls(**values)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
  return (size, size) if isinstance(size, int) else size


def _check_values(values: Mapping[str, Any]) -> None:
  """A UsageError for a field that is of another type or out of its range."""
  for field, value in values.items():
    if field == 'image_size' or (field == 'resize_to' and value is not None):
      _check_sides(field, value)
    elif field in ('mean', 'std'):
      _check_channels(field, value)
    elif field in _CHOICES:
      known = _CHOICES[field]
      if not isinstance(value, str) or value not in known:
        raise UsageError(f'{field}={value!r}: use one of {", ".join(known)}')
    elif field == 'exif' and not isinstance(value, bool):
      raise UsageError(f'exif={value!r}: use true or false')
    elif field == 'background' and value is not None:
      check_colour(field, value)


def _check_sides(field: str, size: Any) -> None:
  """A UsageError unless it is a side, or a height and a width, in pixels."""
  pair = isinstance(size, tuple) and len(size) == 2
  sides: tuple[Any, ...] = size if pair else (size,)
  if not all(type(x) is int and x >= 1 for x in sides):
    raise UsageError(f'{field}={size}: use 1 or more, or a height and a width')
  if max(sides) > _MAX_SIDE:
    raise UsageError(f'{field}={size}: {_MAX_SIDE:,} pixels are the most')


def _check_channels(field: str, values: Any) -> None:
  """A UsageError unless it is a number for each of red, green and blue."""
  numbers = isinstance(values, tuple) and all(
    isinstance(x, int | float)
    and not isinstance(x, bool)
    and abs(x) < 1e6  # nor NaN
    for x in values
  )
  if not numbers or len(values) != 3:
    raise UsageError(f'{field}={values!r} is not three numbers')
  if field == 'std' and min(values) <= 0:
    raise UsageError(f'std={values}: each has to be above 0')


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
    picture = on_white(picture)
  height, width = preprocessing.shape
  resample = INTERPOLATIONS[preprocessing.interpolation]
  if preprocessing.resize_mode == 'longest':
    ratio = max(picture.width / width, picture.height / height)
    new = [max(1, round(side / ratio)) for side in picture.size]
    picture = _resize(picture, (new[0], new[1]), resample)
    picture = _centre_pad(picture, (width, height))
  else:
    rows, columns = _pair(preprocessing.resize_to or preprocessing.shape)
    if preprocessing.resize_mode == 'squash':
      picture = _resize(picture, (columns, rows), resample)
    elif preprocessing.resize_mode == 'shortest':
      if height != width:  # which open_clip does in a way of its own
        resample = Image.Resampling.BICUBIC
      new = _covering(picture.size, (columns, rows))
      picture = _resize(picture, new, resample)
    # Python's round, halves to even, is torchvision's.
    whole = math.floor if rgb_first else round
    picture = _centre_crop(picture, (width, height), whole)
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
    if picture.mode in SIXTEEN_BITS:
      picture = _eight_bits(picture)
    if picture.has_transparency_data:
      picture = laid_upon(picture, preprocessing.background)
  return picture


def as_displayed(picture: Image.Image) -> Image.Image:
  """Returns a decoded image in RGB, as a viewer shows it on a white page.

  It is turned by its EXIF orientation, and grey of 16 bits is scaled to 8.

  Raises:
    CorruptImageError: its palette or its transparency is damaged.
  """
  displayed = Preprocessing(image_size=1, background='white', exif=True)
  return convert(upright(picture, displayed), 'RGB')


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


@pillow_errors()
def on_white(picture: Image.Image) -> Image.Image:
  """Returns an image as RGB, and on white where it is transparent.

  Raises:
    CorruptImageError: its palette or its transparency is damaged.
  """
  # Pillow cannot convert 16 bits with a transparent grey.
  if picture.has_transparency_data and picture.mode not in SIXTEEN_BITS:
    return laid_upon(picture, 'white')
  return picture.convert('RGB')


def _eight_bits(picture: Image.Image) -> Image.Image:
  grey = np.asarray(picture).astype(np.float32)
  np.clip(grey, 0, 65_535, out=grey)
  grey /= 257
  np.rint(grey, out=grey)
  return Image.fromarray(grey.astype(np.uint8))


def check_colour(field: str, colour: Any) -> None:
  """A UsageError unless Pillow knows the colour ('white', '#ffffff')."""
  try:
    ImageColor.getrgb(colour)
  except (ValueError, AttributeError, TypeError):  # no text has other faults
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
