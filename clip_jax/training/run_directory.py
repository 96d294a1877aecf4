"""The run directory's config.json: written once, and compared ever after."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clip_jax.data.images import CLIP_MEAN, CLIP_STD
from clip_jax.data.sources import same_data
from clip_jax.errors import FailureError, UsageError
from clip_jax.files import check_fields, open_lock, read_bytes, read_json
from clip_jax.parallel import distributed
from clip_jax.training.config import Config, dotted
from clip_jax.training.workdir import Workdir

# Fields that may differ when a run goes on: they change neither the numbers
# that it computes nor the records that it sees.
_FREE = (
  'log_every_steps',
  'max_skipped_steps',
  'stall_seconds',
  'mesh.',
  'model.remat',
  'objective.chunk',
  'objective.form',
  'objective.micro_batch',  # but of a ResNet, whose norms see fewer images
  'data.workers',
  'data.cache',
  'data.max_corrupt_records',
  'data.max_megapixels',
  'checkpoint.',
  'evaluation.',
)

# What runs did that were started before there was such a field. Of the ways to
# start from a model, those that were new then: what has begun does not care.
_BEFORE = {
  'data.background': '',
  'data.convention': 'open_clip',
  'data.exif': False,
  'data.interpolation': 'bicubic',
  'data.mean': list(CLIP_MEAN),
  'data.resize_to': [],
  'data.std': list(CLIP_STD),
  'initialize_from': '',
  'initialize_new_vocabulary': False,
  'initialize_text_positions': 'append',
  'model.patch_dropout': 0.0,
  'objective.max_logit_scale': 100.0,
  'optimizer.nu_dtype': 'float32',
}


def check(workdir: Workdir, config: Config) -> int | None:
  """Refuses a directory that holds another config's run.

  `total_steps` may be raised, also on a run that has finished.

  Args:
    config: with nothing left open (see `initialization.find_start`).
  Returns:
    The `total_steps` that the run had, where the config has more.
  Raises:
    UsageError: it does; the message names the fields that differ. Or it is
      the folder of the data.
    FailureError: its config.json cannot be read.
  """
  found = recorded(workdir)
  if found is None:
    _refuse_data(workdir, config)
    return None
  new, old = _named(as_json(config)), _BEFORE | _named(found)
  before = old.get('total_steps', config.total_steps)
  raised = before < config.total_steps
  changed = [
    f'{key}={new.get(key)!r} (the run has {old.get(key)!r})'
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
    and not key.startswith(_FREE)
    and not (key == 'total_steps' and raised)
    and not _is_inherited(key, old)
  ]
  if changed:
    lowered = before > config.total_steps
    raise UsageError(
      f'{workdir.name} holds a run with another config: {"; ".join(changed)}. '
      f'{"total_steps can be raised, not lowered. " if lowered else ""}'
      'Use another --workdir, or the config that it has.'
    )
  return before if raised else None


def _refuse_data(workdir: Workdir, config: Config) -> None:
  """Keeps a run's files out of a folder of images."""
  for spec in (*config.data.train.split('::'), config.evaluation.data):
    if spec and not workdir.is_remote and same_data(str(workdir.name), spec):
      raise UsageError(
        f'--workdir={workdir.name} is the folder of the data {spec.strip()!r}: '
        "name another for the run's files."
      )


def recorded(workdir: Workdir) -> dict[str, Any] | None:
  """Returns the config of the run in a directory, or None where none is.

  Raises:
    FailureError: its config.json cannot be read.
  """
  path = workdir.folder / 'config.json'
  return _read(path) if path.exists() else None


def _is_inherited(key: str, old: dict[str, Any]) -> bool:
  """Whether a run that started from a model left this field to it.

  Its shapes were not always written out; checkpoints describe the model.
  """
  left_open = old.get(key) is None or key == 'model.preset'
  return bool(old['initialize_from'] and key.startswith('model.') and left_open)


@contextlib.contextmanager
def claimed(workdir: Workdir, config: Config) -> Iterator[None]:
  """Makes the directory, writes the config, and keeps other runs out.

  Of a run's processes the first does that for all. The lock is the system's, on
  WORKDIR/.lock: it ends with the process, however that ends. An object store
  has none. Where the call turns out to be wrong, the config is again what it
  was, so that the right one is welcome.

  Raises:
    UsageError: another process trains in this directory.
  """
  if not distributed.is_first_process():
    yield
    return
  workdir.folder.mkdir(parents=True, exist_ok=True)
  with open_lock(workdir.folder / '.lock') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UsageError(
        f'another process trains in {workdir.name}: wait for it, or use '
        'another --workdir.'
      ) from error
    path = workdir.folder / 'config.json'
    before = read_bytes(path) if path.exists() else None
    _write(path, f'{json.dumps(as_json(config), indent=2)}\n'.encode())
    try:
      yield
    except UsageError:  # nothing ran with this config
      if before is None:
        path.unlink()
      else:
        _write(path, before)
      raise


def _write(path: Path, content: bytes) -> None:
  temporary = path.with_suffix('.tmp')
  temporary.write_bytes(content)
  os.replace(temporary, path)


def as_json(config: Config) -> dict[str, Any]:
  """The config as JSON has it: tuples are lists, unset fields null."""
  return json.loads(config.to_json_best_effort())


def _named(fields: dict[str, Any]) -> dict[str, Any]:
  """Values by their dotted names, with what an unset one stands for."""
  found = dotted(fields)
  if found.get('model.image.pooling') == 'average':  # as in CLIPConfig
    token = found.get('model.image.class_token')
    found['model.image.class_token'] = bool(token)
  return found


def _read(path: Path) -> dict[str, Any]:
  try:
    return check_fields(path, read_json(path), {}, {'total_steps': int})
  except FailureError as error:
    raise FailureError(
      f'{str(error).rstrip(".")}; restore it or use another --workdir.'
    ) from error
