"""Decodes JPEGs for training crops, and resizes the crops, by SIMD libraries.

`data.decode` chooses between this and Pillow. Same crop, same geometry, other
rounding: a JPEG whose crops are all shrunk to an eighth, a quarter or half is
decoded at that size, colours are interpolated less finely, and the resizing
filter has less precise weights. Whatever is not a plain colour photograph, or
does not decode without a warning, goes to Pillow and is what it always was.

Milliseconds of one core (EPYC 9004) for a JPEG of 500 x 375, of 35 to 65 kB,
and for a bicubic crop of 375 x 375 resized to 224 x 224:

    decode   Pillow 0.74, simplejpeg 0.62, with plain upsampling 0.58;
             at 5/8 of the size 0.85 (there is no SIMD for it), at 1/2 0.50
    resize   Pillow 1.53 (bilinear 0.92), cykooz_resizer 0.27;
             OpenCV's INTER_AREA 0.82, its INTER_CUBIC 0.12 but aliased

So simplejpeg is worth a fifth, and cykooz_resizer, a wheel of 2 MB, half of all
time; OpenCV's 60 MB are not. cykooz_resizer has no wheel for Linux on ARM:
there, Pillow resizes.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from clip_jax.data.decoding import open_image
from clip_jax.data.images import decode_rgb, fit_grid, turn_of
from clip_jax.data.preprocessing import INTERPOLATIONS, Preprocessing

try:
  import cykooz_resizer  # pyright: ignore[reportMissingImports]
except ImportError:
  cykooz_resizer: Any = None

# The filters of `INTERPOLATIONS` by cykooz_resizer's names. Those that look at
# single pixels (nearest, box) are left to Pillow.
FILTERS = {
  'bicubic': 'catmull_rom',
  'bilinear': 'bilinear',
  'lanczos': 'lanczos3',
}
# Pixels that a filter reaches to either side, at a scale of 1, at most.
_REACH = 3
# The decoder's own scaling is sharper than a filter is. Where it leaves a
# fourth to the filter, they differ about as bilinear does from bicubic.
_MARGIN = 1.25
# A crop that is shrunk so many times hides how colours were interpolated: on
# natural images 0.5 of 255 in the mean, and 0.1 for the resizing itself.
_SHRINK_HIDES_COLOUR = 1.5
# Below so many pixels a side, simplejpeg may take another scale than is meant.
_LEAST_SIDE = 8


class ScaledImage(NamedTuple):
  """A photograph that was decoded at its size, or at a fraction of it.

  Attributes:
    pixels: uint8 [ceil(height / factor), ceil(width / factor), 3].
    size: of the file, the width first.
    factor: 1, 2, 4 or 8; each of `pixels` stands for factor x factor of the
      file's.
  """

  pixels: UInt8[np.ndarray, 'h w 3']
  size: tuple[int, int]
  factor: int

  def resize_crop(
    self,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    interpolation: str,
  ) -> UInt8[np.ndarray, 'H W 3']:
    """Returns a crop, resized.

    Args:
      box: left, top, right, bottom, in pixels of the file.
      size: of the result, the width first.
      interpolation: a key of `FILTERS`.
    """
    left, top, right, bottom = (edge / self.factor for edge in box)
    # Only the pixels that the resampling filter reads are passed on.
    shrink = (right - left) / size[0]
    if size[0] != size[1]:  # of a square crop, both are the same
      shrink = max(shrink, (bottom - top) / size[1])
    margin = 1 + math.ceil(_REACH * max(1.0, shrink))
    x, y = max(0, int(left) - margin), max(0, int(top) - margin)
    pixels = self.pixels[
      y : math.ceil(bottom) + margin, x : math.ceil(right) + margin
    ]
    box = (left - x, top - y, right - x, bottom - y)
    if cykooz_resizer is None:
      resample = INTERPOLATIONS[interpolation]
      small = Image.fromarray(pixels).resize(size, resample, box=box)
      return np.asarray(small)
    return _resize(pixels, box, size, interpolation)


def decode_scaled(
  data: bytes, preprocessing: Preprocessing, least_area: float
) -> Image.Image | ScaledImage:
  """Decodes an image, upright and in RGB, as large as its crops need.

  Args:
    data: an encoded image.
    preprocessing: its size, the interpolation, and what to do about EXIF.
    least_area: of the smallest crop, as a fraction of the largest (the square
      on the image's shorter side, or of native aspect the image).
  Returns:
    A colour JPEG scaled, and everything else as `images.decode_rgb` has it.
  Raises:
    CorruptImageError: as `decode_rgb`, for the same images.
  """
  image = open_image(data)
  if (
    image.format in ('JPEG', 'MPO')
    and image.mode == 'RGB'
    and turn_of(image, preprocessing) is None
  ):
    shrink = _least_shrink(image.size, preprocessing, least_area)
    factor = next((f for f in (8, 4, 2) if shrink >= _MARGIN * f), 1)
    pixels = _decode(data, image.size, factor, shrink >= _SHRINK_HIDES_COLOUR)
    if pixels is not None:
      return ScaledImage(pixels, image.size, factor)
  return decode_rgb(image, preprocessing)


def _least_shrink(
  size: tuple[int, int], preprocessing: Preprocessing, least_area: float
) -> float:
  """Returns how many times smaller the smallest crop becomes, at the least."""
  part = min(1.0, math.sqrt(least_area))
  if not preprocessing.is_native:
    return min(size) * part / max(preprocessing.side, _LEAST_SIDE)
  width, height = size
  patch = preprocessing.patch_size
  rows, columns = fit_grid(height, width, patch, preprocessing.max_patches)
  down, across = (max(n * patch, _LEAST_SIDE) for n in (rows, columns))
  return min(width * part / across, height * part / down)


def _decode(
  data: bytes, size: tuple[int, int], factor: int, plain_colour: bool
) -> UInt8[np.ndarray, 'h w 3'] | None:
  """Returns the pixels; None if the decoder so much as warns.

  Args:
    size: what Pillow says, the width first; of a JPEG that is over the limit of
      pixels, it is smaller than what the file says, and Pillow has to decode.
    factor: how many times smaller the result is.
    plain_colour: repeat the halved colours of 4:2:0 instead of interpolating.
  """
  columns, rows = (-(-length // factor) for length in size)
  try:
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    if (width, height) != size:
      return None
    pixels = simplejpeg.decode_jpeg(
      data,
      fastupsample=plain_colour,
      min_height=rows,
      min_width=columns,
      strict=True,
    )
  except ValueError:
    return None
  return pixels if pixels.shape == (rows, columns, 3) else None


def _resize(
  pixels: UInt8[np.ndarray, 'h w 3'],
  box: tuple[float, float, float, float],
  size: tuple[int, int],
  interpolation: str,
) -> UInt8[np.ndarray, 'H W 3']:
  """Resizes a box of pixels by cykooz_resizer."""
  height, width = pixels.shape[:2]
  left, top, right, bottom = box
  kind = cykooz_resizer.PixelType.U8x3
  source = cykooz_resizer.ImageData(width, height, kind, pixels.tobytes())
  target = cykooz_resizer.ImageData(*size, kind)
  kernel = getattr(cykooz_resizer.FilterType, FILTERS[interpolation])
  options = cykooz_resizer.ResizeOptions(
    resize_alg=cykooz_resizer.ResizeAlg.convolution(kernel),
    crop_box=cykooz_resizer.CropBox(
      left, top, _length(left, right, width), _length(top, bottom, height)
    ),
  )
  cykooz_resizer.Resizer().resize(source, target, options)
  values = np.frombuffer(target.get_buffer(), np.uint8)
  return values.reshape(size[1], size[0], 3)


def _length(start: float, end: float, limit: int) -> float:
  """Returns end - start, which added to start does not exceed the limit."""
  length = end - start
  return length if start + length <= limit else math.nextafter(length, 0)
