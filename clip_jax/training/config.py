"""A run's config: its type, and the checks that no other part makes."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.data.images import Preprocessing
from clip_jax.errors import UsageError, check_choice
from clip_jax.files import typed_path
from clip_jax.models.config import CLIPConfig, ResNetConfig
from clip_jax.models.layers import REMAT_POLICIES
from clip_jax.models.positions import TEXT_METHODS
from clip_jax.objectives.registry import FORMS, OBJECTIVES

# An ml_collections ConfigDict with the fields of configs/base.py; they are
# made at run time, so that a type checker knows none of them.
Config = Any

DTYPES = ('float32', 'bfloat16')


INHERITED = 'initialize_from'  # as a tokenizer: that of the model

# Fields of `data` that are fields of `Preprocessing`.
PREPROCESSING = (
  'resize_mode',
  'interpolation',
  'mean',
  'std',
  'background',
  'exif',
  'convention',
  'resize_to',
)


def dotted(fields: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns the values of nested fields by their dotted names."""
  found: dict[str, Any] = {}
  for key, value in fields.items():
    if isinstance(value, Mapping):
      found |= dotted(value, f'{prefix}{key}.')
    else:
      found[f'{prefix}{key}'] = value
  return found


def tokenizer_path(spec: str) -> Path | None:
  """Returns the file or folder that a tokenizer's spec names, if it names any.

  A relative one is looked up in the working directory.
  """
  _, _, path = spec.partition(':')
  return typed_path(path) if path else None


def with_defaults(config: Config) -> Config:
  """Returns a copy that says its tokenizer and how images become pixels.

  What it leaves open is CLIP's own, images laid on white and turned by EXIF.
  """
  config = copy.deepcopy(config)
  config.tokenizer = config.tokenizer or 'clip'
  take_preprocessing(
    config, Preprocessing(image_size=1, background='white', exif=True)
  )
  return config


def preprocessing_fields(preprocessing: Preprocessing) -> dict[str, Any]:
  """Returns the fields of `config.data` that stand for this, by their names.

  There, None is what is left open: no background is '', no `resize_to` is ().
  """
  fields = {name: getattr(preprocessing, name) for name in PREPROCESSING}
  fields['background'] = preprocessing.background or ''
  size = preprocessing.resize_to
  fields['resize_to'] = (size,) if isinstance(size, int) else tuple(size or ())
  return fields


def take_preprocessing(config: Config, preprocessing: Preprocessing) -> None:
  """Fills what `config.data` leaves open of `PREPROCESSING`."""
  fields = preprocessing_fields(preprocessing)
  if config.data.resize_mode not in (None, preprocessing.resize_mode):
    fields['resize_to'] = ()  # it was for the other mode
  for name, value in fields.items():
    if config.data[name] is None:
      config.data[name] = value


def preprocessing_of(config: Config, model: CLIPConfig) -> Preprocessing:
  """Returns how `config.data`, which leaves nothing open, treats images."""
  fields = {name: config.data[name] for name in PREPROCESSING}
  fields['background'] = config.data.background or None
  size = tuple(config.data.resize_to)
  fields['resize_to'] = (size[0] if len(size) == 1 else size) if size else None
  fields['image_size'] = model.image.image_size
  return Preprocessing.from_dict(fields)


def check_config(config: Config) -> None:
  """Refuses values that would fail late, or not at all.

  Raises:
    UsageError: the first field that is impossible.
  """
  for name in ('total_steps', 'log_every_steps'):
    if config[name] < 1:
      raise UsageError(f'{name}={config[name]} must be at least 1.')
  for name in ('max_skipped_steps', 'stall_seconds'):
    if config[name] < 0:
      raise UsageError(f'{name}={config[name]} must be at least 0.')
  if config.evaluation.batch_size < 1:
    raise UsageError(
      f'evaluation.batch_size={config.evaluation.batch_size} must be at '
      'least 1.'
    )
  metric = config.checkpoint.best_metric
  tasks = config.evaluation.tasks
  measured = [['eval', task] for task in tasks]
  if config.evaluation.data:
    measured.append(['eval', 'loss'])
  if metric and metric.split('/')[:2] not in measured:
    raise UsageError(
      f'checkpoint.best_metric={metric!r} is not measured: use '
      f'eval/TASK/METRIC with a TASK of evaluation.tasks={tuple(tasks)}, or '
      'eval/loss/loss of an evaluation.data with captions.'
    )
  if config.checkpoint.every_steps < 1 or config.checkpoint.keep < 1:
    raise UsageError(
      f'checkpoint.every_steps={config.checkpoint.every_steps} and '
      f'checkpoint.keep={config.checkpoint.keep} must be at least 1.'
    )
  choices = {
    'initialize_text_positions': (
      config.initialize_text_positions,
      TEXT_METHODS,
    ),
    'model.dtype': (config.model.dtype, DTYPES),
    'model.remat': (config.model.remat, tuple(REMAT_POLICIES)),
    'optimizer.mu_dtype': (config.optimizer.mu_dtype, DTYPES),
    'optimizer.nu_dtype': (config.optimizer.nu_dtype, DTYPES),
    'objective.name': (config.objective.name, tuple(OBJECTIVES)),
    'objective.form': (config.objective.form, FORMS),
  }
  for name, (value, known) in choices.items():
    check_choice(name, value, known)
  if not 0 <= config.model.patch_dropout < 1:
    raise UsageError(
      f'model.patch_dropout={config.model.patch_dropout} must be at least 0 '
      'and below 1.'
    )
  if config.objective.max_logit_scale < 0:
    raise UsageError(
      f'objective.max_logit_scale={config.objective.max_logit_scale} must be '
      'above 0, or 0 for no limit.'
    )


def check_objective(config: Config, model: CLIPConfig) -> None:
  """Refuses a model that cannot be trained as the config says.

  Raises:
    UsageError: the sigmoid loss without a bias, or patches left out of a
      ResNet.
  """
  if config.objective.name == 'sigmoid' and model.initial_logit_bias is None:
    raise UsageError(
      "objective.name='sigmoid' needs a bias: say "
      'model.initial_logit_bias=-10 and model.initial_logit_scale=10, as '
      'SigLIP does.'
    )
  if config.model.patch_dropout and isinstance(model.image, ResNetConfig):
    raise UsageError(
      f'model.patch_dropout={config.model.patch_dropout} is for a ViT, and '
      'the image tower is a ResNet: leave it at 0.'
    )
