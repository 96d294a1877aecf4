"""A zip archive as mapped memory, for torch's archives and numpy's.

`zipfile` reads the directory; the bytes are taken from a memory map, so that
stored members cost nothing. What the directory says is checked against the
members themselves before it is used.
"""

import dataclasses
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clip_jax.interop.tensor_file import PIECE, MappedFile, damaged

_LOCAL = struct.Struct('<4s5H3L2H')  # a member's local header
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_UTF8 = 0x800
# Weights hardly compress: a member beyond both limits is refused as a bomb.
_BOMB_BYTES = 64 * 2**20
_BOMB_RATIO = 200
_PIECE = 64 * 2**10  # bytes to inflate at a time
_MADE = 2**20  # bytes of output at a time
_DAMAGED = (
  zipfile.BadZipFile,
  NotImplementedError,
  EOFError,
  IndexError,  # a member without a name
  ValueError,
  OverflowError,
  struct.error,
  zlib.error,
)


@dataclasses.dataclass(frozen=True)
class Member:
  """The position of a member's bytes in the archive, and their checksum."""

  size: int  # bytes, decompressed
  begin: int
  end: int
  crc: int
  compressed: bool


class ZipArchive:
  """The members of an archive, by name.

  Attributes:
    path: of the archive.
    members: by name, in its order.
    release: see `MappedFile.release`.
  Raises:
    FailureError: the archive is cut off; a name occurs twice, a member is
      encrypted or overlaps another, or the directory disagrees with it.
  """

  def __init__(self, path: Path):
    self.path = path
    self._file = MappedFile(path)
    self._data = self._file.bytes
    self.release = self._file.release
    self.members: dict[str, Member] = {}
    infos, limit = self._directory()
    # Going back from the end of the archive, each member must end where the
    # next begins.
    for info in sorted(infos, key=lambda info: -info.header_offset):
      if info.filename in self.members:
        raise damaged(path, f'it has {info.filename!r} twice')
      self.members[info.filename] = self._member(info, limit)
      limit = info.header_offset
    self.members = dict(reversed(self.members.items()))

  def _directory(self) -> tuple[list[zipfile.ZipInfo], int]:
    """Returns the members that are files, and where the last must end."""
    try:
      with zipfile.ZipFile(self.path) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        return infos, archive.start_dir
    except _DAMAGED as error:
      raise damaged(
        self.path, 'it is no whole zip archive; was it cut off?'
      ) from error

  def _member(self, info: zipfile.ZipInfo, limit: int) -> Member:
    name = info.filename
    if info.flag_bits & _ENCRYPTED:
      raise damaged(self.path, f'{name!r} is encrypted')
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      raise damaged(self.path, f'{name!r} is compressed in an unusual way')
    begin = self._begin(info)
    end = begin + info.compress_size
    compressed = info.compress_type == zipfile.ZIP_DEFLATED
    if end > limit or not (compressed or info.file_size == end - begin):
      raise damaged(self.path, f'{name!r} overlaps another, or lies outside')
    return Member(info.file_size, begin, end, info.CRC, compressed)

  def _begin(self, info: zipfile.ZipInfo) -> int:
    """Returns where a member's bytes begin: behind its local header."""
    start = info.header_offset
    header = self._data[max(start, 0) : start + _LOCAL.size].tobytes()
    if start >= 0 and len(header) == _LOCAL.size:
      magic, _, _, method, *_, name_size, extra = _LOCAL.unpack(header)
      name_begin = start + _LOCAL.size
      name = self._data[name_begin : name_begin + name_size].tobytes()
      encoding = 'utf-8' if info.flag_bits & _UTF8 else 'cp437'
      if (magic, method, name) == (
        b'PK\3\4',
        info.compress_type,
        info.orig_filename.encode(encoding),
      ):
        return name_begin + name_size + extra
    raise damaged(
      self.path,
      f'{info.filename!r} is not where the archive says it is',
    )

  def prefix(self, name: str, size: int) -> bytes:
    """Returns at most the first `size` bytes of a member."""
    member = self.members[name]
    raw = self._data[member.begin : member.end]
    if not member.compressed:
      return raw[:size].tobytes()
    try:
      # Deflate shrinks no more than 1032-fold, and may grow by a few bytes.
      return zlib.decompressobj(-zlib.MAX_WBITS).decompress(
        raw[: size + _PIECE].tobytes(), size
      )
    except zlib.error as error:
      raise self._broken(name) from error

  def read(self, name: str, *, check: bool = True) -> np.ndarray:
    """Returns a member's bytes: a view of the map where stored, else memory.

    Args:
      name: of the member.
      check: whether to compare the checksum. torch can be told to write
        wrong ones (`set_crc32_options(False)`).
    Returns:
      uint8 [size].
    Raises:
      FailureError: the bytes are damaged, or a bomb.
    """
    member = self.members[name]
    content = self._data[member.begin : member.end]
    if member.compressed:
      content = self._decompressed(name, member, content)
    if check and self._checksum(content) != member.crc:
      raise self._broken(name)
    return content

  def _checksum(self, content: np.ndarray) -> int:
    checksum = 0
    for begin in range(0, content.size, PIECE):
      checksum = zlib.crc32(content[begin : begin + PIECE].data, checksum)
      self.release()
    return checksum

  def _decompressed(
    self, name: str, member: Member, source: np.ndarray
  ) -> np.ndarray:
    """Returns the decompressed bytes, at most as many as are announced."""
    if member.size > max(_BOMB_BYTES, _BOMB_RATIO * source.size):
      raise damaged(
        self.path,
        f'{name!r} would grow from {source.size:,} to {member.size:,} bytes',
      )
    content, filled = np.empty(member.size, np.uint8), 0
    try:
      for made in _inflated(source, member.size):
        content[filled : filled + len(made)] = np.frombuffer(made, np.uint8)
        filled += len(made)
    except (zlib.error, ValueError) as error:  # ValueError: it does not fit
      raise self._broken(name) from error
    if filled != member.size:
      raise self._broken(name)
    return content

  def _broken(self, name: str) -> Exception:
    return damaged(self.path, f'the bytes of {name!r} are not what was written')


def _inflated(source: np.ndarray, limit: int) -> Iterator[bytes]:
  """Inflates in pieces; stops one byte after the limit, to show an excess."""
  inflater = zlib.decompressobj(-zlib.MAX_WBITS)
  for begin in range(0, source.size, _PIECE):
    piece, full = source[begin : begin + _PIECE].tobytes(), True
    # Output that fills its limit may leave more in the inflater.
    while (piece or full) and limit >= 0 and not inflater.eof:
      room = min(limit + 1, _MADE)
      made = inflater.decompress(piece, room)
      yield made
      limit -= len(made)
      piece, full = inflater.unconsumed_tail, len(made) == room
  if not inflater.eof and limit >= 0:
    raise zlib.error('the stream has no end')
