"""Describes a run of records before they are written to shards.

The first stage of a build leaves two files for each run: a table of its
records, and the images that were encoded anew. The second stage reads both, so
that no image is decoded or encoded twice.
"""

import dataclasses
import io
import json
from typing import NamedTuple

import numpy as np

from clip_jax.data import storage
from clip_jax.errors import FailureError

# The sizes of one record: the bytes that it takes in a shard (0: it is
# dropped), and those of its caption in a file of its own; the bytes of its
# image, and where they begin in the file of encoded images, or -1 where they
# are those of the source.
ROW = np.dtype(
  [
    ('bytes', '<i8'), ('text_bytes', '<i8'), ('image_bytes', '<i8'),
    ('offset', '<i8'), ('width', '<u4'), ('height', '<u4'), ('format', 'u1'),
    ('captions', '<u4'), ('label', '?'),
  ]
)  # fmt: skip
FORMAT_NAMES = (
  '', 'JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'HEIF', 'AVIF', 'JPEG2000',
  'MPO', 'PPM', 'PSD', 'ICO', 'ICNS', 'QOI', 'DDS', 'SGI', 'SUN', 'FITS', 'XPM',
)  # fmt: skip
_MAX_BYTES = 2**31


def format_number(name: str) -> int:
  """Returns the number of a format of images; 0 is one that has no name."""
  return FORMAT_NAMES.index(name) if name in FORMAT_NAMES else 0


class Dropped(NamedTuple):
  """A record that is left out, and why."""

  id: str
  reason: str


@dataclasses.dataclass
class Part:
  """The table of a run of records.

  Attributes:
    rows: of dtype ROW [N], dropped records too.
    caption_lengths: characters of each caption, of all records in order.
    dropped: the records that are left out, in order.
  """

  rows: np.ndarray
  caption_lengths: np.ndarray
  dropped: list[Dropped]

  def write(self, path: str) -> None:
    """Writes the table.

    Raises:
      FailureError: it cannot be written.
    """
    text = json.dumps(self.dropped).encode()
    with storage.writing(path) as temporary, open(temporary, 'wb') as file:
      np.savez(
        file,
        allow_pickle=False,
        rows=self.rows,
        caption_lengths=self.caption_lengths,
        dropped=np.frombuffer(text, np.uint8),
      )


def read_part(path: str) -> Part:
  """Reads a table.

  Raises:
    FailureError: it is missing or damaged.
  """
  content = storage.read_all(path, _MAX_BYTES)
  try:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
      dropped = json.loads(file['dropped'].tobytes())
      part = Part(
        file['rows'], file['caption_lengths'], [Dropped(*x) for x in dropped]
      )
    if part.rows.dtype != ROW:
      raise ValueError('another dtype')
  except Exception as error:  # numpy, zip and JSON have no common base
    raise FailureError(
      f'{path} is damaged ({error}): remove it, and the same command makes it '
      'again.'
    ) from error
  return part
