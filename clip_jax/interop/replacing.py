"""A file or a folder that comes into its place whole, or not at all."""

import contextlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from clip_jax.errors import FailureError, UsageError, reason_of
from clip_jax.files import typed_path


@contextlib.contextmanager
def replacing(
  path: str | os.PathLike, *, make_folder: bool = False
) -> Iterator[Path]:
  """Gives a temporary path; once the block ends well, moves it to `path`.

  The file is as readable as any new one, whatever mode the block gave it.

  Args:
    make_folder: whether the folder of `path` is made, where there is none.
  Raises:
    UsageError: `path` is a folder, or in none.
    FailureError: it cannot be written, as where the disk is full.
  """
  path = typed_path(path)
  if path.is_dir():
    raise UsageError(f'{path} is a folder: name a file.')
  if not make_folder and not path.parent.is_dir():
    raise UsageError(f'{path}: there is no folder {path.parent}.')
  # Processes on several hosts may have one process id.
  temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.part')
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


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
  """Gives a temporary folder; once the block ends well, moves it to `path`.

  What is there goes then; whether it may is the caller's to check.

  Raises:
    FailureError: it cannot be written; of a file in it too, the message names
      `path`.
  """
  path = Path(os.path.abspath(typed_path(path)))
  part = path.with_name(f'.{path.name}.{os.getpid()}.part')
  old = path.with_name(f'.{path.name}.{os.getpid()}.old')
  try:
    part.mkdir()
    yield part
    for file in part.iterdir():
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
