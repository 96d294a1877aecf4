"""Training augmentation on the host: an RGB image in, its pixels out.

The paper's only augmentation is a random square crop of the resized image
(section 2.4). The rest, all off by default, helps small data sets: geometry
keeps shapes recognisable, and colours, blur and noise keep a model from
memorising one artist's pixels.

All strengths are drawn anew for each image from the generator that is
passed, so that an example is a function of (seed, position in the stream).
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageColor, ImageFilter

from clip_jax.data import transforms
from clip_jax.data.images import fit_grid
from clip_jax.data.preprocessing import (
  INTERPOLATIONS,
  Preprocessing,
  check_colour,
  known_fields,
)
from clip_jax.errors import UsageError

if TYPE_CHECKING:
  from clip_jax.data.fast_jpeg import ScaledImage

# Luma weights of ITU-R BT.601, as in Pillow's convert('L').
_LUMA = np.array([0.299, 0.587, 0.114])

# Probabilities, and fractions by which a value is made smaller at most.
_AT_MOST_ONE = (
  'plain', 'flip', 'brightness', 'channel_gain', 'grayscale', 'fade', 'shade',
  'erase',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """The strengths of augmentation; the defaults are the paper's crop alone.

  Attributes:
    crop_scale: (least, most) side of the random square squared, as a fraction
      of the square on the image's shorter side. (1, 1) is the paper's crop:
      the largest square, somewhere along the longer side. Over 1 needs
      padding. Where images keep their aspect (NaFlex), the crop has the
      image's own, and is this fraction of all of it.
    padding: the border added on each side before the crop, as a fraction of
      the shorter side; with it the crop also shifts a square image.
    fill: the border's colour.
    plain: probability that an image gets the crop, and nothing of the rest.
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
    grayscale: probability of an image without colours.
    blur: Gaussian, standard deviation 0 to so many output pixels.
    noise: Gaussian on each value, standard deviation 0 to so many grey levels
      (of 255).
    bend: a bent sheet: nine points of it moved by a standard deviation of
      this fraction of the width and of the height.
    ink_mix: standard deviation of how much of each colour's ink goes into
      each other's, and of its own change; white stays white, as below.
    ink_gain: standard deviation of the logarithm of a gain of all ink.
    fade: probability that the three inks go part of the way to their mean.
    outline: in half of the images, up to this much ink for a jump of 1.
    sharpen: in half of the images, up to so many times the difference to a
      3 x 3 mean, added or taken away.
    shade: ink times 1 - x to 1 + x at most, from one side to another.
    gamma: colours to a power of between 1 / (1 + gamma) and 1 + gamma.
    erase: probability of a rectangle, an eighth to a third of the shorter side
      each way, of some colour or of `fill`.
  """

  crop_scale: tuple[float, float] = (1.0, 1.0)
  padding: float = 0.0
  fill: str = 'white'
  plain: float = 0.0
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
  bend: float = 0.0
  ink_mix: float = 0.0
  ink_gain: float = 0.0
  fade: float = 0.0
  outline: float = 0.0
  sharpen: float = 0.0
  shade: float = 0.0
  gamma: float = 0.0
  erase: float = 0.0

  def __post_init__(self):
    check_colour('fill', self.fill)
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name not in ('crop_scale', 'fill') and value < 0:
        raise UsageError(f'augment.{field.name}={value}: use 0 (off) or more')
    for name in _AT_MOST_ONE:
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

  @property
  def warps(self) -> bool:
    """True if an option moves, turns or bends the image after the crop."""
    a = self
    return any((a.rotate, a.zoom, a.stretch, a.shear, a.shift, a.flip, a.bend))

  @property
  def recolours(self) -> bool:
    """True if an option mixes or scales the colour channels."""
    a = self
    return any(
      (a.brightness, a.channel_gain, a.contrast, a.saturation, a.grayscale)
    )

  @property
  def restyles(self) -> bool:
    """True if an option redraws the image's ink: see `random_style`."""
    a = self
    return any(
      (a.ink_mix, a.ink_gain, a.fade, a.outline, a.sharpen, a.shade, a.gamma)
    )

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields by name, as JSON and configs hold them."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, data: dict[str, Any]) -> 'Augmentation':
    """Makes the settings of what `to_dict` gives; unknown keys are refused."""
    return cls(**known_fields(cls, 'augment', data))


def augment(
  image: 'Image.Image | ScaledImage',
  preprocessing: Preprocessing,
  augmentation: Augmentation,
  rng: np.random.Generator,
) -> UInt8[np.ndarray, 'H W 3']:
  """Returns one training view of an image: crop, geometry, colours, noise.

  It is a square, or of native aspect whole patches.

  Args:
    image: in RGB and upright; see `images.decode_rgb` and
      `fast_jpeg.decode_scaled`.
    preprocessing: its size and interpolation.
    augmentation: the strengths.
    rng: what is random is drawn from it.
  """
  a = augmentation
  view = random_crop(image, preprocessing, a, rng)
  if a.plain and rng.random() < a.plain:
    return np.asarray(view)
  if a.warps or a.recolours or a.blur:
    image = view if isinstance(view, Image.Image) else Image.fromarray(view)
    view = _filtered(image, a, rng)
  pixels = np.asarray(view)
  if a.restyles:
    pixels = random_style(pixels, a, rng)
  if a.noise:
    pixels = add_noise(pixels, rng.random() * a.noise, rng)
  if a.erase and rng.random() < a.erase:
    pixels = erase(pixels, a, rng)
  return pixels


