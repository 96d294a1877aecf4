"""The preprocessing of images, as plain data that is checked.

`images.preprocess` applies it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageColor

from clip_jax.errors import UsageError

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
RESIZE_MODES = ('shortest', 'squash', 'longest', 'none', 'native')
MAX_SIDE = 16_384  # pixels; descriptions come from strangers' files
MAX_PATCHES = 65_536
CONVENTIONS = ('open_clip', 'transformers')
_CHOICES = {
  'resize_mode': RESIZE_MODES,
  'interpolation': INTERPOLATIONS,
  'convention': CONVENTIONS,
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """The transform that a model was published with; part of its description.

  Attributes:
    image_size: S, pixels; the result is S x S. A pair is its height and
      width, with open_clip's convention; models read squares. With 'native',
      the side of the largest square, P times the root of L.
    resize_mode: 'shortest' scales the image until it covers the result, and
      crops the centre (OpenAI), 'squash' ignores the aspect, 'longest' scales
      it until it fits in, and pads with zeros; 'none' only crops the centre,
      with black around what is smaller. 'native' keeps the aspect: the result
      has as many patches as `max_patches` allows (NaFlex; see `images`).
    interpolation: a key of `INTERPOLATIONS`. A 'shortest' that is not square
      is always bicubic, as open_clip's.
    mean, std: per channel, of values in [0, 1]; applied on the device.
    background: a colour, such as 'white', that transparent images are laid
      upon before anything else; grey of 16 bits is scaled to 8 bits, too. That
      is how a person sees them. None is what the published models saw:
      transparency is treated as the convention says, and grey of 16 bits is cut
      off at 255, which makes nearly all of it white.
    exif: rotate photographs as their EXIF orientation says. False takes the
      pixels as stored, which is what the published models saw.
    convention: the library whose transform it is. 'open_clip' (OpenAI's is the
      same): the image is resized and cropped in the file's own mode, then
      converted to RGB, which drops the transparency; offsets of the crop that
      end in a half are rounded as Python's `round` does. 'transformers' (its
      Pillow image processors): the image is composited on white and converted
      to RGB first, and such offsets are rounded down.
    resize_to: pixels to resize to before the centre is cropped, where that is
      another size than the result's: the short side, or with 'squash' the
      height and the width. None is the size of the result.
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
  patch_size: int = 0
  max_patches: int = 0

  def __post_init__(self):
    _check_values(vars(self))
    self._check_patches()
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
        'images that are not square'
      )

  @classmethod
  def native(
    cls, patch_size: int, max_patches: int, **fields: Any
  ) -> 'Preprocessing':
    """Returns the preprocessing of images that keep their aspect.

    Args:
      patch_size: pixels a side.
      max_patches: of an image.
      fields: others of the class, maybe with JSON's lists.
    """
    return cls.from_dict(
      {
        'image_size': _largest_square(patch_size, max_patches),
        'resize_mode': 'native',
        'patch_size': patch_size,
        'max_patches': max_patches,
        **fields,
      }
    )

  @property
  def is_native(self) -> bool:
    """True where images keep their aspect ratio, and are read as `Patches`."""
    return self.resize_mode == 'native'

  def _check_patches(self) -> None:
    """Refuses a patch size without native aspect, and the reverse."""
    if self.is_native != bool(self.patch_size and self.max_patches) or (
      self.is_native
      and self.image_size != _largest_square(self.patch_size, self.max_patches)
    ):
      raise UsageError(
        f'resize_mode={self.resize_mode!r} with patch_size={self.patch_size}, '
        f'max_patches={self.max_patches} and image_size={self.image_size}: '
        'native has the first two, and patch_size times the whole root of '
        'max_patches as its image_size; others have neither'
      )

  @property
  def shape(self) -> tuple[int, int]:
    """The height and the width of the result."""
    return pair_of(self.image_size)

  @property
  def side(self) -> int:
    """The side S that a model reads, in pixels.

    Raises:
      UsageError: the result is not square.
    """
    if self.is_native:
      raise UsageError(
        'images of native aspect (NaFlex) have no side: this works for models '
        'that read squares'
      )
    height, width = self.shape
    if height != width:
      raise UsageError(
        f'image_size={self.image_size}: a model reads square images, so '
        'give it one number'
      )
    return height

  def of_size(self, image_size: int) -> 'Preprocessing':
    """Returns this preprocessing for squares of another size, in pixels.

    What the crop leaves out stays in proportion. Images of native aspect have
    at most as many patches as such a square.
    """
    if self.is_native:
      if image_size == self.image_size:
        return self
      side = image_size // self.patch_size
      if not side:
        raise UsageError(
          f'image_size={image_size} is smaller than a patch of '
          f'{self.patch_size} pixels'
        )
      return self.with_max_patches(side**2)
    resize_to, old = self.resize_to, self.shape
    if resize_to is not None and old != (image_size, image_size):
      sides = [
        max(1, round(side * image_size / before))
        for side, before in zip(pair_of(resize_to), old, strict=True)
      ]
      resize_to = (sides[0], sides[1])
      if isinstance(self.resize_to, int):
        resize_to = sides[0]
    return dataclasses.replace(self, image_size=image_size, resize_to=resize_to)

  def with_max_patches(self, max_patches: int) -> 'Preprocessing':
    """Returns this preprocessing, of native aspect, for other lengths."""
    return dataclasses.replace(
      self,
      image_size=_largest_square(self.patch_size, max_patches),
      max_patches=max_patches,
    )

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields by name, as they are written to JSON."""
    fields = dataclasses.asdict(self)
    if not self.is_native:  # older versions do not know them
      del fields['patch_size'], fields['max_patches']
    return fields

  @classmethod
  def from_dict(cls, data: Any) -> 'Preprocessing':
    """Makes a preprocessing of what `to_dict` gives.

    Raises:
      UsageError: a key is unknown or missing, or a value is impossible.
    """
    if not isinstance(data, dict) or 'image_size' not in data:
      raise UsageError('preprocessing: give an object with its image_size')
    values = known_fields(cls, 'preprocessing', data)
    _check_values(values)
    for key in ('mean', 'std'):
      if key in values:
        values[key] = tuple(map(float, values[key]))
    return cls(**values)


def known_fields(
  cls: type, name: str, data: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns JSON's values for a dataclass, with tuples where JSON has lists.

  Raises:
    UsageError: a key is no field of the class; `name` says of what.
  """
  known = [field.name for field in dataclasses.fields(cls)]
  for key in data:
    if key not in known:
      raise UsageError(
        f'{name} has no field {key!r}: known are {", ".join(known)}'
      )
  return {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in data.items()
  }


