"""Tar archives for tests, as bytes, and the records that they should have."""

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from hypothesis import strategies as st

from clip_jax.data.indexing.build import build_index
from clip_jax.data.sources import parse_spec
from tests.data.images import make_image


def png(seed: int = 0, size: int = 8) -> bytes:
  """A small image file."""
  file = io.BytesIO()
  make_image(seed, size, size).save(file, 'PNG')
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


def write_tars(folder: Path, count: int, broken: Mapping[int, int]) -> str:
  """Writes tars of ten records each, with their index; returns their SPEC.

  Args:
    broken: by the number of a tar, which of its images is none.
  """
  for shard in range(count):
    members = pairs(10, 10 * shard)
    if shard in broken:
      members[f'{10 * shard + broken[shard]:04}.png'] = b'<html>'
    (folder / f'{shard}.tar').write_bytes(archive(members))
  spec = f'wds:{folder}/{{0..{count - 1}}}.tar'
  build_index(parse_spec(spec))
  return spec


def _parts() -> list[bytes]:
  return [
    archive(pairs(2)),
    unmarked(archive(pairs(1, 5))),
    archive({'x' * 150 + '.png': b'1'}, format=tarfile.GNU_FORMAT),
    archive({'é' * 90 + '.png': b'1'}, format=tarfile.PAX_FORMAT),
    archive({'5.json': b'{"caption": "x"}', '5.cls': b'3', '5.gif': b'GIF'}),
    special('sparse.png', tarfile.GNUTYPE_SPARSE, size=512),
    special('link.png', tarfile.SYMTYPE, linkname='/etc/passwd'),
    special('huge.png', tarfile.REGTYPE, size=2**32),
    special('../up.png', tarfile.REGTYPE),
    gzip.compress(archive(pairs(1)), mtime=0),
    bytes(1024),
  ]


@st.composite
def damaged_archives(draw: st.DrawFn) -> bytes:
  """Sound and odd archives, joined, with some bytes changed, and cut off."""
  part = st.one_of(st.sampled_from(_parts()), st.binary(max_size=1500))
  content = bytearray(b''.join(draw(st.lists(part, max_size=4))))
  for _ in range(draw(st.integers(0, 6))):
    if content:
      content[draw(st.integers(0, len(content) - 1))] = draw(
        st.integers(0, 255)
      )
  return bytes(content[: draw(st.integers(0, len(content)))])
