"""OUT.parts: the folder in which a job's parts wait to be joined.

```
OUT.parts/
  job.json       which job this is: model, data, dtype, and how it is divided
  00000000.npz   one a part, there only when it is whole
  lock           held while the folder is begun, and while parts are joined
  0-of-4.lock    held by the process that works on this share of the parts
```

A process can be killed at any moment. What it leaves is this folder with some
whole parts in it; the same command then makes the others. Locks are the
system's and end with their process.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clip_jax.errors import FailureError, UsageError
from clip_jax.files import check_fields, open_lock, read_fields, read_json
from clip_jax.inference.bulk.identity import differences
from clip_jax.inference.bulk.parts import Part, Plan, sync

_JOB = 'job.json'


class PartsFolder:
  """The parts of one job on disk.

  Attributes:
    path: the folder.
    plan: how the job is divided, as the process that began it chose.
    identity: the job's, as that process found it.
    was_joined: whether a process was killed after it had joined the parts and
      before all of them were removed.
  """

  def __init__(self, out: Path):
    """Touches nothing yet.

    Args:
      out: the file that the parts will become. Its suffix is not part of the
        folder's name: the parts may be joined in either format.
    """
    self.path = out.with_suffix('.parts')
    self.plan = Plan(0, 0, 1)
    self.identity: dict[str, Any] = {}
    self.was_joined = False
    self._trash = out.with_suffix('.parts.done')

  @contextlib.contextmanager
  def begun(self, identity: dict[str, Any], plan: Plan) -> Iterator[None]:
    """Begins the folder, or goes on with the one that is there.

    Leaving it by an error removes it if it has no part.

    Raises:
      UsageError: it is another job's.
    """
    self.was_joined = self._trash.exists()
    self.path.mkdir(exist_ok=True)
    with self._locked():
      self._claim(identity, plan)
    try:
      yield
    finally:
      self._remove_if_empty()
      shutil.rmtree(self._trash, ignore_errors=True)

  @contextlib.contextmanager
  def share(self, index: int, count: int) -> Iterator[None]:
    """Keeps other processes from working on the same share.

    Raises:
      UsageError: one does.
    """
    with open_lock(self.path / f'{index}-of-{count}.lock') as lock:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        which = f'share {index}/{count} of ' if count > 1 else ''
        raise UsageError(
          f'another process works on {which}{self.path}: wait for it, or name '
          'another --out.'
        ) from error
      yield

  def has(self, part: Part) -> bool:
    """Whether a part is there, whole."""
    return (self.path / part.file_name).exists()

  def done(self) -> list[Part]:
    """The parts that are there, in order."""
    return [part for part in self.plan if self.has(part)]

  @contextlib.contextmanager
  def joining(self) -> Iterator[bool]:
    """One process at a time may join the parts.

    Yields:
      Whether they are still there; if not, another process has joined them.
    """
    with contextlib.ExitStack() as stack:
      there = False
      with contextlib.suppress(FileNotFoundError):
        stack.enter_context(self._locked())
        there = (self.path / _JOB).exists()
      yield there

  def remove(self) -> None:
    """Removes the folder; it disappears at once, its files thereafter."""
    shutil.rmtree(self._trash, ignore_errors=True)  # of an earlier job
    os.rename(self.path, self._trash)
    shutil.rmtree(self._trash, ignore_errors=True)

  def _claim(self, identity: dict[str, Any], plan: Plan) -> None:
    path = self.path / _JOB
    if path.exists():
      job = check_fields(
        path, read_json(path), {'identity': dict, 'plan': dict}
      )
      different = differences(identity, job['identity'])
      if different:
        raise UsageError(
          f'{self.path} holds the parts of another job: '
          f'{"; ".join(different)}. Remove that folder, or name another --out.'
        )
      found = read_fields(path, job['plan'], Plan)
      # Only how many records a part has is the old job's to say.
      if (
        found.part_rows < 1
        or dataclasses.replace(found, part_rows=plan.part_rows) != plan
      ):
        raise FailureError(
          f'{path} is damaged: its plan is not of these records. Remove '
          f'{self.path}, and the same command begins again.'
        )
      self.plan, self.identity = found, job['identity']
      return
    strangers = [
      name for name in os.listdir(self.path)
      if not name.endswith(('.lock', '.tmp')) and name != 'lock'
    ]  # fmt: skip
    if strangers:
      raise UsageError(
        f'{self.path} is in the way: it holds {strangers[0]!r} and no '
        f'{_JOB}. Move it, or name another --out.'
      )
    self.plan, self.identity = plan, identity
    job = {'identity': identity, 'plan': vars(plan)}
    temporary = path.with_suffix('.tmp')
    with open(temporary, 'wb') as file:
      file.write(json.dumps(job, indent=2).encode())
      sync(file)
    os.replace(temporary, path)

  @contextlib.contextmanager
  def _locked(self) -> Iterator[None]:
    with open_lock(self.path / 'lock') as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      yield

  def _remove_if_empty(self) -> None:
    """Where no work is lost by it, and no other process is at work here."""
    with contextlib.suppress(OSError), self._locked():
      names = os.listdir(self.path)
      if not any(name.endswith('.npz') for name in names) and not any(
        _is_held(self.path / name) for name in names if '-of-' in name
      ):
        self.remove()


def _is_held(lock: Path) -> bool:
  with open_lock(lock) as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
  return False
