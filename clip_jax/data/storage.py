"""Reads and writes files of this machine, and those that fsspec reaches.

A path is local, or a URL such as gs://bucket/name, s3://bucket/name or
memory://name. Remote files are read in ranges, through a bounded cache of
blocks on the disk (`block_cache`); what may pass, such as a lost connection, is
tried again after a pause. Where it does not pass, that is a `FailureError`: it
ends a run, which then resumes with the same records, where a record that is
skipped would be another one the next time.
"""

import contextlib
import dataclasses
import functools
import glob
import io
import itertools
import math
import os
import posixpath
import random
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from clip_jax.data import block_cache
from clip_jax.errors import FailureError, MissingFileError, UsageError
from clip_jax.files import expand_path, open_regular, replacing

T = TypeVar('T')

# The most paths that the braces of a pattern may stand for.
MAX_PATHS = 1_000_000
_BUFFER = 2**16  # bytes that a small read of a remote file fetches at least
# Seconds for which the size of a remote file is not asked for again.
_TRUSTED = 60.0
# The extra that installs what a protocol needs.
_EXTRAS = {
  's3': 's3', 's3a': 's3', 'gs': 'tpu', 'gcs': 'tpu',
  'http': 'fetch', 'https': 'fetch',
}  # fmt: skip
# A file there is whole as soon as it is there; elsewhere it is renamed.
_OBJECT_STORES = ('s3', 's3a', 'gs', 'gcs', 'az', 'abfs', 'abfss', 'memory')
# Errors of no use to repeat, besides those that Python itself has.
_NO_ACCESS = (
  'NoCredentialsError', 'PartialCredentialsError', 'ProfileNotFound',
  'DefaultCredentialsError', 'RefreshError', 'NoAuthTokenError',
)  # fmt: skip


@dataclasses.dataclass
class Retries:
  """Says how often, and after which pauses, a failed request is repeated.

  Attributes:
    attempts: the most requests for one answer.
    first_delay: seconds before the second; the double before the next one.
    sleep: waits for so many seconds.
    jitter: a factor of each delay, so that a thousand hosts do not return at
      once.
  """

  attempts: int = 6
  first_delay: float = 0.5
  sleep: Callable[[float], None] = time.sleep
  jitter: Callable[[], float] = lambda: random.uniform(0.5, 1.5)


RETRIES = Retries()


@dataclasses.dataclass(frozen=True)
class _Status:
  """The size and version of a remote file, and when they were asked for.

  Attributes:
    size: in bytes.
    version: changes with the content.
    asked: when, on the monotonic clock.
  """

  size: int
  version: str
  asked: float


_STATUS: dict[str, _Status] = {}


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
    _STATUS.pop(plain, None)  # what is opened anew is looked at anew
    if not glob.has_magic(plain):
      matches = [plain]
      if not is_remote(plain) and not os.path.exists(plain):
        matches = []
    elif is_remote(plain):
      matches = _remote_glob(plain)
    else:
      matches = glob.glob(plain, recursive=True)
    if not matches:
      of = f', of {pattern},' if plain != pattern else ''
      raise UsageError(f'{plain}{of} matches no file.')
    paths.update(matches)
  return sorted(paths)


def size(path: str | os.PathLike) -> int:
  """Returns the size of a file in bytes.

  Raises:
    MissingFileError, FailureError: it is not there or cannot be read.
  """
  path = os.fspath(path)
  if is_remote(path):
    return _status(path).size
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
    return _status(path).version
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
  status = _STATUS.get(path)
  if is_remote(path) and (status is None or status.asked < math.inf):
    _STATUS[path] = _Status(size, version, math.inf)


def exists(path: str | os.PathLike) -> bool:
  """Returns whether there is such a file or folder.

  Raises:
    FailureError: the store does not answer, or refuses.
  """
  path = os.fspath(path)
  if not is_remote(path):
    return os.path.exists(path)
  return _on_store(path, lambda fs, name: fs.exists(name))


def is_folder(path: str | os.PathLike) -> bool:
  """Returns whether a path is a folder, or the beginning of names in a bucket.

  Raises:
    FailureError: the store does not answer, or refuses.
  """
  path = os.fspath(path)
  if not is_remote(path):
    return os.path.isdir(path)
  return _on_store(path, lambda fs, name: fs.isdir(name))


