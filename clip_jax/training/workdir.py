"""A run directory on a disk, or in an object store such as gs://.

An object store has no appending, no renaming and no locks. The run's small
files (config.json, metrics.jsonl, tensorboard/, report.html) are therefore
written in a folder of this machine, and copied whole whenever a checkpoint is
about to be saved; Orbax writes the checkpoints themselves to where they belong.
"""

import contextlib
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from etils import epath

from clip_jax.errors import FailureError, UsageError, print_warnings
from clip_jax.files import expand_path
from clip_jax.parallel import distributed

Result = TypeVar('Result')

REPORT = 'report.html'
_STORES = ('gs://', 's3://')  # those that Orbax writes to
_NOT_MIRRORED = ('checkpoints', 'profile')
_ATTEMPTS = 6  # over a minute or so
# Errors that another attempt would repeat.
_FINAL = (FileNotFoundError, PermissionError, ImportError, ValueError)


class Workdir:
  """A run directory, and the local folder that holds its small files.

  Attributes:
    name: as the user gave it; Orbax gets it, too.
    folder: on this machine, for everything but the checkpoints. It is the run
      directory itself, unless that is in an object store.
  """

  def __init__(self, name: str | os.PathLike, folder: Path):
    self.name = os.fspath(name)
    self.folder = folder
    self._copied: dict[Path, tuple[int, int]] = {}

  @property
  def _remote(self) -> Any:
    return epath.Path(self.name)

  @property
  def is_remote(self) -> bool:
    return '://' in self.name

  def has(self, file: str) -> bool:
    """Returns whether the run has written this file."""
    return (self.folder / file).exists()

  def path(self, file: str) -> str:
    """Returns where users find a file."""
    return f'{self.name.rstrip("/")}/{file}'

  def publish(self) -> None:
    """Uploads what has changed since the last call, in the first process.

    Raises:
      FailureError: that fails repeatedly.
    """
    if not self.is_remote or not distributed.is_first_process():
      return
    for path in sorted(self.folder.rglob('*')):
      inside = path.relative_to(self.folder)
      if path.is_file() and inside.name != '.lock':
        state = path.stat().st_size, path.stat().st_mtime_ns
        if self._copied.get(inside) != state:
          _with_retries(self._upload, path, self._remote / str(inside))
          self._copied[inside] = state

  def fetch(self) -> None:
    """Downloads the files of a run that is resumed."""
    if self.is_remote:
      _with_retries(self._download, self._remote, self.folder)

  def _upload(self, path: Path, target: Any) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(path.read_bytes())

  def _download(self, source: Any, target: Path) -> None:
    if not source.is_dir():
      return
    target.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
      if entry.name in _NOT_MIRRORED:
        continue
      if entry.is_dir():
        self._download(entry, target / entry.name)
      else:
        (target / entry.name).write_bytes(entry.read_bytes())


@contextlib.contextmanager
def open_workdir(name: str | os.PathLike) -> Iterator[Workdir]:
  """Opens a run directory for a block, and uploads its files in the end.

  Args:
    name: a path, or gs://BUCKET/… (s3://…).
  Raises:
    UsageError: it is another kind of store.
    FailureError: the store cannot be reached.
  """
  text = expand_path(name)
  if '://' not in text:
    yield Workdir(text, Path(text))
    return
  if not text.startswith(_STORES):
    raise UsageError(
      f'--workdir={text}: use a path, or one that begins with '
      f'{" or ".join(_STORES)}.'
    )
  with tempfile.TemporaryDirectory() as folder:
    last = text.rstrip('/').rpartition('/')[2]
    workdir = Workdir(text, Path(folder) / last)
    workdir.fetch()
    try:
      yield workdir
    finally:
      workdir.publish()


def _with_retries(
  call: Callable[..., Result], source: Any, target: Any
) -> Result:
  """Calls `call(source, target)`, again after 1, 2, 4, … seconds."""
  for attempt in range(_ATTEMPTS):
    try:
      return call(source, target)
    except Exception as error:  # each store has its own classes
      reason = ' '.join(str(error).split())[:200] or type(error).__name__
      if isinstance(error, _FINAL) or attempt == _ATTEMPTS - 1:
        raise FailureError(
          f'{source} could not be copied to {target}: {reason}'
        ) from error
    wait = 2**attempt * random.uniform(0.5, 1.5)  # not all hosts at once
    line = f'{source} to {target}: {reason}; trying again in {wait:.0f} s'
    print_warnings([line])
    time.sleep(wait)
  raise AssertionError('the last attempt returns or raises')
