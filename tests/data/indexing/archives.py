"""Tar archives for tests, as bytes, and the records that they should have."""

import io
import tarfile

from tests.data.pictures import picture


def png(seed: int = 0, size: int = 8) -> bytes:
  """A small image file."""
  file = io.BytesIO()
  picture(seed, size, size).save(file, 'PNG')
  return file.getvalue()


def archive(
  members: dict[str, bytes], *, format: int = tarfile.USTAR_FORMAT
) -> bytes:
  """An archive of files, with its end marked."""
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w', format=format) as tar:
    for name, content in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  return file.getvalue()


def special(name: str, kind: bytes, **fields) -> bytes:
  """The header of a member that is no plain file."""
  info = tarfile.TarInfo(name)
  info.type = kind
  for field, value in fields.items():
    setattr(info, field, value)
  return info.tobuf(tarfile.GNU_FORMAT)


def unmarked(data: bytes) -> bytes:
  """An archive without the mark of its end."""
  return data.rstrip(b'\0') + bytes(-len(data.rstrip(b'\0')) % 512)


def pairs(count: int, first: int = 0) -> dict[str, bytes]:
  """Members of `count` records, an image and a caption each."""
  members = {}
  for i in range(first, first + count):
    members[f'{i:04}.png'] = png(i)
    members[f'{i:04}.txt'] = f'caption {i}'.encode()
  return members