def list_folder(folder: str | os.PathLike) -> list[str]:
  """Returns the names in a folder, sorted; those of folders end with '/'.

  Raises:
    MissingFileError, FailureError: it is not there or cannot be listed.
  """
  folder = os.fspath(folder)
  if is_remote(folder):
    entries = _on_store(folder, lambda fs, name: fs.ls(name, detail=True))
    return sorted(
      posixpath.basename(x['name'].rstrip('/'))
      + ('/' if x['type'] == 'directory' else '')
      for x in entries
    )
  try:
    with os.scandir(folder) as entries:
      return sorted(x.name + ('/' if x.is_dir() else '') for x in entries)
  except FileNotFoundError as error:
    raise MissingFileError(f'{folder}: no such folder.') from error
  except OSError as error:
    raise FailureError(
      f'{folder}: {(error.strerror or "").lower()}.'
    ) from error


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
    status = _status(path)
    end = min(offset + length, status.size)
    return block_cache.read(
      f'{path}\0{status.version}',
      status.size,
      offset,
      end,
      functools.partial(_fetch, path),
    )
  with open_regular(path) as file:
    available = max(0, os.fstat(file.fileno()).st_size - offset)
    try:
      return os.pread(file.fileno(), min(length, available), offset)
    except OSError as error:
      reason = (error.strerror or str(error)).lower()
      raise FailureError(f'{path}: {reason}.') from error


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
    return io.BufferedReader(_RemoteFile(path), _BUFFER)
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
  if not is_remote(path):
    open_regular(path).close()
    return path
  status = _status(path)

  def copy(temporary: str) -> None:
    _on_store(path, lambda fs, name: fs.get_file(name, temporary))

  return block_cache.whole_file(
    path, f'{path}\0{status.version}', status.size, copy
  )


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
    _on_store(path, functools.partial(_put, temporary))
  _STATUS.pop(path, None)


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
    _on_store(folder, lambda fs, name: fs.rm(name, recursive=True))


def remove(path: str | os.PathLike) -> None:
  """Removes a file, if it is there.

  Raises:
    FailureError: it cannot be removed.
  """
  path = os.fspath(path)
  try:
    if is_remote(path):
      _STATUS.pop(path, None)
      _on_store(path, lambda fs, name: fs.rm_file(name))
    else:
      os.unlink(path)
  except FileNotFoundError:
    pass
  except OSError as error:
    raise FailureError(f'{path}: {(error.strerror or "").lower()}.') from error


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


def _remote_glob(pattern: str) -> list[str]:
  def find(fs: Any, name: str) -> list[str]:
    paths = []
    for match, entry in fs.glob(name, detail=True).items():
      path = fs.unstrip_protocol(match)
      if entry['type'] == 'directory':
        paths += [] if name.endswith('**') else [path]
      else:
        _STATUS[path] = _status_of(path, entry)  # need not be asked for
        paths.append(path)
    return paths

  try:
    return _on_store(pattern, find)
  except MissingFileError:
    return []


def _status(path: str) -> _Status:
  """Asks for the size and the version of a remote file, once in a while."""
  status = _STATUS.get(path)
  now = time.monotonic()
  if status is None or now - status.asked > _TRUSTED:
    info = _on_store(path, lambda fs, name: fs.info(name))
    status = _STATUS[path] = _status_of(path, info)
  return status


def _status_of(path: str, info: Mapping[str, Any]) -> _Status:
  """Returns what a store says of a file.

  Raises:
    FailureError: it is a folder.
  """
  if info['type'] == 'directory' or info.get('size') is None:
    raise FailureError(f'{path}: a folder, not a file.')
  names = ('ETag', 'etag', 'md5Hash', 'generation', 'LastModified', 'mtime')
  marks = [info[x] for x in (*names, 'created') if info.get(x)]
  # A listing and a single file may have a time in two forms.
  marks = [x.timestamp() if isinstance(x, datetime) else x for x in marks]
  version = '-'.join(map(str, [info['size'], *marks[:1]]))
  return _Status(int(info['size']), version, time.monotonic())


