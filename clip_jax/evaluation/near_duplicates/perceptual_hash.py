"""Near-duplicates among images, for the overlap analysis (paper, section 5).

The paper trains a detector; this one needs no training. An image's hash is
the signs of its lowest frequencies, which outlive another size, another
encoding and a little cropping; a copy differs in few of the 64 bits, another
image in about half. Within 8 bits are re-encoded and resized copies, and most
that lost 2 % of each side; images of one pattern, as flags or clock faces, are
near each other, too: `same_image` tells these apart.

Hashes are kept beside features. They depend on the data alone (`data_identity`
says which are told apart), so that all models share them.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt64
from PIL import Image
from scipy.fft import dctn

from clip_jax.data.decoding import (
  CorruptImageError,
  check_corrupt,
  pillow_errors,
)
from clip_jax.data.images import upright
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.reading import none_readable
from clip_jax.data.sources import Source
from clip_jax.errors import FailureError
from clip_jax.evaluation.dataset import data_identity
from clip_jax.evaluation.types import Options
from clip_jax.inference.encode_shards import image_items
from clip_jax.inference.shards import Shard, ShardStore
from clip_jax.parallel.distributed import is_first_process

BITS = 64
_SIDE = 32  # pixels that the frequencies are of
_LOW = 8  # frequencies kept, each way
# How a person sees it: turned upright, and transparency on white.
_SEEN = Preprocessing(image_size=_SIDE, background='white', exif=True)
# Frequencies this close to the median, of pixels 0 to 255, count as below it.
# Symmetric images have half of theirs at 0, which JPEG moves by about one.
_MARGIN = 2.0
# An image of fewer frequencies away from the median is flat. A gradient has 4.
_TEXTURE = 8
_VERSION = 2  # of the hashes and of their files
_BLOCK = 4096  # images whose spectra are in memory at once


class Hashes(NamedTuple):
  """The hashes of N images, in their order.

  Attributes:
    bits: uint64 [N].
    flat: bool [N]: images without texture, such as one colour or a gradient.
      All of them are alike, whatever they are of: leave them out of a search.
  """

  bits: UInt64[np.ndarray, ' N']
  flat: Bool[np.ndarray, ' N']


def hash_spectra(spectra: Sequence[Float[np.ndarray, '64']]) -> Hashes:
  """Returns the hashes of images from the `spectrum` of each.

  A bit says whether a frequency is above the image's median. A copy shares all
  but a few.
  """
  values = np.array(spectra).reshape(len(spectra), BITS)
  far = values - np.median(values, axis=1, keepdims=True)
  weights = np.left_shift(np.uint64(1), np.arange(BITS, dtype=np.uint64))
  bits = ((far > _MARGIN) * weights).sum(axis=1, dtype=np.uint64)
  # Brightness, the first of the frequencies, is no texture.
  return Hashes(bits, (np.abs(far[:, 1:]) > _MARGIN).sum(axis=1) < _TEXTURE)


@pillow_errors()
def spectrum(image: Image.Image) -> Float[np.ndarray, '64']:
  """Returns the lowest frequencies of an image; the first is its brightness.

  They are the 8 x 8 lowest of the discrete cosine transform of the image in
  grey at 32 x 32 pixels.

  Raises:
    CorruptImageError: it cannot be made grey, though it was decoded.
  """
  grey = upright(image, _SEEN).convert('L')
  # A large image is first halved a few times, which is much faster.
  small = grey.resize(
    (_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0
  )
  pixels = np.asarray(small, np.float64)
  frequencies = np.asarray(dctn(pixels, norm='ortho'))
  return frequencies[:_LOW, :_LOW].ravel()


@dataclasses.dataclass(frozen=True)
class HashedRecords:
  """The records of a source whose images were hashed; JSON in the cache.

  Attributes:
    ids: of the N images that could be read, in the order of their source.
    corrupt: id to reason, of the images that were left out.
  """

  ids: list[str]
  corrupt: dict[str, str]


def read_hashes(
  source: Source, options: Options
) -> tuple[HashedRecords, Hashes]:
  """Hashes all readable images of a source, or takes them from the cache.

  Args:
    options: `cache`, `max_corrupt_records`, `progress`.
  Raises:
    FailureError: too many images are corrupt, or the cache cannot be written.
  """
  folder = options.cache.folder if options.cache is not None else None
  if folder is None:
    return _hash_all(source, options)
  store = _store(folder, source)
  shard = Shard(0, 'image', 0, len(source))
  for records, arrays in store.read_all([shard]).values():
    hashes = Hashes(**arrays)
    if len(records.ids) == len(hashes.bits) == len(hashes.flat):
      check_corrupt(records.corrupt, options.max_corrupt_records, source.spec)
      return records, hashes
  records, hashes = _hash_all(source, options)
  if is_first_process():
    store.write(shard, records, hashes._asdict())
  return records, hashes


def _store(folder: Path, source: Source) -> ShardStore[HashedRecords]:
  identity = {'version': _VERSION, **data_identity(source)}
  text = json.dumps(identity, sort_keys=True)
  key = hashlib.sha256(text.encode()).hexdigest()[:32]
  arrays = {'bits': (np.uint64, 1), 'flat': (bool, 1)}
  return ShardStore(folder / 'hashes' / key, HashedRecords, arrays)


def _hash_all(source: Source, options: Options) -> tuple[HashedRecords, Hashes]:
  ids: list[str] = []
  corrupt: dict[str, str] = {}
  parts: list[Hashes] = []
  spectra: list[np.ndarray] = []
  limit = options.max_corrupt_records
  items = image_items(source, range(len(source)), {}, limit)
  with contextlib.closing(items):
    for item in options.progress(items, len(source), 'hashes'):
      reason = item.reason
      if not reason:
        try:
          spectra.append(spectrum(item.content))
          ids.append(item.id)
        except CorruptImageError as error:  # which decoding did not notice
          reason = str(error)
      if reason:
        corrupt[item.id] = reason
        check_corrupt(corrupt, limit, source.spec)
      if len(spectra) == _BLOCK:
        parts.append(hash_spectra(spectra))
        spectra = []
  if not ids:
    raise FailureError(none_readable(source.spec, corrupt))
  parts.append(hash_spectra(spectra))
  return HashedRecords(ids, corrupt), Hashes(
    np.concatenate([part.bits for part in parts]),
    np.concatenate([part.flat for part in parts]),
  )
