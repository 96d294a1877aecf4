"""Training augmentation on the host: a picture in, uint8 [S, S, 3] out.

The paper's only augmentation is a random square crop of the resized image
(section 2.4). The rest, all off by default, helps small data sets: geometry
keeps shapes recognisable, and colours, blur and noise keep a model from
memorising one artist's pixels.

All strengths are drawn anew for each picture from the generator that is
passed, so that an example is a function of (seed, position in the stream).
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from clip_jax.data.images import (
  INTERPOLATIONS,
  ImageLike,
  Preprocessing,
  check_colour,
  decode,
  upright,
)
from clip_jax.errors import UsageError

# Luma weights of ITU-R BT.601, as in Pillow's convert('L').
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Strengths; the defaults are the paper's crop and nothing else.

  Attributes:
    crop_scale: (least, most) side of the random square squared, as a fraction
      of the square on the picture's shorter side. (1, 1) is the paper's crop:
      the largest square, somewhere along the longer side. Over 1 needs
      padding.
    padding: the border added on each side before the crop, as a fraction of
      the shorter side; with it the crop also shifts a square picture.
    fill: the border's colour.
    rotate: at most so many degrees, either way.
    zoom: scaled by a factor between 1 / (1 + zoom) and 1 + zoom.
    stretch: the same for width against height, their product staying 1.
    shear: at most so many pixels across for each pixel down, either way.
    shift: at most this fraction of the width and of the height, either way.
    flip: probability of a mirror image (it changes what is left and right).
    brightness: all channels times 1 - x to 1 + x.
    channel_gain: each channel times 1 - x to 1 + x, by itself.
    contrast: distance from mid-grey times 1 - x to 1 + x.
    saturation: distance from the pixel's own grey times 1 - x to 1 + x.
    grayscale: probability of a picture without colours.
    blur: Gaussian, standard deviation 0 to so many output pixels.
    noise: Gaussian on each value, standard deviation 0 to so many grey levels
      (of 255).
  """

  crop_scale: tuple[float, float] = (1.0, 1.0)
  padding: float = 0.0
  fill: str = 'white'
  rotate: float = 0.0
  zoom: float = 0.0
  stretch: float = 0.0
  shear: float = 0.0
  shift: float = 0.0
  flip: float = 0.0
  brightness: float = 0.0
  channel_gain: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  grayscale: float = 0.0
  blur: float = 0.0
  noise: float = 0.0

  def __post_init__(self):
    check_colour('fill', self.fill)
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name not in ('crop_scale', 'fill') and value < 0:
        raise UsageError(f'augment.{field.name}={value}: use 0 (off) or more')
    for name in ('flip', 'grayscale', 'brightness', 'channel_gain'):
      if getattr(self, name) > 1:
        raise UsageError(f'augment.{name}={getattr(self, name)}: use at most 1')
    most = (1 + 2 * self.padding) ** 2
    if (
      len(self.crop_scale) != 2
      or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= most + 1e-9
    ):
      raise UsageError(
        f'augment.crop_scale={self.crop_scale}: use (least, most) with '
        f'0 < least <= most <= {most:g}, which is (1 + 2 * padding)^2'
      )

  def to_dict(self) -> dict[str, Any]:
    """As JSON and configs hold it."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, data: dict[str, Any]) -> 'Augmentation':
    """The inverse of `to_dict`; unknown keys are a UsageError."""
    known = [field.name for field in dataclasses.fields(cls)]
    for key in data:
      if key not in known:
        raise UsageError(
          f'augment has no field {key!r}: known are {", ".join(known)}'
        )
    values: dict[str, Any] = {  # JSON has lists where these have tuples.
      key: tuple(value) if isinstance(value, list) else value
      for key, value in data.items()
    }
    return cls(**values)


def augment(
  image: ImageLike,
  preprocessing: Preprocessing,
  augmentation: Augmentation,
  rng: np.random.Generator,
) -> UInt8[np.ndarray, 'S S 3']:
  """One training view of a picture: crop, geometry, colours, blur, noise.

  Raises:
    CorruptImageError: see `images.decode`.
  """
  a = augmentation
  picture = upright(decode(image), preprocessing)
  if picture.mode != 'RGB':
    picture = picture.convert('RGB')
  picture = random_crop(picture, preprocessing, a, rng)
  if a.rotate or a.zoom or a.stretch or a.shear or a.shift or a.flip:
    picture = random_affine(picture, a, rng)
  if (
    a.brightness or a.channel_gain or a.contrast or a.saturation or a.grayscale
  ):
    picture = random_colours(picture, a, rng)
  if a.blur:
    picture = picture.filter(ImageFilter.GaussianBlur(rng.random() * a.blur))
  pixels = np.asarray(picture)
  if a.noise:
    pixels = add_noise(pixels, rng.random() * a.noise, rng)
  return pixels


def random_crop(
  picture: Image.Image,
  preprocessing: Preprocessing,
  augmentation: Augmentation,
  rng: np.random.Generator,
) -> Image.Image:
  """The paper's random square crop, resized to S x S in the same pass."""
  a = augmentation
  size = preprocessing.image_size
  width, height = picture.size
  short = min(width, height)
  if a.padding:
    border = math.ceil(a.padding * short)
    canvas = Image.new('RGB', (width + 2 * border, height + 2 * border), a.fill)
    canvas.paste(picture, (border, border))
    picture = canvas
    width, height = picture.size
  u, v, w = rng.random(3)
  least, most = a.crop_scale
  side = min(short * math.sqrt(least + u * (most - least)), width, height)
  left, top = v * (width - side), w * (height - side)
  # Rounding must not carry the box over the edge: Pillow refuses that.
  box = (left, top, min(left + side, width), min(top + side, height))
  return picture.resize(
    (size, size), INTERPOLATIONS[preprocessing.interpolation], box=box
  )