def _fetch(path: str, start: int, end: int) -> bytes:
  """Reads bytes [start, end) of a remote file from its store."""

  def get(fs: Any, name: str) -> bytes:
    data = fs.cat_file(name, start=start, end=end)
    if len(data) != end - start:
      raise ConnectionError(f'{len(data):,} of {end - start:,} bytes came')
    return data

  return _on_store(path, get)


def _put(local: Path, fs: Any, name: str) -> None:
  """Puts a local file into a store."""
  protocols = [fs.protocol] if isinstance(fs.protocol, str) else fs.protocol
  if any(x in _OBJECT_STORES for x in protocols):
    fs.put_file(os.fspath(local), name)
    return
  folder, _, base = name.rpartition('/')
  if folder:
    fs.makedirs(folder, exist_ok=True)
  temporary = f'{folder}/.{base}.{uuid.uuid4().hex}.part'
  fs.put_file(os.fspath(local), temporary)
  fs.mv(temporary, name)


def _on_store(path: str, act: Callable[[Any, str], T]) -> T:
  """Does something on the store of a remote path; tries again what may pass.

  Args:
    act: is called with the file system of fsspec and the name in it.
  Raises:
    UsageError: nothing here reads such a URL; the message names the extra.
    MissingFileError: there is no such file or bucket.
    FailureError: no access, or the store failed to the last attempt.
  """
  fs, name = _file_system(path)
  for attempt in itertools.count(1):
    try:
      return act(fs, name)
    except (FailureError, UsageError):
      raise
    except FileNotFoundError as error:
      raise MissingFileError(
        f'{path}: {_what_is_missing(fs, name)}.'
      ) from error
    except Exception as error:  # each store has errors of its own
      reason = str(error) or type(error).__name__
      if isinstance(error, PermissionError) or _is_of(error, _NO_ACCESS):
        raise FailureError(
          f'{path}: no access ({reason}); check the credentials of this '
          'machine, or who may read the bucket.'
        ) from error
      permanent = (IsADirectoryError, NotADirectoryError, NotImplementedError)
      if isinstance(error, (*permanent, TypeError, ValueError)):
        raise FailureError(f'{path}: {reason}.') from error
      if attempt >= RETRIES.attempts:
        raise FailureError(
          f'{path}: {reason}, also at the {attempt}th attempt.'
        ) from error
    RETRIES.sleep(RETRIES.first_delay * 2 ** (attempt - 1) * RETRIES.jitter())
  raise AssertionError  # count() has no end


def _file_system(path: str) -> tuple[Any, str]:
  """Returns the file system of fsspec that has a path, and its name there."""
  protocol = path.partition('://')[0]
  try:
    # A listing that is kept would hide what others write.
    return fsspec.core.url_to_fs(path, use_listings_cache=False)
  except ImportError as error:
    extra = _EXTRAS.get(protocol)
    how = f'pip install ".[{extra}]"' if extra else str(error)
    raise UsageError(f'{path}: {protocol}:// needs {how}.') from error
  except ValueError as error:
    raise UsageError(f'{path}: {error}.') from error


def _what_is_missing(fs: Any, name: str) -> str:
  bucket, slash, _ = name.lstrip('/').partition('/')
  protocols = [fs.protocol] if isinstance(fs.protocol, str) else fs.protocol
  if slash and any(x in ('s3', 'gs') for x in protocols):
    with contextlib.suppress(Exception):
      if not fs.exists(bucket):
        return f'no such bucket {bucket}'
  return 'no such file'


def _is_of(error: BaseException, names: tuple[str, ...]) -> bool:
  """Returns whether an error's class, or one above it, has one of the names."""
  return any(kind.__name__ in names for kind in type(error).__mro__)


class _RemoteFile(io.RawIOBase):
  """A remote file that is read at any position, through the cache."""

  def __init__(self, path: str):
    self._path = path
    self._size = size(path)
    self._position = 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}
    position = start.get(whence, self._size) + offset
    if position < 0:
      raise OSError(f'{self._path}: no position {position:,}')
    self._position = position
    return position

  def tell(self) -> int:
    return self._position

  def readinto(self, buffer: Any) -> int:
    data = read_range(self._path, self._position, len(buffer))
    buffer[: len(data)] = data
    self._position += len(data)
    return len(data)