def pair_of(size: int | tuple[int, int]) -> tuple[int, int]:
  """Returns a height and a width, of a side or of both."""
  return (size, size) if isinstance(size, int) else size


def _largest_square(patch_size: int, patches: int) -> int:
  """Returns the side, in pixels, of the largest square of so many patches."""
  return patch_size * math.isqrt(patches)


def _check_values(values: Mapping[str, Any]) -> None:
  """Refuses a field that is of another type or out of its range."""
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
    elif field in ('patch_size', 'max_patches'):
      most = MAX_SIDE if field == 'patch_size' else MAX_PATCHES
      if type(value) is not int or not 0 <= value <= most:
        raise UsageError(f'{field}={value!r}: use a whole number to {most:,}')
    elif field == 'background' and value is not None:
      check_colour(field, value)


def _check_sides(field: str, size: Any) -> None:
  """Refuses all but a side, or a height and a width, in pixels."""
  pair = isinstance(size, tuple) and len(size) == 2
  sides: tuple[Any, ...] = size if pair else (size,)
  if not all(type(x) is int and x >= 1 for x in sides):
    raise UsageError(f'{field}={size}: use 1 or more, or a height and a width')
  if max(sides) > MAX_SIDE:
    raise UsageError(f'{field}={size}: {MAX_SIDE:,} pixels are the most')


def _check_channels(field: str, values: Any) -> None:
  """Refuses all but a number for each of red, green and blue."""
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


def check_colour(field: str, colour: Any) -> None:
  """Refuses a colour that Pillow does not know ('white', '#ffffff')."""
  try:
    ImageColor.getrgb(colour)
  except (ValueError, AttributeError, TypeError):  # no text has other faults
    raise UsageError(
      f'{field}={colour!r}: not a colour; use a name such as white, or #rrggbb'
    ) from None