def random_affine(
  picture: Image.Image, augmentation: Augmentation, rng: np.random.Generator
) -> Image.Image:
  """Flip, rotation, zoom, stretch, shear and shift as one resampling."""
  a = augmentation
  turn, size, ratio, slant, right, down = (2 * rng.random(6) - 1).tolist()
  angle = math.radians(a.rotate * turn)
  zoom = (1 + a.zoom) ** size
  stretch = math.sqrt((1 + a.stretch) ** ratio)
  wide, tall = zoom * stretch, zoom / stretch
  if a.flip and rng.random() < a.flip:
    wide = -wide
  shear = a.shear * slant
  cos, sin = math.cos(angle), math.sin(angle)
  # Forward: scale, then shear, then rotate, about the centre, then shift.
  # Pillow asks for the inverse: where each output pixel comes from.
  xx, xy = (cos + shear * sin) / wide, (sin - shear * cos) / wide
  yx, yy = -sin / tall, cos / tall
  width, height = picture.size
  out_x = width * (0.5 + a.shift * right)
  out_y = height * (0.5 + a.shift * down)
  source = (
    *(xx, xy, width / 2 - xx * out_x - xy * out_y),
    *(yx, yy, height / 2 - yx * out_x - yy * out_y),
  )
  return picture.transform(
    picture.size,
    Image.Transform.AFFINE,
    source,
    Image.Resampling.BICUBIC,
    fillcolor=a.fill,
  )


def random_colours(
  picture: Image.Image, augmentation: Augmentation, rng: np.random.Generator
) -> Image.Image:
  """Saturation, gains, brightness and contrast as one 3 x 4 matrix."""
  a = augmentation
  signed = 2 * rng.random(6) - 1
  keep = 1 + a.saturation * signed[0]
  if a.grayscale and rng.random() < a.grayscale:
    keep = 0.0
  matrix = keep * np.eye(3) + (1 - keep) * _LUMA  # Rows: output channels.
  gains = (1 + a.channel_gain * signed[1:4]) * (1 + a.brightness * signed[4])
  contrast = 1 + a.contrast * signed[5]
  matrix = matrix * (contrast * gains)[:, None]
  offset = 127.5 * (1 - contrast)
  rows = np.concatenate([matrix, np.full((3, 1), offset)], axis=1)
  return picture.convert('RGB', tuple(rows.ravel().tolist()))


def add_noise(
  pixels: UInt8[np.ndarray, 'H W 3'], deviation: float, rng: np.random.Generator
) -> UInt8[np.ndarray, 'H W 3']:
  """Adds Gaussian noise of a standard deviation in grey levels (of 255)."""
  noise = rng.standard_normal(pixels.shape, np.float32) * deviation
  return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
