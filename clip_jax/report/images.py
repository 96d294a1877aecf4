"""Images of a data set as data: URIs, small enough to put dozens on a page."""

import base64
import contextlib
import io
from collections.abc import Collection, Mapping

from clip_jax.data.decoding import (
  CorruptImageError,
  ImageLike,
  decode,
  pillow_errors,
)
from clip_jax.data.image_formats import format_of
from clip_jax.data.images import as_displayed
from clip_jax.data.sources import Source

SIDE = 144  # pixels: 72 on the page, on a screen of double density
SMALL_FILE = 16_384  # bytes
_WEB_FORMATS = {'PNG': 'png', 'JPEG': 'jpeg'}
# How many records from a row's own index on `find_records` looks at first.
_NEAR = 1000


@pillow_errors()
def data_uri(image: ImageLike, side: int = SIDE) -> str:
  """Returns an image for an `img` element.

  The bytes of a small PNG or JPEG stay as they are; anything else becomes a
  JPEG on white.

  Args:
    image: see `decode`.
    side: pixels, at most, of either side.
  Raises:
    CorruptImageError: the image cannot be read.
  """
  decoded = decode(image)
  if isinstance(image, bytes) and len(image) <= SMALL_FILE:
    name = _WEB_FORMATS.get(format_of(image))
    if name and max(decoded.size) <= side:
      return _uri(name, image)
  # Turned and laid on white before it is scaled, so that no colour of clear
  # pixels bleeds into others.
  small = as_displayed(decoded).copy()
  small.thumbnail((side, side))
  encoded = io.BytesIO()
  small.save(encoded, 'JPEG', quality=85)
  return _uri('jpeg', encoded.getvalue())


def data_uris(source: Source, ids: Collection[str]) -> dict[str, str]:
  """Returns the data: URIs of records by id, without those that are missing."""
  missing, uris = set(ids), {}
  for index in range(len(source) if missing else 0):
    key = source.id(index)
    if key in missing:
      missing.remove(key)
      with contextlib.suppress(CorruptImageError):
        uris[key] = data_uri(source[index]['image'])
      if not missing:
        break
  return uris


def find_records(source: Source, ids: Mapping[int, str]) -> dict[int, int]:
  """Returns where a source has the records of some rows of embeddings.

  The rows of a table are in the order of its source, without the records that
  could not be read: a row's record is at the row's own index or soon after it.
  The whole source is searched only for records that are not there.

  Args:
    source: what was embedded.
    ids: the id of each row.
  Returns:
    Row to index, of the rows that the source has.
  """
  indices = {}
  elsewhere: dict[str, list[int]] = {}
  for row, key in ids.items():
    near = range(row, min(len(source), row + _NEAR))
    index = next((i for i in near if source.id(i) == key), None)
    if index is None:
      elsewhere.setdefault(key, []).append(row)
    else:
      indices[row] = index
  for index in range(len(source) if elsewhere else 0):
    indices |= dict.fromkeys(elsewhere.pop(source.id(index), ()), index)
    if not elsewhere:
      break
  return indices


def _uri(name: str, data: bytes) -> str:
  return f'data:image/{name};base64,{base64.b64encode(data).decode()}'
