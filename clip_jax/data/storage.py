"""Reads and writes files of this machine, and those that fsspec reaches.

A path is local, or a URL such as gs://bucket/name, s3://bucket/name or
memory://name; of those, `remote` says what is tried again and what is kept.
"""

import contextlib
import glob
import io
import itertools
import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from clip_jax.data import remote
from clip_jax.errors import (
  FailureError,
  MissingFileError,
  UsageError,
  reason_of,
)
from clip_jax.files import expand_path, open_regular, replacing

# The most paths that the braces of a pattern may stand for.
MAX_PATHS = 1_000_000
# Bytes that a small read of a remote file fetches at least.
_BUFFER = 2**16


def is_remote(path: str | os.PathLike) -> bool:
  """Returns whether a path is a URL, such as gs://bucket/name."""
  text = os.fspath(path)
  match = re.match(r'([A-Za-z][A-Za-z0-9+.-]*)://', text)
  return bool(match) and match[1].lower() != 'file'


def expand(pattern: str) -> list[str]:
  """Returns the paths that a pattern stands for, sorted, each once.

  Braces stand for each of a list or a range, such as {a,b} or {00000..00123};
  *, ? and [...] for what is there. A path that exists is no pattern.

  Raises:
    UsageError: nothing matches, or the braces stand for too many paths.
    FailureError: a folder or a bucket cannot be listed.
  """
  pattern = local_or_url(pattern)
  paths: set[str] = set()
  if not is_remote(pattern) and os.path.exists(pattern):
    return [pattern]
  for plain in _expand_braces(pattern):
    remote.forget(plain)  # what is opened anew is looked at anew
    has_magic = glob.has_magic(plain)
    if is_remote(plain):
      matches = remote.find(plain) if has_magic else [plain]
    elif os.path.exists(plain):
      matches = [plain]
    else:
      matches = glob.glob(plain, recursive=True) if has_magic else []
    # A name in a store may have brackets, or the ? of a query.
    if not matches and is_remote(plain) and exists(plain):
      matches = [plain]
    if not matches:
      of = f', of {pattern},' if plain != pattern else ''
      raise UsageError(f'{plain}{of} matches no file.')
    paths.update(matches)
  return sorted(paths)


def find_in(folder: str, pattern: str) -> list[str]:
  """Returns the paths in a folder that match a pattern of *, ? and [...].

  They are sorted. What the folder's own name has of these stands for itself.

  Raises:
    FailureError: a remote folder cannot be listed.
  """
  whole = join(glob.escape(folder), pattern)
  return sorted(remote.find(whole) if is_remote(folder) else glob.glob(whole))


def size(path: str | os.PathLike) -> int:
  """Returns the size of a file in bytes.

  Raises:
    MissingFileError, FailureError: it is not there or cannot be read.
  """
  path = os.fspath(path)
  if is_remote(path):
    return remote.status(path).size
  with open_regular(path) as file:
    return os.fstat(file.fileno()).st_size


def version(path: str | os.PathLike) -> str:
  """Returns a text that changes where a file's content does.

  It is made of the size, and of the time or the checksum that the store has.

  Raises:
    MissingFileError, FailureError: it is not there or cannot be read.
  """
  path = os.fspath(path)
  if is_remote(path):
    return remote.status(path).version
  with open_regular(path) as file:
    status = os.fstat(file.fileno())
  return f'{status.st_size}-{status.st_mtime_ns}'


def trust(path: str | os.PathLike, size: int, version: str) -> None:
  """Takes what an index says of a remote file: its store is not asked again.

  Args:
    size: in bytes.
    version: see `version`.
  """
  path = os.fspath(path)
  if is_remote(path):
    remote.trust(path, size, version)


def exists(path: str | os.PathLike) -> bool:
  """Returns whether there is such a file or folder.

  Raises:
    FailureError: the store does not answer, or refuses.
  """
  path = os.fspath(path)
  if not is_remote(path):
    return os.path.exists(path)
  try:  # fsspec's own `exists` takes a lost connection for a no
    remote.on_store(path, lambda fs, name: fs.info(name))
  except MissingFileError:
    return False
  return True


