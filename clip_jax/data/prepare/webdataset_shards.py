"""Writes WebDataset tars: the same bytes for the same records.

A record has a key of digits, and up to four members: its image, `.txt` (its
caption), `.cls` (its label), and `.json` (its id, captions and label). Where
some records have more than one caption, none has a `.txt`, as a reader that
prefers it would miss the others.
"""

import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from clip_jax.data.decoding import open_image
from clip_jax.data.image_formats import HEAD_BYTES, format_of
from clip_jax.data.sources import Record

NAMES_FILE = 'classnames.txt'
_BLOCK = tarfile.BLOCKSIZE
# Two empty blocks end an archive.
OVERHEAD_BYTES = 2 * _BLOCK
_SUFFIXES = {'JPEG': 'jpg', 'TIFF': 'tif', 'HEIF': 'heic', 'JPEG2000': 'jp2'}


def shard_name(number: int, count: int) -> str:
  """Returns the name of a shard, as WebDataset's patterns have them."""
  return f'{number:0{max(6, len(str(count - 1)))}}.tar'


def record_bytes(record: Record, image_bytes: int) -> tuple[int, int]:
  """Returns what a record takes in a tar, and what its .txt takes besides."""
  others = [len(content) for _, content in _texts(record, with_text=False)]
  captions = record['caption']
  text = _padded(len(captions[0].encode())) if len(captions) == 1 else 0
  return sum(map(_padded, [image_bytes, *others])), text


def write_shard(
  path: Path, records: Iterable[tuple[int, Record]], *, with_text: bool
) -> int:
  """Writes a tar, and returns the number of its records.

  Args:
    records: the number of each, which is its key, and the record.
    with_text: whether captions are in .txt, too; no record has more than one.
  """
  count = 0
  with open(path, 'wb') as file:
    for number, record in records:
      count += 1
      image = record['image']
      members = [(suffix_of(image), image)]
      members += _texts(record, with_text=with_text)
      for name, content in sorted(members):
        write_member(file, f'{number:09}.{name}', content)
    file.write(bytes(OVERHEAD_BYTES))
  return count


def write_member(file: IO[bytes], name: str, content: bytes) -> None:
  """Writes a file of a tar, which ends with OVERHEAD_BYTES of zeros."""
  file.write(_header(name, len(content)))
  file.write(content)
  file.write(bytes(-len(content) % _BLOCK))


def suffix_of(image: bytes) -> str:
  """Returns the suffix that an encoded image gets, by its content.

  Raises:
    CorruptImageError: it is no image.
  """
  image_format = format_of(image[:HEAD_BYTES])
  if not image_format:  # as of TGA: a reader has the suffix alone
    image_format = open_image(image).format or 'bin'
  return _SUFFIXES.get(image_format, image_format.lower())


def _texts(record: Record, *, with_text: bool) -> Sequence[tuple[str, bytes]]:
  """Returns the suffix and the content of each member but the image."""
  captions = record['caption']
  description = {
    'id': record['id'],
    'caption': captions[0] if len(captions) == 1 else captions,
  }
  members = []
  label = record.get('label', -1)
  if label >= 0:
    description['label'] = label
    members.append(('cls', b'%d' % label))
  members.append(('json', json.dumps(description).encode()))
  if with_text and captions:
    members.append(('txt', captions[0].encode()))
  return members


def _padded(size: int) -> int:
  """Returns the bytes of a member, its header included."""
  return _BLOCK + -(-size // _BLOCK) * _BLOCK


def _header(name: str, size: int) -> bytes:
  # No time, no owner: two runs write the same bytes.
  member = tarfile.TarInfo(name)
  member.size = size
  return member.tobuf(tarfile.USTAR_FORMAT)
