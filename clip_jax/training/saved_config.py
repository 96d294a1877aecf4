"""The run directory's config.json: written by a run, compared on resuming."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from clip_jax.checkpoints.reading import steps_of
from clip_jax.data.preprocessing import CLIP_MEAN, CLIP_STD
from clip_jax.data.sources import same_data, split_mixture
from clip_jax.errors import FailureError, UsageError
from clip_jax.files import (
  check_fields,
  holding_lock,
  read_bytes,
  read_json,
  write_bytes,
)
from clip_jax.parallel import distributed
from clip_jax.training.config import Config, dotted
from clip_jax.training.workdir import Workdir

# Fields that may differ when a run is resumed: they change neither the numbers
# that it computes nor the records that it sees, with two exceptions, which may
# have to change for a run to go on: of micro_batch, a ResNet's batch norm sees
# each by itself, and max_megapixels says which images are corrupt.
_FREE = (
  'log_every_steps',
  'max_skipped_steps',
  'stall_seconds',
  'mesh.',
  'model.remat',
  'model.text_remat',
  'objective.chunk',
  'objective.form',
  'objective.micro_batch',
  'data.workers',
  'data.cache',
  'data.max_corrupt_records',
  'data.max_megapixels',
  'checkpoint.',
  'evaluation.',
)

# The values of fields in runs that started before a field existed. The ways to
# start from a model do not matter to a run that has begun.
_DEFAULTS_OF_OLD_RUNS = {
  'data.background': '',
  'data.caption_weights': [],
  'data.convention': 'open_clip',
  'data.decode': 'exact',
  'data.exif': False,
  'data.filter.drop': '',
  'data.filter.max_characters': 0,
  'data.filter.max_words': 0,
  'data.filter.min_characters': 0,
  'data.filter.min_words': 0,
  'data.interpolation': 'bicubic',
  'data.mean': list(CLIP_MEAN),
  'data.resize_to': [],
  'data.sequence_lengths': [],
  'data.std': list(CLIP_STD),
  'data.teachers': [],
  'data.templates': [],
  'data.view_seed': 0,
  'data.views': 0,
  'initialize_anew': [],
  'initialize_from': '',
  'initialize_new_vocabulary': False,
  'initialize_text_positions': 'append',
  'model.lora.alpha': 16.0,
  'model.lora.rank': 0,
  'model.lora.towers': ['image', 'text'],
  'model.patch_dropout': 0.0,
  'model.text_remat': '',
  'objective.added.captioning': 0.0,
  'objective.added.distillation': 0.0,
  'objective.added.masked_prediction': 0.0,
  'objective.added.self_distillation': 0.0,
  'objective.max_logit_scale': 100.0,
  'objective.self_distillation.begin': 0.8,
  'objective.self_distillation.centre_decay': 0.9,
  'objective.self_distillation.features': 256,
  'objective.self_distillation.hidden': 2048,
  'objective.self_distillation.local_size': 96,
  'objective.self_distillation.local_views': 8,
  'objective.self_distillation.masked': 0.5,
  'objective.self_distillation.prototypes': 65_536,
  'objective.self_distillation.student_temperature': 0.1,
  'objective.self_distillation.teacher_decay': 0.996,
  'objective.self_distillation.teacher_temperature': 0.04,
  'objective.teacher_scales': [],
  'objective.weight': 1.0,
  'optimizer.ema_decay': 0.0,
  'optimizer.groups': [],
  'optimizer.layer_decay': 1.0,
  'optimizer.momentum': 0.95,
  'optimizer.name': 'adamw',
  'optimizer.nu_dtype': 'float32',
}


def check_saved_config(workdir: Workdir, config: Config) -> int | None:
  """Refuses a directory that holds another config's run.

  `total_steps` may be raised, also on a run that has finished.

  Args:
    config: with nothing left open (see `config.with_defaults`).
  Returns:
    The `total_steps` that the run had, where the config has more; else None.
  Raises:
    UsageError: it holds such a run, whose differing fields the message names,
      or it is the folder of the data.
    FailureError: its config.json cannot be read.
  """
  saved = read_saved_config(workdir)
  if saved is None:
    _refuse_data_folder(workdir, config)
    return None
  new = _comparable(config_to_json(config))
  old = _DEFAULTS_OF_OLD_RUNS | _comparable(saved)
  before = old.get('total_steps', config.total_steps)
  raised = before < config.total_steps
  changed = [
    f'{key}={new.get(key)!r} (the run has {old.get(key)!r})'
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
    and not key.startswith(_FREE)
    and not (key == 'total_steps' and raised)
    and not _was_inherited(key, old)
  ]
  if changed:
    lowered = before > config.total_steps
    raise UsageError(
      f'{workdir.name} holds a run with another config: {"; ".join(changed)}. '
      f'{"total_steps can be raised, not lowered. " if lowered else ""}'
      'Use another --workdir, or the config that it has.'
    )
  return before if raised else None


def _refuse_data_folder(workdir: Workdir, config: Config) -> None:
  """Refuses a run directory that is a folder of images."""
  for spec in (*split_mixture(config.data.train), config.evaluation.data):
    if spec and not workdir.is_remote and same_data(str(workdir.name), spec):
      raise UsageError(
        f'--workdir={workdir.name} is the folder of the data {spec!r}: '
        "name another for the run's files."
      )


def read_saved_config(workdir: Workdir) -> dict[str, Any] | None:
  """Returns the config of the run in a directory, or None where none is.

  Raises:
    FailureError: its config.json cannot be read.
  """
  path = workdir.folder / 'config.json'
  if not path.exists():
    return None
  try:
    return check_fields(path, read_json(path), {}, {'total_steps': int})
  except FailureError as error:
    raise FailureError(
      f'{str(error).rstrip(".")}; restore it or use another --workdir.'
    ) from error


def decode_of_run(workdir: Workdir) -> str | None:
  """Returns how the run in a directory decodes images; None if there is none.

  Raises:
    FailureError: its config.json cannot be read.
  """
  saved = read_saved_config(workdir)
  if saved is None:
    return None
  return (_DEFAULTS_OF_OLD_RUNS | dotted(saved))['data.decode']


def _was_inherited(key: str, old: dict[str, Any]) -> bool:
  """Returns whether a run took this field from the model that it started from.

  Old runs did not write out these shapes; checkpoints describe the model.
  """
  left_open = old.get(key) is None or key == 'model.preset'
  return bool(old['initialize_from'] and key.startswith('model.') and left_open)


@contextlib.contextmanager
def claim_workdir(workdir: Workdir, config: Config) -> Iterator[None]:
  """Makes the directory, writes the config, and keeps other runs out.

  The first process of a run does that for all. The lock is the system's, on
  WORKDIR/.lock: it ends with the process, however that ends. An object store
  has no lock. A usage error in the block restores the config of before, so that
  a corrected call is accepted, unless checkpoints were written with this one.

  Raises:
    UsageError: another process trains in this directory.
  """
  if not distributed.is_first_process():
    yield
    return
  workdir.folder.mkdir(parents=True, exist_ok=True)
  held = UsageError(
    f'another process trains in {workdir.name}: wait for it, or use another '
    '--workdir.'
  )
  with holding_lock(workdir.folder / '.lock', held):
    path = workdir.folder / 'config.json'
    before = read_bytes(path) if path.exists() else None
    steps = set(steps_of(workdir.name))
    text = f'{json.dumps(config_to_json(config), indent=2)}\n'
    write_bytes(path, text.encode())
    try:
      yield
    except UsageError:
      if not set(steps_of(workdir.name)) <= steps:
        raise  # a checkpoint was written with this config
      if before is None:
        path.unlink()
      else:
        write_bytes(path, before)
      raise


def config_to_json(config: Config) -> dict[str, Any]:
  """Returns the config as JSON values: tuples are lists, unset fields None."""
  return json.loads(config.to_json_best_effort())


def _comparable(fields: dict[str, Any]) -> dict[str, Any]:
  """Returns a config's values by their dotted names, to be compared.

  A class token that the config leaves open is compared as its default.
  """
  values = dotted(fields)
  if values.get('model.image.pooling') == 'average':  # as in CLIPConfig
    token = values.get('model.image.class_token')
    values['model.image.class_token'] = bool(token)
  return values