def is_folder(path: str | os.PathLike) -> bool:
  """Returns whether a path is a folder, or the beginning of names in a bucket.

  Raises:
    FailureError: the store does not answer, or refuses.
  """
  path = os.fspath(path)
  if not is_remote(path):
    return os.path.isdir(path)
  return remote.on_store(path, lambda fs, name: fs.isdir(name))


def list_folder(folder: str | os.PathLike) -> list[str]:
  """Returns the names in a folder, sorted; those of folders end with '/'.

  Raises:
    MissingFileError, FailureError: it is not there or cannot be listed.
  """
  folder = os.fspath(folder)
  if is_remote(folder):
    return remote.list_folder(folder)
  try:
    with os.scandir(folder) as entries:
      return sorted(x.name + ('/' if x.is_dir() else '') for x in entries)
  except FileNotFoundError as error:
    raise MissingFileError(f'{folder}: no such folder.') from error
  except OSError as error:
    raise FailureError(f'{folder}: {reason_of(error)}.') from error


def join(folder: str, *names: str) -> str:
  """Returns the path of a file in a local or remote folder."""
  return (posixpath if is_remote(folder) else os.path).join(folder, *names)


def folder_of(path: str) -> str:
  """Returns the folder of a local or remote file."""
  return (posixpath if is_remote(path) else os.path).dirname(path)


def common_folder(paths: Sequence[str]) -> str:
  """Returns the folder that all of some files are in, at any depth.

  It is absolute, or a URL.
  """
  if not is_remote(paths[0]):
    folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
    return os.path.commonpath(folders)
  first, last = min(paths).split('/')[:-1], max(paths).split('/')[:-1]
  pairs = itertools.takewhile(
    lambda pair: pair[0] == pair[1], zip(first, last, strict=False)
  )
  return '/'.join(name for name, _ in pairs)


def read_range(path: str | os.PathLike, offset: int, length: int) -> bytes:
  """Reads bytes [offset, offset + length) of a file; fewer at its end.

  Raises:
    MissingFileError, FailureError: it is not there or cannot be read.
  """
  path = os.fspath(path)
  if offset < 0 or length < 0:
    raise FailureError(f'{path}: no bytes {length:,} from {offset:,} on.')
  if is_remote(path):
    return remote.read_range(path, offset, length)
  with open_regular(path) as file:
    available = max(0, os.fstat(file.fileno()).st_size - offset)
    try:
      return os.pread(file.fileno(), min(length, available), offset)
    except OSError as error:
      raise FailureError(f'{path}: {reason_of(error)}.') from error


def read_all(path: str | os.PathLike, max_bytes: int) -> bytes:
  """Reads a whole file.

  Raises:
    MissingFileError, FailureError: it is not there, cannot be read, or is
      larger than `max_bytes`.
  """
  length = size(path)
  if length > max_bytes:
    raise FailureError(
      f'{os.fspath(path)}: {length:,} bytes, over the limit of {max_bytes:,}.'
    )
  with open_file(path) as file:
    return file.read(length)


def open_file(path: str | os.PathLike) -> io.BufferedReader:
  """Opens a file for reading, at any position.

  Raises:
    MissingFileError, FailureError: it is not there or cannot be read.
  """
  path = os.fspath(path)
  if is_remote(path):
    return io.BufferedReader(remote.RemoteFile(path), _BUFFER)
  return open_regular(path)


