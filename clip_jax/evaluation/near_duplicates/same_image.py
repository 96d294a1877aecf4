"""Compares two images of near hashes pixel by pixel, after aligning them.

Flat images and line drawings of one pattern (stars, signs, clock faces, skin
tones of an emoji) share their lowest frequencies, and with them the hash. A
copy agrees with its original everywhere: once a crop of a few percent is undone
and brightness and contrast are fitted, only the noise of encoders is left.
Images of one pattern differ somewhere.

Measured on 840 drawings of seven kinds and on the 3,944 emoji: see
tests/evaluation/near_duplicates/test_same_image.py.
"""

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from clip_jax.data.decoding import pillow_errors
from clip_jax.data.images import as_displayed

SIDE = 48  # pixels that are compared
# Blur in pixels and steps of the alignment, coarse first.
_STEPS = ((2.0, 4), (1.0, 4))
_EDGE = 3  # pixels at each border that are not compared
_BLOCK = 6  # pixels; the worst of such squares decides
_MOST_SCALE, _MOST_SHIFT = 0.12, 4.0  # of a side, and pixels
# Limits for the worst square: its difference in units of the image's own
# contrast, and of its colour, 0 to 255.
_MOST_GREY, _MOST_COLOUR = 0.35, 12.0

_ROWS, _COLUMNS = np.mgrid[:SIDE, :SIDE].astype(np.float64)
_CENTRE = (SIDE - 1) / 2
_ACROSS, _DOWN = _COLUMNS - _CENTRE, _ROWS - _CENTRE


@pillow_errors()
def thumbnail(image: Image.Image) -> Float[np.ndarray, '48 48 3']:
  """Returns the pixels of an image that are compared.

  They are its grey, 0 to 255, and its two differences of colours, around 0.

  Raises:
    CorruptImageError: its pixels cannot be read.
  """
  seen = as_displayed(image)
  small = seen.resize((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=3.0)
  values = np.asarray(small.convert('YCbCr'), np.float32)
  return values - np.array([0, 128, 128], np.float32)


def is_same(
  first: Float[np.ndarray, '48 48 3'], second: Float[np.ndarray, '48 48 3']
) -> bool:
  """Returns whether one image is a copy of the other.

  A copy may be re-encoded, resized, cropped by a few percent, brighter, or in
  grey.

  Args:
    first, second: see `thumbnail`.
  """
  crop = _find_crop(first[..., 0], second[..., 0])
  if crop is None:
    return False
  inner = slice(_EDGE, -_EDGE)
  grey = gaussian_filter(first[..., 0], 1.0)[inner, inner]
  other = gaussian_filter(_apply_crop(second[..., 0], crop), 1.0)[inner, inner]
  contrast = grey.std() + 1e-3
  gain = contrast / (other.std() + 1e-3)
  difference = (grey - grey.mean()) - gain * (other - other.mean())
  if _worst(difference**2) > (_MOST_GREY * contrast) ** 2:
    return False
  colours = first[..., 1:]
  moved = [_apply_crop(second[..., i], crop) for i in (1, 2)]
  others = gain * np.stack(moved, -1)
  if min(np.abs(colours).mean(), np.abs(others).mean()) < 1:  # one is in grey
    return True
  apart = gaussian_filter(colours - others, (1, 1, 0))[inner, inner]
  return max(_worst(apart[..., i]) for i in (0, 1)) <= _MOST_COLOUR


def _find_crop(
  first: Float[np.ndarray, '48 48'], second: Float[np.ndarray, '48 48']
) -> Float[np.ndarray, '4'] | None:
  """Returns the crop that aligns the second image with the first.

  By least squares, linearised at each step: scale and shift down and across,
  with gain and offset of the brightness.

  Returns:
    Scale and shift down, scale and shift across; None where they go too far.
  """
  crop = np.array([1.0, 0.0, 1.0, 0.0])
  inner = slice(2, -2)
  for blur, steps in _STEPS:
    target = gaussian_filter(first, blur, mode='nearest')[inner, inner].ravel()
    source = gaussian_filter(second, blur, mode='nearest')
    slopes = np.gradient(source)
    for _ in range(steps):
      down, across = (_apply_crop(np.asarray(x), crop) for x in slopes)
      terms = (down * _DOWN, down, across * _ACROSS, across,
               _apply_crop(source, crop), np.ones_like(source))  # fmt: skip
      matrix = np.stack(terms, -1)[inner, inner].reshape(-1, len(terms))
      normal = matrix.T @ matrix + 1e-3 * np.eye(len(terms))
      solution = np.linalg.solve(normal, matrix.T @ target)
      gain = solution[4]
      if gain < 0.05:  # its negative, or nothing in common
        return None
      limit = np.array([0.04, 1.5, 0.04, 1.5])
      crop += np.clip(solution[:4] / gain, -limit, limit)
  away = np.abs(crop - [1, 0, 1, 0])
  limits = [_MOST_SCALE, _MOST_SHIFT, _MOST_SCALE, _MOST_SHIFT]
  return crop if (away <= limits).all() else None


def _apply_crop(
  values: Float[np.ndarray, '48 48'], crop: Float[np.ndarray, '4']
) -> Float[np.ndarray, '48 48']:
  rows = _CENTRE + crop[1] + crop[0] * _DOWN
  columns = _CENTRE + crop[3] + crop[2] * _ACROSS
  return map_coordinates(values, [rows, columns], order=1, mode='nearest')


def _worst(values: np.ndarray) -> float:
  """Returns the largest absolute mean among squares of _BLOCK pixels a side."""
  count = values.shape[0] // _BLOCK
  squares = values.reshape(count, _BLOCK, count, _BLOCK)
  return float(np.abs(squares.mean(axis=(1, 3))).max())
