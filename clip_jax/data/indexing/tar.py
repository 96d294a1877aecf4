"""Reads the headers of tar archives that come from outside.

Only headers are read, and nothing is ever unpacked. Python's `tarfile` reads
what a header claims into memory, and gives up at the first damaged one. Here
each damaged member is named, and reading goes on at the next sound header: of
archives that are cut off, joined to others, or hold links and sparse files, all
that is sound is there.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
# A member that is larger is left out: an image file of 512 MiB is none.
MAX_MEMBER_BYTES = 2**29
# Extended headers hold a name or two.
MAX_HEADER_BYTES = 2**20

# Why a member is left out. An index has the position in this list, so that an
# entry may be added at the end, and none may move.
PROBLEMS = (
  'not a tar header',
  'the archive is cut off here',
  'a damaged extended header',
  'a link, which no record can be',
  'a device, not a file',
  'a sparse file: archive it without --sparse',
  'of a type that tar files of records do not have',
  'a name that leads out of the folder',
  'too large for an image',
  'a second member of this name in its record',
  'its key occurs before in this shard: put the members of a record together',
  'a compressed archive, which cannot be read from the middle: uncompress it',
)
(
  NO_HEADER, CUT_OFF, BAD_EXTENSION, LINK, DEVICE, SPARSE, OTHER_TYPE,
  UNSAFE_NAME, TOO_LARGE, SECOND_MEMBER, SECOND_RECORD, COMPRESSED,
) = range(len(PROBLEMS))  # fmt: skip

# Bytes at an offset of a file, fewer at its end.
Read = Callable[[int, int], bytes]

_ZEROS = bytes(BLOCK)
_CHUNK = 2**20
_MAGIC = b'ustar'
_MAGIC_AT = 257
_COMPRESSED = (b'\x1f\x8b', b'BZh', b'\xfd7zXZ\0', b'\x28\xb5\x2f\xfd')
# WebDataset's: a key is the path up to the first dot of the file's name.
_KEY = re.compile(r'((?:.*/)?[^./][^./]*)\.([^/]*)', re.DOTALL)
_META = re.compile(r'__[^/]*__($|/)')


class Member(NamedTuple):
  """A file in an archive, or what is wrong at a position.

  Attributes:
    name: its path; '' where no name can be read.
    start: the byte where its first header begins.
    data: the byte where its content begins.
    size: of its content, in bytes.
    problem: a position in `PROBLEMS`, or None.
  """

  name: str
  start: int
  data: int
  size: int
  problem: int | None = None

  @property
  def end(self) -> int:
    """The byte where the next header begins."""
    return self.data + -(-self.size // BLOCK) * BLOCK

  def key_and_suffix(self) -> tuple[str, str] | None:
    """Returns the key of its record and its suffix, in lower case.

    None where it is of no record, by WebDataset's rules: a name without a dot,
    or one such as __meta__.
    """
    match = _KEY.fullmatch(self.name)
    if match is None or _META.match(self.name):
      return None
    return match[1], match[2].lower()


class _Header(NamedTuple):
  name: str
  size: int
  kind: bytes
  is_extended: bool  # more blocks of a sparse file's map follow


class _Extension(NamedTuple):
  """The values in extended headers that replace those of the next member."""

  start: int
  name: str | None = None
  size: int | None = None
  is_sparse: bool = False


def reader_of(data: bytes) -> Read:
  """Returns the function that reads from bytes in memory."""
  return lambda offset, length: data[offset : offset + length]


def members(read: Read, size: int) -> Iterator[Member]:
  """Yields the files of an archive, and each problem, in their order.

  Folders and the marks of an archive's end are passed over: what is joined to
  it is read, too.

  Args:
    size: of the archive, in bytes.
  """
  if read(0, 6).startswith(_COMPRESSED):
    yield Member('', 0, size, 0, COMPRESSED)
    return
  if not size:
    yield Member('', 0, 0, 0, CUT_OFF)
  position = 0
  extension: _Extension | None = None
  has_end = True  # blocks of zeros, or a problem, after the last member
  while position < size:
    start = position if extension is None else extension.start
    block = read(position, BLOCK)
    if not any(block):
      position = _after_zeros(read, position, size)
      has_end = True
      continue
    header = _parse(block)
    if header is None:
      problem = CUT_OFF if len(block) < BLOCK else NO_HEADER
      following = _next_header(read, position + BLOCK, size)
      yield Member('', start, following, 0, problem)
      position, extension, has_end = following, None, True
      continue
    if header.kind in _EXTENSIONS:
      extension, problem = _extend(
        extension or _Extension(start), header, read, position, size
      )
      following = position + BLOCK + -(-header.size // BLOCK) * BLOCK
      if problem is not None:
        following = _next_header(read, position + BLOCK, size)
        yield Member('', start, following, 0, problem)
        extension, has_end = None, True
      position = following
      continue
    member = _member(header, extension or _Extension(start), read, position)
    extension, has_end = None, False
    if member is None:
      position += BLOCK
    elif member.data + member.size > size:  # cut off, or a false claim
      following = _next_header(read, position + BLOCK, size)
      yield Member(member.name, start, following, 0, CUT_OFF)
      position, has_end = following, True
    else:
      yield member
      position = member.end
  if extension is not None:
    yield Member('', extension.start, size, 0, CUT_OFF)
  elif not has_end:  # cut between two members: no writer leaves that out
    yield Member('', size // BLOCK * BLOCK, size, 0, CUT_OFF)


def _member(
  header: _Header, extension: _Extension, read: Read, position: int
) -> Member | None:
  """Returns the file that a header begins, or None for a folder or a label."""
  name = header.name if extension.name is None else extension.name
  name = name.removeprefix('./')
  size = header.size if extension.size is None else extension.size
  data = position + BLOCK
  problem = None
  if header.kind in b'5V' or (header.kind in b'\x000' and name.endswith('/')):
    return None
  if header.kind in b'12':
    problem, size = LINK, 0
  elif header.kind in b'346':
    problem, size = DEVICE, 0
  elif header.kind == b'S':
    problem, extended = SPARSE, header.is_extended
    while extended:  # ends with the file: no bytes are not 1
      extended = read(data, BLOCK)[504:505] == b'\1'
      data += BLOCK
  elif header.kind not in b'\x0007':
    problem = OTHER_TYPE
  elif extension.is_sparse:
    problem = SPARSE
  elif _is_unsafe(name):
    problem = UNSAFE_NAME
  elif size > MAX_MEMBER_BYTES:
    problem = TOO_LARGE
  return Member(name, extension.start, data, size, problem)


def _is_unsafe(name: str) -> bool:
  parts = name.replace('\\', '/').split('/')
  return not parts[0] or '..' in parts or '\0' in name


def _parse(block: bytes) -> _Header | None:
  """Returns what a block says, or None where it is no header."""
  if len(block) < BLOCK:
    return None
  checksum, size = _number(block[148:156]), _number(block[124:136])
  if checksum is None or size is None:
    return None
  around = block[:148], block[156:]
  # Old programs took bytes for signed numbers.
  if checksum != 256 + sum(map(sum, around)):
    signed = sum(x - 256 if x > 127 else x for part in around for x in part)
    if checksum != 256 + signed:
      return None
  name = _text(block[:100])
  # GNU's archives have other things in the field of the prefix.
  if block[257:263] == b'ustar\0' and (prefix := _text(block[345:500])):
    name = f'{prefix}/{name}'
  kind = block[156:157]
  return _Header(name, size, kind, kind == b'S' and block[482] == 1)


def _number(field: bytes) -> int | None:
  """Returns a number of a header, octal or, as GNU's may be, binary."""
  if field[0] == 0x80:
    return int.from_bytes(field[1:], 'big')
  digits = field.partition(b'\0')[0].strip(b' ')
  return int(digits or b'0', 8) if re.fullmatch(rb'[0-7]*', digits) else None


