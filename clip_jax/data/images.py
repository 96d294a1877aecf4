"""Images on the host: resize, crop, convert; uint8 in and uint8 out.

The published evaluation transforms are exact, to the byte, because Pillow does
the resizing. Models differ in when the image is converted to RGB: see
`Preprocessing.convention`. Normalisation happens on the device.

`decoding` reads the files; a `Preprocessing` says what is done to an image.

Of native aspect ratio (NaFlex: SigLIP 2, arXiv 2502.14786, section 2.4.2, after
NaViT, arXiv 2307.06304, and FlexiViT, arXiv 2212.08013), an image is resized so
that both its sides are whole patches, its aspect stays as nearly as that
allows, and it has at most L patches; then it is split, and padded to L.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from clip_jax.data.decoding import (
  MAX_PIXELS,
  SIXTEEN_BITS,
  CorruptImageError,
  ImageLike,
  convert,
  decode,
  pillow_errors,
)
from clip_jax.data.preprocessing import (
  INTERPOLATIONS,
  Preprocessing,
  pair_of,
)

# How each EXIF orientation is turned upright; others need no turn.
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# The search for the scale at which an image has L patches ends when it is known
# as precisely as this; it never enlarges an image more than that.
_PRECISION = 1e-5
_MOST_ENLARGED = 100.0
# The pixels of a transparent image that are composited at a time.
_STRIP_PIXELS = 2**22


class Patches(NamedTuple):
  """One image or many, as patches: what a tower reads in place of squares.

  Attributes:
    pixels: [*B, L, P, P, 3]. The patches of an image come row by row; what
      follows them is padding, whose content no result depends on.
    grid: int32 [*B, 2], the rows and columns of patches of each image.
  """

  pixels: Any
  grid: Any


@pillow_errors()
def preprocess(
  image: ImageLike, preprocessing: Preprocessing
) -> UInt8[np.ndarray, 'H W 3']:
  """Applies the evaluation transform that a model was published with.

  Equal to `open_clip.transform.image_transform`, or to `process` of the Pillow
  image processors of transformers, before the normalisation; as large as
  `preprocessing.shape` says, or of native aspect as whole patches.

  Raises:
    CorruptImageError: see `decode`; or it is too thin to be scaled.
  """
  image = upright(decode(image), preprocessing)
  rgb_first = preprocessing.convention == 'transformers'
  if rgb_first:
    image = on_white(image)
  height, width = preprocessing.shape
  resample = INTERPOLATIONS[preprocessing.interpolation]
  if preprocessing.is_native:
    size = preprocessing.patch_size
    rows, columns = fit_grid(
      image.height, image.width, size, preprocessing.max_patches
    )
    image = _resize(image, (columns * size, rows * size), resample)
  elif preprocessing.resize_mode == 'longest':
    ratio = max(image.width / width, image.height / height)
    new = [max(1, round(side / ratio)) for side in image.size]
    image = _resize(image, (new[0], new[1]), resample)
    image = _centre_pad(image, (width, height))
  else:
    rows, columns = pair_of(preprocessing.resize_to or preprocessing.shape)
    if preprocessing.resize_mode == 'squash':
      image = _resize(image, (columns, rows), resample)
    elif preprocessing.resize_mode == 'shortest':
      if height != width:  # which open_clip does in a way of its own
        resample = Image.Resampling.BICUBIC
      new = _covering(image.size, (columns, rows))
      image = _resize(image, new, resample)
    # Python's round, halves to even, is torchvision's.
    round_half = math.floor if rgb_first else round
    image = _centre_crop(image, (width, height), round_half)
  return np.asarray(image.convert('RGB'))


def images_of(batch: Mapping[str, Any]) -> Any:
  """Returns the images of a training batch, as an image tower takes them."""
  if 'grid' in batch:
    return Patches(batch['image'], batch['grid'])
  return batch['image']


def fit_grid(
  height: int, width: int, patch_size: int, most: int
) -> tuple[int, int]:
  """Returns the rows and columns of patches that an image is resized to.

  They are as many as `most` allows; both are rounded up from the same scale of
  the image, which is bisected in the steps of the published code, so that the
  results are the same (`get_image_size_for_max_num_patches` of transformers,
  `_get_image_size_for_seq` of big_vision).

  Args:
    height, width: of the image, in pixels.
    patch_size: pixels a side.
    most: the largest number of patches.
  """

  def grid(scale: float) -> tuple[int, int]:
    rows, columns = (
      max(1, math.ceil(side * scale / patch_size)) for side in (height, width)
    )
    return rows, columns

  low, high = _PRECISION / 10, _MOST_ENLARGED
  while high - low >= _PRECISION:
    middle = (low + high) / 2
    rows, columns = grid(middle)
    if rows * columns <= most:
      low = middle
    else:
      high = middle
  return grid(low)


def as_input(
  pixels: UInt8[np.ndarray, 'H W 3'], preprocessing: Preprocessing
) -> UInt8[np.ndarray, 'H W 3'] | Patches:
  """Returns what a model reads of an image that was preprocessed.

  It is the image itself, or of native aspect its patches, padded by zeros.
  """
  if not preprocessing.is_native:
    return pixels
  size = preprocessing.patch_size
  rows, columns = pixels.shape[0] // size, pixels.shape[1] // size
  patches = pixels.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
  padded = np.zeros((preprocessing.max_patches, size, size, 3), np.uint8)
  padded[: rows * columns] = patches.reshape(-1, size, size, 3)
  return Patches(padded, np.array([rows, columns], np.int32))


def _covering(old: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
  """Returns the size, width first, at which an image covers the target.

  Raises:
    CorruptImageError: it would have more than MAX_PIXELS pixels.
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
  image: Image.Image, size: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
  """Returns the image at another size, the width first."""
  # Pillow scales the width first: rows of a thin image would fill the memory.
  if size[0] * image.height > MAX_PIXELS:
    image = image.resize((image.width, size[1]), resample)
  return image.resize(size, resample)


