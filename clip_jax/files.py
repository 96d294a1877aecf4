"""Opens files that come from outside, and writes files whole or not at all.

A path that a person typed has its `~` expanded. What is opened must be a
regular file within a limit of size and, where it is JSON, of depth; every error
names the file. A file that is written replaces the old one once it is complete
(`replacing`).
"""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import re
import shutil
import stat
import types
import typing
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from clip_jax.errors import (
  FailureError,
  MissingFileError,
  UsageError,
  reason_of,
)

Kind = TypeVar('Kind')  # a dataclass

# Files of settings, vocabularies and lists; the largest published
# tokenizer.json has 34 MB.
MAX_TEXT_BYTES = 256 * 2**20
# Deeper JSON than any tool writes would exhaust the stack of what reads it.
MAX_DEPTH = 64


def typed_path(path: str | os.PathLike) -> Path:
  """Returns the path that a person typed, with its `~` expanded.

  Raises:
    UsageError: see `expand_path`.
  """
  return Path(expand_path(path))


def expand_path(path: str | os.PathLike) -> str:
  """Returns the path or URL that a person typed, with its `~` expanded.

  A URL such as gs://… stays as it is; a `Path` would drop one of its slashes.

  Raises:
    UsageError: it is empty or holds a NUL, which no path can, or it begins
      with the `~` of a user who is not known here.
  """
  text = os.fspath(path)
  if not text:
    raise UsageError('a path is empty: name a file or a folder.')
  if '\0' in text:
    raise UsageError(f'{text!r} holds a NUL character, which no path can.')
  expanded = os.path.expanduser(text)
  if expanded.startswith('~') and not os.path.lexists(expanded):
    raise UsageError(
      f'{text}: there is no user {text.partition("/")[0][1:]!r} here; for a '
      f'file or folder of that name, write ./{text}.'
    )
  return expanded


def is_url(text: str) -> bool:
  """Returns whether a text is a URL, such as https://… or data:…."""
  return bool(re.match(r'[A-Za-z][A-Za-z0-9+.-]+://|data:[a-z]+/', text))


def open_regular(
  path: str | os.PathLike, max_bytes: int | None = None
) -> io.BufferedReader:
  """Opens a regular file for reading; a pipe or a device is never waited for.

  Args:
    max_bytes: the largest size that is read; None is any.
  Raises:
    MissingFileError: there is no such file.
    FailureError: it is a folder, a pipe or a device, too large, or may not be
      read.
  """
  try:
    # Without O_NONBLOCK, opening a FIFO waits for somebody to write to it.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  except (FileNotFoundError, NotADirectoryError) as error:
    raise MissingFileError(f'{os.fspath(path)}: no such file.') from error
  except (OSError, ValueError) as error:  # ValueError: a NUL in the path
    reason = getattr(error, 'strerror', None) or str(error)
    raise FailureError(f'{os.fspath(path)}: {reason.lower()}.') from error
  status = os.fstat(number)
  wrong = ''
  if not stat.S_ISREG(status.st_mode):
    kind = 'a folder' if stat.S_ISDIR(status.st_mode) else 'a pipe or a device'
    wrong = f'{kind}, not a file'
  elif max_bytes is not None and status.st_size > max_bytes:
    wrong = f'{status.st_size:,} bytes, over the limit of {max_bytes:,}'
  if wrong:
    os.close(number)
    raise FailureError(f'{os.fspath(path)}: {wrong}.')
  return os.fdopen(number, 'rb')


def open_lock(path: str | os.PathLike) -> io.FileIO:
  """Opens a file to hold a lock on, which is made where there is none.

  Raises:
    FailureError: it is a folder, or may not be written.
  """
  flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
  try:
    return io.FileIO(os.open(path, flags, 0o666), 'wb')
  except FileNotFoundError:
    raise
  except OSError as error:
    reason = reason_of(error)
    raise FailureError(f'{os.fspath(path)}: {reason}.') from error


@contextlib.contextmanager
def holding_lock(
  path: str | os.PathLike, held: UsageError | FailureError | None = None
) -> Iterator[None]:
  """Holds the lock of a file for a block, against all other processes.

  Args:
    path: of the file; it is made where there is none.
    held: is raised where another process holds the lock; None waits for it.
  Raises:
    FailureError: see `open_lock`.
  """
  with open_lock(path) as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if held else 0))
    except BlockingIOError as error:
      raise held or error from error
    yield


def append(path: str | os.PathLike, data: bytes) -> None:
  """Adds bytes to the end of a file, which is made where there is none.

  Raises:
    FailureError: it is a folder or a pipe, or cannot be written, as where the
      disk is full.
  """
  flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
  try:
    with io.FileIO(os.open(path, flags, 0o666), 'ab') as file:
      while data:  # a disk that is nearly full takes a part, then raises
        data = data[file.write(data) or 0 :]
  except OSError as error:
    reason = reason_of(error)
    raise FailureError(f'{os.fspath(path)}: {reason}.') from error