def local_copy(path: str | os.PathLike) -> str:
  """Returns a path at which a library can open a file, until others need room.

  A remote file is copied whole into the cache of blocks, and counts there as
  they do; a local one is where it is. Open it at once: it may go at any time.

  Raises:
    MissingFileError, FailureError: it is not there, cannot be read, or is
      larger than the cache.
  """
  path = os.fspath(path)
  if is_remote(path):
    return remote.local_copy(path)
  open_regular(path).close()
  return path


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[Path]:
  """Gives a temporary local path; once the block ends well, puts it at `path`.

  A file is there whole or not at all. Folders are made where there are none.

  Raises:
    UsageError: `path` is a folder.
    FailureError: it cannot be written.
  """
  path = os.fspath(path)
  if not is_remote(path):
    with replacing(path, make_folder=True) as temporary:
      yield temporary
    return
  with tempfile.TemporaryDirectory(prefix='clip_jax.') as folder:
    temporary = Path(folder) / 'file'
    temporary.touch()
    yield temporary
    remote.put(temporary, path)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Writes a whole file, which replaces the one that is there.

  Raises:
    UsageError, FailureError: see `writing`.
  """
  with writing(path) as temporary:
    temporary.write_bytes(content)


def remove_folder(folder: str | os.PathLike) -> None:
  """Removes a folder with all that is in it, if it is there.

  Of a local one, what cannot be removed is left.

  Raises:
    FailureError: a remote one cannot be removed.
  """
  folder = os.fspath(folder)
  if not is_remote(folder):
    shutil.rmtree(folder, ignore_errors=True)
    return
  with contextlib.suppress(MissingFileError):
    remote.on_store(folder, lambda fs, name: fs.rm(name, recursive=True))


def remove(path: str | os.PathLike) -> None:
  """Removes a file, if it is there.

  Raises:
    FailureError: it cannot be removed.
  """
  path = os.fspath(path)
  try:
    if is_remote(path):
      remote.forget(path)
      remote.on_store(path, lambda fs, name: fs.rm_file(name))
    else:
      os.unlink(path)
  except FileNotFoundError:
    pass
  except OSError as error:
    raise FailureError(f'{path}: {reason_of(error)}.') from error


def local_or_url(path: str) -> str:
  """Returns a typed path with its `~` expanded; file://… is a local path."""
  if '\0' in path or not path:
    return expand_path(path)  # raises
  if match := re.match(r'file://(?:localhost)?(?=/)', path, re.IGNORECASE):
    return path[match.end() :]
  return path if is_remote(path) else expand_path(path)


def _expand_braces(pattern: str) -> list[str]:
  """Returns the patterns without braces that one with braces stands for.

  Raises:
    UsageError: they are too many.
  """
  # The innermost braces that hold a comma or a range; others are plain.
  match = re.search(
    r'\{([^{}]*,[^{}]*|-?\d+\.\.-?\d+(?:\.\.\d+)?|\w\.\.\w)\}', pattern
  )
  if not match:
    return [pattern]
  before, after = pattern[: match.start()], pattern[match.end() :]
  expanded: list[str] = []
  for text in _alternatives(match[1]):
    expanded += _expand_braces(f'{before}{text}{after}')
    if len(expanded) > MAX_PATHS:
      raise UsageError(f'{pattern} stands for over {MAX_PATHS:,} files.')
  return expanded


def _alternatives(text: str) -> list[str]:
  """Returns what the inside of a pair of braces stands for."""
  if ',' in text:
    return text.split(',')
  first, last, *step = text.split('..')
  if not re.fullmatch(r'-?\d+', first) or not re.fullmatch(r'-?\d+', last):
    return [chr(x) for x in _inclusive(ord(first), ord(last), 1)]
  padded = any(re.match(r'-?0\d', x) for x in (first, last))
  width = max(len(first), len(last)) if padded else 0
  numbers = _inclusive(int(first), int(last), int(step[0]) if step else 1)
  if len(numbers) > MAX_PATHS:
    raise UsageError(f'{{{text}}} stands for over {MAX_PATHS:,} files.')
  return [f'{x:0{width}}' for x in numbers]


def _inclusive(first: int, last: int, step: int) -> range:
  step = max(step, 1)
  return (
    range(first, last + 1, step)
    if first <= last
    else range(first, last - 1, -step)
  )
