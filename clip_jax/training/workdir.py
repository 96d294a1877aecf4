"""A run directory on a disk, or in an object store such as gs://.

An object store has no appending, no renaming and no locks. The run's small
files (config.json, metrics.jsonl, tensorboard/, report.html) are therefore
written in a folder of this machine, and copied whole whenever a checkpoint is
about to be saved; Orbax writes the checkpoints themselves to where they belong.
"""

import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from etils import epath

from clip_jax.errors import FailureError, UsageError
from clip_jax.files import typed_place
from clip_jax.parallel import distributed

Result = TypeVar('Result')

_STORES = ('gs://', 's3://')  # that Orbax writes to
_ELSEWHERE = ('checkpoints', 'profile')  # not mirrored
_ATTEMPTS = 6  # over a minute or so
# Trying again will not help these.
_FINAL = (FileNotFoundError, PermissionError, ImportError, ValueError)


class Workdir:
  """Where a run's files are.

  Attributes:
    name: as it was given: for people, and for Orbax.
    folder: of this machine, for everything but the checkpoints. On a disk it
      is the run directory itself.
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
    """Whether the run has written this file."""
    return (self.folder / file).exists()

  def path(self, file: str) -> str:
    """Where people find a file."""
    return f'{self.name.rstrip("/")}/{file}'

  def publish(self) -> None:
    """Copies what has changed since the last time, in the first process.

    Raises:
      FailureError: that fails, again and again.
    """
    if not self.is_remote or not distributed.is_first_process():
      return
    for path in sorted(self.folder.rglob('*')):
      inside = path.relative_to(self.folder)
      if path.is_file() and inside.name != '.lock':
        state = path.stat().st_size, path.stat().st_mtime_ns
        if self._copied.get(inside) != state:
          _retrying(self._upload, path, self._remote / str(inside))
          self._copied[inside] = state

  def fetch(self) -> None:
    """Copies what a run left here before."""
    if self.is_remote:
      _retrying(self._download, self._remote, self.folder)

  def _upload(self, path: Path, target: Any) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(path.read_bytes())

  def _download(self, source: Any, target: Path) -> None:
    if not source.is_dir():
      return
    target.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
      if entry.name in _ELSEWHERE:
        continue
      if entry.is_dir():
        self._download(entry, target / entry.name)
      else:
        (target / entry.name).write_bytes(entry.read_bytes())


@contextlib.contextmanager
def opened(name: str | os.PathLike) -> Iterator[Workdir]:
  """The run directory; what is left to copy is copied in the end.

  Args:
    name: a path, or gs://BUCKET/… (s3://…).
  Raises:
    UsageError: it is another kind of store.
    FailureError: the store cannot be reached.
  """
  text = typed_place(name)
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


def _retrying(call: Callable[..., Result], source: Any, target: Any) -> Result:
  """Calls with both arguments, again after 1, 2, 4, … seconds."""
  for attempt in range(_ATTEMPTS):
    try:
      return call(source, target)
    except Exception as error:  # each store has its own
      reason = ' '.join(str(error).split())[:200] or type(error).__name__
      if isinstance(error, _FINAL) or attempt == _ATTEMPTS - 1:
        raise FailureError(
          f'{source} could not be copied to {target}: {reason}'
        ) from error
    wait = 2**attempt * random.uniform(0.5, 1.5)  # not all hosts at once
    print(
      f'warning: {source} to {target}: {reason}; trying again in {wait:.0f} s',
      file=sys.stderr,
    )
    time.sleep(wait)
  raise AssertionError('the last attempt returns or raises')