def _text(field: bytes) -> str:
  return field.partition(b'\0')[0].decode('utf-8', 'surrogateescape')


# GNU's long name and long name of a link; POSIX's for one member (Solaris has a
# letter of its own) and for all.
_EXTENSIONS = (b'L', b'K', b'x', b'X', b'g')


def _extend(
  extension: _Extension,
  header: _Header,
  read: Read,
  position: int,
  size: int,
) -> tuple[_Extension, int | None]:
  """Returns an extension with what a further header adds, or a problem."""
  if header.size > MAX_HEADER_BYTES:
    return extension, BAD_EXTENSION
  content = read(position + BLOCK, header.size)
  if position + BLOCK + header.size > size or len(content) < header.size:
    return extension, CUT_OFF
  if header.kind == b'L':
    return extension._replace(name=_text(content)), None
  if header.kind in b'Kg':
    return extension, None
  values = _pax_values(content)
  if values is None or not re.fullmatch(
    rb'[0-9]{1,20}', values.get(b'size', b'0')
  ):
    return extension, BAD_EXTENSION
  if (name := values.get(b'path')) is not None:
    text = name.decode('utf-8', 'surrogateescape')
    extension = extension._replace(name=text)
  if b'size' in values:
    extension = extension._replace(size=int(values[b'size']))
  if any(key.startswith(b'GNU.sparse.') for key in values):
    extension = extension._replace(is_sparse=True)
  return extension, None


def _pax_values(content: bytes) -> dict[bytes, bytes] | None:
  """Returns the values of an extended header; None where it is damaged."""
  values: dict[bytes, bytes] = {}
  position = 0
  while position < len(content):
    match = re.compile(rb'([1-9][0-9]{0,6}) ').match(content, position)
    end = position + int(match[1]) if match else 0
    if match is None or not match.end() < end <= len(content):
      return None
    key, equals, value = content[match.end() : end - 1].partition(b'=')
    if not equals or content[end - 1] != 0x0A:
      return None
    values[key] = value
    position = end
  return values


def _after_zeros(read: Read, position: int, size: int) -> int:
  """Returns where the next block begins that is not all zeros."""
  while position < size:
    chunk = read(position, _CHUNK)
    zeros = len(chunk) - len(chunk.lstrip(b'\0'))
    if zeros < len(chunk):
      return position + zeros // BLOCK * BLOCK
    if not chunk:
      break
    position += len(chunk)
  return size


def _next_header(read: Read, position: int, size: int) -> int:
  """Returns where the next sound header begins, or the end of the archive."""
  while position < size:
    chunk = read(position, _CHUNK)
    at = chunk.find(_MAGIC)
    while at >= 0:
      start = at - _MAGIC_AT
      block = chunk[start : start + BLOCK] if start >= 0 else b''
      if start % BLOCK == 0 and _parse(block) is not None:
        return position + start
      at = chunk.find(_MAGIC, at + 1)
    position += _CHUNK
  return size