@pillow_errors()
def upright(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
  """Applies the options for users' own images: EXIF and background.

  Raises:
    CorruptImageError: its palette or its transparency is damaged.
  """
  turn = turn_of(image, preprocessing)
  if turn is not None:
    image = image.transpose(turn)
  if preprocessing.background:
    if image.mode in SIXTEEN_BITS:
      image = eight_bits(image)
    if image.has_transparency_data:
      image = composite_on(image, preprocessing.background)
  return image


def turn_of(
  image: Image.Image, preprocessing: Preprocessing
) -> Image.Transpose | None:
  """Returns how the image is turned upright; None where it stays as it is."""
  return _TURNS.get(_orientation(image)) if preprocessing.exif else None


def decode_rgb(image: ImageLike, preprocessing: Preprocessing) -> Image.Image:
  """Decodes an image, and returns it upright and in RGB.

  Raises:
    CorruptImageError: see `decode`.
  """
  return convert(upright(decode(image), preprocessing), 'RGB')


def as_displayed(image: Image.Image) -> Image.Image:
  """Returns a decoded image in RGB, as a viewer shows it on a white page.

  It is turned by its EXIF orientation, and grey of 16 bits is scaled to 8.

  Raises:
    CorruptImageError: its palette or its transparency is damaged.
  """
  displayed = Preprocessing(image_size=1, background='white', exif=True)
  return convert(upright(image, displayed), 'RGB')


def _orientation(image: Image.Image) -> int:
  """Returns the EXIF orientation; 1 where it is damaged or missing."""
  try:
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
  except Exception:  # The pixels are whole, and viewers show them, too.
    return 1
  return orientation if isinstance(orientation, int) else 1


@pillow_errors()
def composite_on(image: Image.Image, colour: str) -> Image.Image:
  """Returns a transparent image as RGB, on a background of one colour.

  Raises:
    CorruptImageError: its palette or its transparency is damaged.
  """
  width, height = image.size
  rows = max(1, _STRIP_PIXELS // width)
  composite = Image.new('RGB', image.size)
  for top in range(0, height, rows):
    strip = image.crop((0, top, width, min(top + rows, height)))
    background = Image.new('RGBA', strip.size, colour)
    background.alpha_composite(strip.convert('RGBA'))
    composite.paste(background.convert('RGB'), (0, top))
  return composite


@pillow_errors()
def on_white(image: Image.Image) -> Image.Image:
  """Returns an image as RGB, and on white where it is transparent.

  Raises:
    CorruptImageError: its palette or its transparency is damaged.
  """
  # Pillow cannot convert 16 bits with a transparent grey.
  if image.has_transparency_data and image.mode not in SIXTEEN_BITS:
    return composite_on(image, 'white')
  return image.convert('RGB')


def eight_bits(image: Image.Image) -> Image.Image:
  """Returns grey of SIXTEEN_BITS scaled to 8 bits."""
  grey = np.asarray(image).astype(np.float32)
  np.clip(grey, 0, 65_535, out=grey)
  grey /= 257
  np.rint(grey, out=grey)
  return Image.fromarray(grey.astype(np.uint8))


def _centre_crop(
  image: Image.Image, size: tuple[int, int], round_half: Callable[[float], int]
) -> Image.Image:
  """Crops the centre to a size, width first.

  Args:
    round_half: makes a whole number of an offset that ends in a half.
  """
  left = round_half((image.width - size[0]) / 2)
  top = round_half((image.height - size[1]) / 2)
  return image.crop((left, top, left + size[0], top + size[1]))


def _centre_pad(image: Image.Image, size: tuple[int, int]) -> Image.Image:
  # The odd pixel goes right or bottom. Zero in the image's own mode: white
  # for CMYK, the first colour of a palette.
  across, down = size[0] - image.width, size[1] - image.height
  left, top = across // 2, down // 2
  return ImageOps.expand(image, (left, top, across - left, down - top), fill=0)
