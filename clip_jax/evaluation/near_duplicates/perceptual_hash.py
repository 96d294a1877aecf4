"""Near-duplicates among pictures, for the overlap analysis (paper, section 5).

The paper trains a detector; this one needs no training. A picture's hash is
the signs of its lowest frequencies, which outlive another size, another
encoding and a little cropping; a copy differs in few of the 64 bits, another
picture in about half. Within 8 bits are re-encoded and resized copies, and most
that lost 2 % of each side; pictures of one pattern, as flags or clock faces,
are near each other, too: `same_image` tells these apart.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt64
from PIL import Image
from scipy.fft import dctn

from clip_jax.data.decoding import pillow_errors
from clip_jax.data.images import Preprocessing, upright

BITS = 64
_SIDE = 32  # pixels that the frequencies are of
_LOW = 8  # frequencies kept, each way
# How a person sees it: turned upright, and transparency on white.
_SEEN = Preprocessing(image_size=_SIDE, background='white', exif=True)
# Frequencies this close to the median, of pixels 0 to 255, count as below it.
# Symmetric pictures have half of theirs at 0, which JPEG moves by about one.
_MARGIN = 2.0
# A picture of fewer frequencies away from the median is flat. A gradient has 4.
_TEXTURE = 8


class Hashes(NamedTuple):
  """Of pictures, in their order.

  Attributes:
    bits: uint64 [N].
    flat: bool [N]: pictures without texture, such as one colour or a gradient.
      All of them are alike, whatever they are of: leave them out of a search.
  """

  bits: UInt64[np.ndarray, 'N']
  flat: Bool[np.ndarray, 'N']


def hash_pictures(pictures: Iterable[Image.Image]) -> Hashes:
  """The hashes of many pictures, one at a time in memory, and which are flat.

  Args:
    pictures: of any mode and size.
  Raises:
    CorruptImageError: one cannot be made grey, though it was decoded.
  """
  return hash_spectra([spectrum(picture) for picture in pictures])


def hash_spectra(found: Sequence[Float[np.ndarray, '64']]) -> Hashes:
  """The hashes of pictures of which these are the `spectrum`."""
  spectra = np.array(found).reshape(len(found), BITS)
  far = spectra - np.median(spectra, axis=1, keepdims=True)
  weights = np.left_shift(np.uint64(1), np.arange(BITS, dtype=np.uint64))
  bits = ((far > _MARGIN) * weights).sum(axis=1, dtype=np.uint64)
  # Brightness, the first of the frequencies, is no texture.
  return Hashes(bits, (np.abs(far[:, 1:]) > _MARGIN).sum(axis=1) < _TEXTURE)


def perceptual_hash(picture: Image.Image) -> np.uint64:
  """64 bits that a copy of the picture shares, all but a few.

  The picture in grey at 32 x 32 pixels; of its discrete cosine transform the
  8 x 8 lowest frequencies; a bit each, whether above their median.
  """
  return hash_pictures([picture]).bits[0]


@pillow_errors()
def spectrum(picture: Image.Image) -> Float[np.ndarray, '64']:
  """A picture's lowest frequencies; the first is its brightness.

  Raises:
    CorruptImageError: it cannot be made grey, though it was decoded.
  """
  grey = upright(picture, _SEEN).convert('L')
  # A large picture is first halved a few times, which is much faster.
  small = grey.resize(
    (_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0
  )
  pixels = np.asarray(small, np.float64)
  frequencies = np.asarray(dctn(pixels, norm='ortho'))
  return frequencies[:_LOW, :_LOW].ravel()