def _filtered(
  image: Image.Image, augmentation: Augmentation, rng: np.random.Generator
) -> Image.Image:
  """Does what Pillow does: geometry, colours and blur."""
  a = augmentation
  if a.warps:
    image = transforms.random_warp(
      image,
      rng,
      rotate=a.rotate,
      zoom=a.zoom,
      stretch=a.stretch,
      shear=a.shear,
      shift=a.shift,
      flip=a.flip,
      bend=a.bend,
      fill=a.fill,
    )
  if a.recolours:
    image = random_colours(image, a, rng)
  if a.blur:
    image = image.filter(ImageFilter.GaussianBlur(rng.random() * a.blur))
  return image


def random_crop(
  image: 'Image.Image | ScaledImage',
  preprocessing: Preprocessing,
  augmentation: Augmentation,
  rng: np.random.Generator,
) -> Image.Image | UInt8[np.ndarray, 'H W 3']:
  """Returns the paper's random square crop, resized to S x S in one pass.

  Or a crop of the image's own aspect, resized to whole patches. It is of the
  same place in either kind of image; a ScaledImage has no padding.
  """
  a = augmentation
  width, height = image.size
  short = min(width, height)
  whole = (short, short)
  if preprocessing.is_native:
    whole = (width, height)
    rows, columns = fit_grid(
      height, width, preprocessing.patch_size, preprocessing.max_patches
    )
    size = (columns * preprocessing.patch_size, rows * preprocessing.patch_size)
  else:
    size = (preprocessing.side, preprocessing.side)
  if a.padding and isinstance(image, Image.Image):
    border = math.ceil(a.padding * short)
    canvas = Image.new('RGB', (width + 2 * border, height + 2 * border), a.fill)
    canvas.paste(image, (border, border))
    image = canvas
    width, height = image.size
  u, v, w = rng.random(3)
  least, most = a.crop_scale
  factor = math.sqrt(least + u * (most - least))
  across, down = min(whole[0] * factor, width), min(whole[1] * factor, height)
  if not preprocessing.is_native:
    across = down = min(across, down)
  left, top = v * (width - across), w * (height - down)
  # Rounding must not carry the box over the edge: Pillow refuses that.
  box = (left, top, min(left + across, width), min(top + down, height))
  if not isinstance(image, Image.Image):
    return image.resize_crop(box, size, preprocessing.interpolation)
  return image.resize(
    size, INTERPOLATIONS[preprocessing.interpolation], box=box
  )


def random_colours(
  image: Image.Image, augmentation: Augmentation, rng: np.random.Generator
) -> Image.Image:
  """Changes saturation, gains, brightness and contrast by one 3 x 4 matrix."""
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
  return image.convert('RGB', tuple(rows.ravel().tolist()))


def add_noise(
  pixels: UInt8[np.ndarray, 'H W 3'], deviation: float, rng: np.random.Generator
) -> UInt8[np.ndarray, 'H W 3']:
  """Adds Gaussian noise of a standard deviation in grey levels (of 255)."""
  noise = rng.standard_normal(pixels.shape, np.float32) * deviation
  return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def random_style(
  pixels: UInt8[np.ndarray, 'H W 3'],
  augmentation: Augmentation,
  rng: np.random.Generator,
) -> UInt8[np.ndarray, 'H W 3']:
  """Draws another artist's colours, outlines, sharpness and light."""
  a = augmentation
  u = rng.random(9).tolist()
  ink = transforms.to_ink(pixels)
  if a.ink_mix or a.ink_gain or a.fade:
    matrix = np.eye(3) + a.ink_mix * rng.standard_normal((3, 3))
    matrix *= math.exp(a.ink_gain * rng.standard_normal())
    if u[0] < a.fade:
      matrix = (1 - u[1]) * matrix + u[1] * matrix.mean(1, keepdims=True)
    ink = transforms.mix(ink, matrix)
  if a.outline and u[2] < 0.5:
    ink = transforms.outline(ink, a.outline * u[3])
  if a.sharpen and u[4] < 0.5:
    ink = transforms.sharpen(ink, a.sharpen * (2 * u[5] - 1))
  if a.shade:
    ink = transforms.shade(
      ink, a.shade * u[6] / math.sqrt(2), 2 * math.pi * u[7]
    )
  return transforms.to_pixels(ink, (1 + a.gamma) ** (2 * u[8] - 1))


def erase(
  pixels: UInt8[np.ndarray, 'H W 3'],
  augmentation: Augmentation,
  rng: np.random.Generator,
) -> UInt8[np.ndarray, 'H W 3']:
  """Hides a rectangle under a random colour or under the fill."""
  size = min(pixels.shape[:2])
  sides = rng.integers(max(1, size // 8), max(1, size // 3) + 1, 2)
  top, left = rng.integers(0, np.array(pixels.shape[:2]) - sides + 1)
  colour = ImageColor.getrgb(augmentation.fill)[:3]
  if rng.random() < 0.5:
    colour = rng.integers(0, 256, 3)
  pixels = pixels.copy()
  pixels[top : top + sides[0], left : left + sides[1]] = colour
  return pixels
