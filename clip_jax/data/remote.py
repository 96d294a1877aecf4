"""Files in stores that fsspec reaches, behind `storage`.

They are read in ranges, through a bounded cache of blocks on the disk
(`block_cache`). What may pass, such as a lost connection, is tried again after
a pause. Where it does not pass, that is a `FailureError`: it ends a run, which
then resumes with the same records, where a record that is skipped would be
another one the next time.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import math
import os
import posixpath
import random
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from clip_jax.data import block_cache
from clip_jax.errors import FailureError, MissingFileError, UsageError

T = TypeVar('T')

# Seconds for which the status of a file is not asked for again.
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

# Fields of a store's answer that change when a file's content does. The first
# of them that an answer has is part of the file's version.
_MARKS = (
  'ETag', 'etag', 'md5Hash', 'generation', 'LastModified', 'mtime', 'created',
  'Content-MD5', 'Digest', 'Last-Modified',  # headers of web servers
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
class Status:
  """The size and version of a file, and when they were asked for.

  Attributes:
    size: in bytes.
    version: changes with the content.
    asked: when, on the monotonic clock.
  """

  size: int
  version: str
  asked: float


_known: dict[str, Status] = {}


def status(path: str) -> Status:
  """Returns the size and the version of a file, asked for once in a while.

  Raises:
    MissingFileError, FailureError: see `on_store`; it is a folder.
  """
  known = _known.get(path)
  if known is None or time.monotonic() - known.asked > _TRUSTED:
    info = on_store(path, lambda fs, name: fs.info(name))
    known = _known[path] = _status_of(path, info)
  return known


def trust(path: str, size: int, version: str) -> None:
  """Takes what an index says of a file: its store is not asked again."""
  known = _known.get(path)
  if known is None or known.asked < math.inf:
    _known[path] = Status(size, version, math.inf)


def forget(path: str) -> None:
  """Lets the store be asked again for the status of a file."""
  _known.pop(path, None)


def find(pattern: str) -> list[str]:
  """Returns the paths that match a pattern of *, ? and [...].

  Raises:
    FailureError: see `on_store`.
  """

  def list_matches(fs: Any, name: str) -> list[str]:
    paths = []
    for match, entry in fs.glob(name, detail=True).items():
      path = fs.unstrip_protocol(match)
      if entry['type'] == 'directory':
        paths += [] if name.endswith('**') else [path]
      else:
        if entry.get('size') is not None:  # web servers list names only
          _known[path] = _status_of(path, entry)  # need not be asked for
        paths.append(path)
    return paths

  try:
    return on_store(pattern, list_matches)
  except MissingFileError:
    return []


def list_folder(folder: str) -> list[str]:
  """Returns the names in a folder, sorted; those of folders end with '/'.

  Raises:
    MissingFileError, FailureError: see `on_store`.
  """

  def names(fs: Any, own_name: str) -> list[str]:
    return [
      posixpath.basename(entry['name'].rstrip('/'))
      + ('/' if entry['type'] == 'directory' else '')
      for entry in fs.ls(own_name, detail=True)
      # A bucket may have an empty object that stands for the folder.
      if entry['name'].strip('/') != own_name.strip('/')
    ]

  return sorted(on_store(folder, names))


def read_range(path: str, offset: int, length: int) -> bytes:
  """Reads bytes [offset, offset + length) of a file; fewer at its end.

  Raises:
    MissingFileError, FailureError: see `on_store`.
  """
  known = status(path)
  return block_cache.read(
    f'{path}\0{known.version}',
    known.size,
    offset,
    min(offset + length, known.size),
    functools.partial(_fetch, path),
  )


def local_copy(path: str) -> str:
  """Copies a whole file into the cache of blocks, and returns where it is.

  Raises:
    MissingFileError, FailureError: see `on_store`; it is larger than the cache.
  """
  known = status(path)

  def copy(temporary: str) -> None:
    on_store(path, lambda fs, name: fs.get_file(name, temporary))

  key = f'{path}\0{known.version}'
  return block_cache.whole_file(path, key, known.size, copy)


def put(local: Path, path: str) -> None:
  """Puts a local file into a store, whole or not at all.

  Raises:
    FailureError: see `on_store`.
  """
  on_store(path, functools.partial(_put, local))
  forget(path)


class RemoteFile(io.RawIOBase):
  """A file that is read at any position, through the cache."""

  def __init__(self, path: str):
    self._path = path
    self._size = status(path).size
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


def on_store(path: str, act: Callable[[Any, str], T]) -> T:
  """Does something on the store of a path; tries again what may pass.

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
    except Exception as raised:  # each store has errors of its own
      error = _real_error(fs, raised)
      code = getattr(error, 'status', None)  # of HTTP
      if isinstance(error, FileNotFoundError) or code in (404, 410):
        raise MissingFileError(
          f'{path}: {_what_is_missing(fs, name)}.'
        ) from error
      reason = str(error) or type(error).__name__
      is_refused = isinstance(error, PermissionError) or code in (401, 403)
      if is_refused or _is_of(error, _NO_ACCESS):
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


def _real_error(fs: Any, error: Exception) -> Exception:
  """Returns what went wrong, where a file system of HTTP hides it.

  For that of fsspec, a file without any answer is one that is not there.
  """
  cause = error.__cause__
  is_hidden = isinstance(error, FileNotFoundError) and 'http' in _protocols(fs)
  return cause if is_hidden and isinstance(cause, Exception) else error


def _what_is_missing(fs: Any, name: str) -> str:
  bucket, slash, _ = name.lstrip('/').partition('/')
  if slash and any(x in ('s3', 'gs') for x in _protocols(fs)):
    with contextlib.suppress(Exception):
      if not fs.exists(bucket):
        return f'no such bucket {bucket}'
  return 'no such file'


def _protocols(fs: Any) -> tuple[str, ...]:
  return (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol


def _is_of(error: BaseException, names: tuple[str, ...]) -> bool:
  """Returns whether an error's class, or one above it, has one of the names."""
  return any(kind.__name__ in names for kind in type(error).__mro__)


def _status_of(path: str, info: Mapping[str, Any]) -> Status:
  """Returns what a store says of a file.

  Raises:
    FailureError: it is a folder, or has no size.
  """
  if info['type'] == 'directory':
    raise FailureError(f'{path}: a folder, not a file.')
  if info.get('size') is None:
    raise FailureError(f'{path}: the server does not say how large it is.')
  marks = [info[x] for x in _MARKS if info.get(x)]
  # A listing and a single file may have a time in two forms.
  marks = [x.timestamp() if isinstance(x, datetime) else x for x in marks]
  version = '-'.join(map(str, [info['size'], *marks[:1]]))
  return Status(int(info['size']), version, time.monotonic())


def _fetch(path: str, start: int, end: int) -> bytes:
  """Reads bytes [start, end) of a file from its store."""

  def get(fs: Any, name: str) -> bytes:
    data = fs.cat_file(name, start=start, end=end)
    if len(data) != end - start:
      raise ConnectionError(f'{len(data):,} of {end - start:,} bytes came')
    return data

  return on_store(path, get)


def _put(local: Path, fs: Any, name: str) -> None:
  if any(x in _OBJECT_STORES for x in _protocols(fs)):
    fs.put_file(os.fspath(local), name)
    return
  folder, _, base = name.rpartition('/')
  if folder:
    fs.makedirs(folder, exist_ok=True)
  temporary = f'{folder}/.{base}.{uuid.uuid4().hex}.part'
  fs.put_file(os.fspath(local), temporary)
  fs.mv(temporary, name)