def check_folder(
  folder: str | os.PathLike, described_in: tuple[str, ...]
) -> None:
  """Refuses a folder with a pipe, a device or a vast description in it.

  It is for folders whose files a library opens by itself.

  Args:
    folder: of this machine; where there is none, nothing is refused.
    described_in: ends of names of files that are read as a whole.
  Raises:
    FailureError: it has one; the message names it.
  """
  for parent, _, names in os.walk(folder):
    for name in names:
      size = MAX_TEXT_BYTES if name.endswith(described_in) else None
      open_regular(os.path.join(parent, name), size).close()


def read_bytes(
  path: str | os.PathLike, max_bytes: int | None = MAX_TEXT_BYTES
) -> bytes:
  """Reads the whole of a regular file.

  Raises:
    MissingFileError, FailureError: see `open_regular`.
  """
  with open_regular(path, max_bytes) as file:
    try:
      return file.read()
    except OSError as error:
      reason = reason_of(error)
      raise FailureError(f'{os.fspath(path)}: {reason}.') from error


def read_text(
  path: str | os.PathLike, max_bytes: int | None = MAX_TEXT_BYTES
) -> str:
  """Reads a UTF-8 file, without the mark that some editors put first.

  Raises:
    MissingFileError, FailureError: see `open_regular`.
    FailureError: it is not UTF-8; the message names the line.
  """
  data = read_bytes(path, max_bytes)
  try:
    return data.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    line = data.count(b'\n', 0, error.start) + 1
    raise FailureError(
      f'{os.fspath(path)}, line {line}: not UTF-8 '
      f'(byte 0x{data[error.start]:02x}); save the file as UTF-8.'
    ) from error


def read_json(
  path: str | os.PathLike, max_bytes: int | None = MAX_TEXT_BYTES
) -> Any:
  """Reads a JSON file.

  Raises:
    MissingFileError, FailureError: see `read_text` and `parse_json`.
  """
  return parse_json(read_text(path, max_bytes), os.fspath(path))


def parse_json(text: str | bytes, where: str) -> Any:
  """Parses a JSON document that lies in a file, or in a part of one.

  Args:
    where: names it in the error.
  Raises:
    FailureError: it is not JSON, or is nested deeper than MAX_DEPTH.
  """
  try:
    content = json.loads(text)
    depth = _depth(content)
  except (ValueError, RecursionError) as error:
    reason = 'too deeply nested' if isinstance(error, RecursionError) else error
    raise FailureError(f'{where} is not JSON: {reason}.') from error
  if depth > MAX_DEPTH:
    raise FailureError(
      f'{where}: JSON nested {depth:,} deep, over the limit of {MAX_DEPTH}.'
    )
  return content


def _depth(content: Any) -> int:
  """Returns how many lists and objects lie in one another at the most."""
  depth, level = 0, [content]
  while level := [x for x in level if isinstance(x, list | dict)]:
    depth += 1
    level = [
      item for x in level for item in (x.values() if isinstance(x, dict) else x)
    ]
  return depth


def read_object(path: Path) -> dict[str, Any]:
  """Reads the JSON object of a file; it is empty where there is no such file.

  Raises:
    FailureError: the file cannot be read, or holds something else.
  """
  try:
    content = read_json(path)
  except MissingFileError:
    return {}
  if not isinstance(content, dict):
    raise FailureError(f'{path} holds no JSON object.')
  return content


def check_fields(
  where: str | os.PathLike,
  content: Any,
  required: Mapping[str, type | tuple[type, ...]],
  optional: Mapping[str, type | tuple[type, ...]] | None = None,
) -> dict[str, Any]:
  """Returns a JSON object whose fields are of the types that its reader needs.

  A bool is no int. Fields that are not listed are left alone.

  Raises:
    FailureError: it is no object, a required field is missing, or a field is
      of another type; the message names it.
  """
  if not isinstance(content, dict):
    raise FailureError(f'{where}: holds no JSON object.')
  for name, kind in {**required, **(optional or {})}.items():
    if name not in content:
      if name in required:
        raise FailureError(f'{where}: the field {name!r} is missing.')
      continue
    value = content[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    is_bool = isinstance(value, bool) and bool not in kinds
    if is_bool or not isinstance(value, kinds):
      wanted = ' or '.join(x.__name__ for x in kinds)
      raise FailureError(
        f'{where}: the field {name!r} is {value!r}, and should be of type '
        f'{wanted}.'
      )
  return content


def read_fields(
  where: str | os.PathLike, content: Any, kind: type[Kind]
) -> Kind:
  """Makes a dataclass of a JSON object that has its fields, and no others.

  Args:
    where: names it in the error.
    content: of JSON.
    kind: its fields are annotated with plain types: numbers, str, list[...],
      dict[str, ...], Any, or one of several.
  Raises:
    FailureError: it is no object, a field is missing or not known, or one or
      something in it is of another type.
  """
  fields = dataclasses.fields(typing.cast(Any, kind))
  required = {
    field.name: (object, bool)
    for field in fields
    if field.default is field.default_factory is dataclasses.MISSING
  }
  values = check_fields(where, content, required)
  hints = typing.get_type_hints(kind)
  for name, value in values.items():
    if name not in hints:
      raise FailureError(f'{where}: the field {name!r} is not known.')
    if not _fits(value, hints[name]):
      raise FailureError(
        f'{where}: the field {name!r} holds something else than '
        f'{getattr(hints[name], "__name__", hints[name])}.'
      )
  return kind(**values)


def _fits(value: Any, hint: Any) -> bool:
  """Returns whether a value of JSON is of an annotated type."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return True
  if origin in (typing.Union, types.UnionType):
    return any(_fits(value, argument) for argument in arguments)
  if origin is list:
    return isinstance(value, list) and all(
      _fits(item, arguments[0]) for item in value
    )
  if origin is dict:
    return isinstance(value, dict) and all(
      _fits(item, arguments[1]) for item in value.values()
    )
  if hint is float:  # JSON writes 1.0 as 1, too
    return isinstance(value, int | float) and not isinstance(value, bool)
  return isinstance(value, hint) and (
    hint is bool or not isinstance(value, bool)
  )


def to_bytes(content: dict[str, Any]) -> bytes:
  """Returns a JSON object as the content of a file that a person may read."""
  return to_utf8(json.dumps(content, ensure_ascii=False, indent=2)) + b'\n'


def to_utf8(text: str) -> bytes:
  r"""Returns a text as UTF-8, also that of a file's name that is none.

  What has no UTF-8 is escaped, such as the byte E9 in a name as \udce9, which
  JSON reads back.
  """
  return text.encode('utf-8', 'backslashreplace')


@contextlib.contextmanager
def replacing(
  path: str | os.PathLike,
  *,
  make_folder: bool = False,
  temporary_in: Path | None = None,
) -> Iterator[Path]:
  """Gives a temporary path; once the block ends well, moves it to `path`.

  The file is as readable as any new one, whatever mode the block gave it.

  Args:
    make_folder: whether the folder of `path` is made, where there is none.
    temporary_in: a folder on the same disk for the temporary file, which a kill
      leaves there; None is that of `path`.
  Raises:
    UsageError: `path` is a folder, or in none.
    FailureError: it cannot be written, as where the disk is full.
  """
  # A Path has been through `typed_path`, and its `~` is a name now.
  path = path if isinstance(path, Path) else typed_path(path)
  if path.is_dir():
    raise UsageError(f'{path} is a folder: name a file.')
  if not make_folder and not path.parent.is_dir():
    raise UsageError(f'{path}: there is no folder {path.parent}.')
  # Processes on several hosts may have one process id.
  name = f'.{path.name}.{uuid.uuid4().hex}.part'
  temporary = (temporary_in or path.parent) / name
  try:
    if make_folder:
      path.parent.mkdir(parents=True, exist_ok=True)
    temporary.touch()
    mode = stat.S_IMODE(temporary.stat().st_mode)
    yield temporary
    temporary.chmod(mode)  # safetensors makes files for their owner alone
    with open(temporary, 'rb') as file:
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError as error:
    reason = reason_of(error)
    raise FailureError(f'{path} could not be written: {reason}.') from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


def new_folder(path: str | os.PathLike) -> Path:
  """Returns the path of a folder that is to be made, with its `~` expanded.

  Raises:
    UsageError: something is there that is not an empty folder, or there is no
      folder to make it in.
  """
  path = typed_path(path)
  if not path.parent.is_dir():
    raise UsageError(f'{path}: there is no folder {path.parent}.')
  free = not path.exists() or (path.is_dir() and not any(path.iterdir()))
  if not free:
    raise UsageError(
      f'{path} exists and is not an empty folder: name another --out.'
    )
  return path


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
  """Gives a temporary folder; once the block ends well, moves it to `path`.

  What is there goes then; whether it may is the caller's to check.

  Raises:
    FailureError: it cannot be written; of a file in it too, the message names
      `path`.
  """
  path = path if isinstance(path, Path) else typed_path(path)
  path = Path(os.path.abspath(path))
  part = path.with_name(f'.{path.name}.{os.getpid()}.part')
  old = path.with_name(f'.{path.name}.{os.getpid()}.old')
  try:
    part.mkdir()
    yield part
    for file in part.rglob('*'):
      if file.is_file():
        with open(file, 'rb') as written:
          os.fsync(written.fileno())
    if path.exists():
      path.rename(old)
    part.rename(path)
  except FailureError as error:
    message = str(error).replace(os.fspath(part), os.fspath(path))
    raise FailureError(message) from error
  except OSError as error:
    if old.exists() and not path.exists():
      old.rename(path)
    reason = reason_of(error)
    raise FailureError(f'{path} could not be written: {reason}.') from error
  finally:
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def write_bytes(
  path: str | os.PathLike, content: bytes, *, make_folder: bool = False
) -> None:
  """Writes a whole file, which replaces the one that is there.

  Args:
    make_folder: see `replacing`.
  Raises:
    UsageError, FailureError: see `replacing`.
  """
  with replacing(path, make_folder=make_folder) as temporary:
    temporary.write_bytes(content)
