"""A run's config: its type, its defaults, and the checks of its values."""

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from clip_jax.data.examples import DECODE
from clip_jax.data.preprocessing import MAX_PATCHES, Preprocessing
from clip_jax.errors import UsageError, check_choice
from clip_jax.files import typed_path
from clip_jax.models.config import TEXT_METHODS, CLIPConfig, ResNetConfig
from clip_jax.models.description import Description
from clip_jax.models.kernels import remat_policies
from clip_jax.objectives.registry import (
  FORMS,
  OBJECTIVES,
  PREDICTIVE,
  TAUGHT,
  check_chunk,
)
from clip_jax.parallel.mesh import (
  batch_shard_count,
  check_batch_size,
  make_mesh,
)
from clip_jax.training.optimizer import MUON_MOMENTUM, RULES

if TYPE_CHECKING:
  from clip_jax.data.views import Views
  from clip_jax.inference.loading import Loaded

# An ml_collections ConfigDict with the fields of configs/base.py; they are
# made at run time, so that a type checker knows none of them.
Config = Any

DTYPES = ('float32', 'bfloat16')

# The value of `tokenizer` that takes the tokenizer of `initialize_from`.
INHERITED = 'initialize_from'

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


@dataclasses.dataclass
class Start:
  """A config with nothing left open, and the initial weights of its run.

  Attributes:
    config: as it runs.
    inherited: the description of the model whose tokenizer and vocabulary the
      run keeps; None where the config's tokenizer decides.
    notes: lines for the user about what was taken from where.
    weights: of `initialize_from`; None where there is none, or where the run
      has checkpoints of its own. `run.initial_state` takes them away.
    reinitialized: paths of parameters that are random all the same.
  """

  config: Config
  inherited: Description | None = None
  notes: list[str] = dataclasses.field(default_factory=list)
  weights: 'Loaded | None' = None
  reinitialized: set[str] = dataclasses.field(default_factory=set)


def dotted(fields: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns the values of nested fields by their dotted names."""
  values: dict[str, Any] = {}
  for key, value in fields.items():
    if isinstance(value, Mapping):
      values |= dotted(value, f'{prefix}{key}.')
    else:
      values[f'{prefix}{key}'] = value
  return values


def tokenizer_path(spec: str) -> Path | None:
  """Returns the file or folder that a tokenizer's spec names, if it names any.

  A relative one is looked up in the working directory.
  """
  _, _, path = spec.partition(':')
  return typed_path(path) if path else None


def with_defaults(config: Config) -> Config:
  """Returns a copy whose tokenizer and preprocessing are filled in.

  Fields that it leaves open become CLIP's own; transparent images are laid on
  white, images are turned by EXIF, and JPEGs are decoded fast.
  """
  config = copy.deepcopy(config)
  config.tokenizer = config.tokenizer or 'clip'
  config.data.decode = config.data.decode or 'fast'
  fill_preprocessing(
    config, Preprocessing(image_size=1, background='white', exif=True)
  )
  return config


def preprocessing_fields(preprocessing: Preprocessing) -> dict[str, Any]:
  """Returns the values of the `PREPROCESSING` fields of `config.data`.

  There, None means open: no background is '', and no `resize_to` is ().
  """
  fields = {name: getattr(preprocessing, name) for name in PREPROCESSING}
  fields['background'] = preprocessing.background or ''
  size = preprocessing.resize_to
  fields['resize_to'] = (size,) if isinstance(size, int) else tuple(size or ())
  return fields


def fill_preprocessing(config: Config, preprocessing: Preprocessing) -> None:
  """Fills the fields of `PREPROCESSING` that `config.data` leaves open."""
  data = config.data
  if data.sequence_lengths is None:
    own = (preprocessing.max_patches,) if preprocessing.is_native else ()
    data.sequence_lengths = own
  if data.sequence_lengths and data.resize_mode is None:
    data.resize_mode = 'native'
  fields = preprocessing_fields(preprocessing)
  if config.data.resize_mode not in (None, preprocessing.resize_mode):
    fields['resize_to'] = ()  # it belongs to the other mode
  for name, value in fields.items():
    if config.data[name] is None:
      config.data[name] = value


def preprocessing_of(config: Config, model: CLIPConfig) -> Preprocessing:
  """Returns the preprocessing of `config.data`, whose fields are all filled."""
  fields = {name: config.data[name] for name in PREPROCESSING}
  fields['background'] = config.data.background or None
  size = tuple(config.data.resize_to)
  fields['resize_to'] = (size[0] if len(size) == 1 else size) if size else None
  lengths = config.data.sequence_lengths
  if lengths:
    del fields['resize_mode']
    patch_size: Any = getattr(model.image, 'patch_size', 1)
    return Preprocessing.native(patch_size, max(lengths), **fields)
  fields['image_size'] = model.image.image_size
  return Preprocessing.from_dict(fields)


def check_config(config: Config) -> None:
  """Refuses values that would fail late, or have no effect.

  Raises:
    UsageError: the first field that is impossible.
  """
  for name in ('total_steps', 'log_every_steps'):
    if config[name] < 1:
      raise UsageError(f'{name}={config[name]} must be at least 1.')
  for name in ('seed', 'max_skipped_steps', 'stall_seconds'):
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
  *measured_by, name = metric.split('/')[:3]
  if metric and (measured_by not in measured or not name):
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
    'data.decode': (config.data.decode or 'fast', DECODE),
    'model.dtype': (config.model.dtype, DTYPES),
    'optimizer.name': (config.optimizer.name, RULES),
    'optimizer.mu_dtype': (config.optimizer.mu_dtype, DTYPES),
    'optimizer.nu_dtype': (config.optimizer.nu_dtype, DTYPES),
    'objective.name': (config.objective.name, (*OBJECTIVES, *PREDICTIVE)),
    'objective.form': (config.objective.form, FORMS),
    'evaluation.classes': (config.evaluation.classes, ('all', 'present')),
  }
  for name, (value, known) in choices.items():
    check_choice(name, value, known)
  remat, text_remat = config.model.remat, config.model.text_remat
  remat_policies(remat, 1, 'model.remat')
  remat_policies(text_remat or remat, 1, 'model.text_remat')
  check_optimizer(config.optimizer)
  if not 0 <= config.model.patch_dropout < 1:
    raise UsageError(
      f'model.patch_dropout={config.model.patch_dropout} must be at least 0 '
      'and below 1.'
    )
  _check_sequence_lengths(config)
  if config.objective.max_logit_scale < 0:
    raise UsageError(
      f'objective.max_logit_scale={config.objective.max_logit_scale} must be '
      'above 0, or 0 for no limit.'
    )
  _check_weights(config)
  if taught_terms(config):
    from clip_jax.objectives.self_distillation import check_fields

    check_fields(config.objective.self_distillation)
  _check_teachers(config)
  if config.objective.name in PREDICTIVE:
    _check_predictive(config)


def _check_predictive(config: Config) -> None:
  """Refuses what needs text features, which no predictive objective trains."""
  name = f'objective.name={config.objective.name!r}'
  added = [key for key, weight in config.objective.added.items() if weight]
  if added:
    raise UsageError(
      f'{name} and objective.added.{added[0]}: terms are added to a '
      'contrastive loss; take softmax or sigmoid, or leave it at 0.'
    )
  tasks = {'zero_shot', 'captioning'}
  other = [task for task in config.evaluation.tasks if task not in tasks]
  if other:
    raise UsageError(
      f'{name} trains no text features, which {other[0]!r} of '
      'evaluation.tasks needs: take zero_shot or captioning.'
    )
  if config.checkpoint.best_metric.startswith('eval/loss'):
    raise UsageError(
      f'{name} has no contrastive loss, which checkpoint.best_metric='
      f'{config.checkpoint.best_metric!r} is: take eval/zero_shot/top1.'
    )


def check_optimizer(optimizer: Config) -> None:
  """Refuses values that are impossible, or do nothing with the update rule.

  Args:
    optimizer: the fields of `optimizer` in configs/base.py.
  Raises:
    UsageError: it names the first one.
  """
  name = optimizer['name']
  unused = {'momentum': MUON_MOMENTUM} if name != 'muon' else {}
  if name == 'lion':  # it has no second moment
    unused |= {'eps': 1e-6, 'nu_dtype': 'float32'}
  for field, default in unused.items():
    if optimizer[field] != default:
      raise UsageError(
        f'optimizer.{field}={optimizer[field]!r} does nothing with '
        f'optimizer.name={name!r}: set it to its default, {default!r}.'
      )
  for field in ('momentum', 'ema_decay'):
    if not 0 <= optimizer[field] < 1:
      raise UsageError(
        f'optimizer.{field}={optimizer[field]} must be at least 0 and below 1.'
      )
  if not 0 < optimizer['layer_decay'] <= 1:
    raise UsageError(
      f'optimizer.layer_decay={optimizer["layer_decay"]} must be above 0 and '
      'at most 1.'
    )


def _check_sequence_lengths(config: Config) -> None:
  """Refuses lengths that are impossible, or that do not fit the resizing."""
  lengths, mode = config.data.sequence_lengths or (), config.data.resize_mode
  numbers = isinstance(lengths, tuple | list) and all(
    type(length) is int and 1 <= length <= MAX_PATCHES for length in lengths
  )
  if not numbers or len(set(lengths)) < len(lengths):
    raise UsageError(
      f'data.sequence_lengths={lengths}: give different numbers of patches, of '
      f'1 to {MAX_PATCHES:,}, as in (128, 256, 576), or () for squares.'
    )
  if mode is not None and bool(lengths) != (mode == 'native'):
    raise UsageError(
      f'data.resize_mode={mode!r} with data.sequence_lengths={lengths}: images '
      "of native aspect have both, 'native' and lengths; squares have neither."
    )


def _check_weights(config: Config) -> None:
  """Refuses weights below 0, and objectives that compare nothing."""
  weights = {
    'weight': config.objective.weight,
    **{f'added.{k}': v for k, v in config.objective.added.items()},
  }
  for name, weight in weights.items():
    if not 0 <= weight < math.inf:
      raise UsageError(
        f'objective.{name}={weight} must be a weight of at least 0.'
      )
  if not config.objective.weight and not config.objective.added.distillation:
    raise UsageError(
      'objective.weight=0 leaves no loss that compares images with texts: give '
      'it or objective.added.distillation a weight; to predict captions alone, '
      "take objective.name='captioning'."
    )


def _check_teachers(config: Config) -> None:
  """Refuses a distillation without teachers, and teachers without it."""
  teachers, scales = config.data.teachers, config.objective.teacher_scales
  weight = config.objective.added.distillation
  if bool(teachers) != bool(weight):
    raise UsageError(
      f'data.teachers={tuple(teachers)} and objective.added.distillation='
      f'{weight}: distillation needs both.'
    )
  if teachers and views_of(config) is None:
    raise UsageError(
      'data.teachers need data.views, the number of views of each record that '
      'clip-jax embed gave to them.'
    )
  if teachers and config.data.sequence_lengths:
    raise UsageError(
      'data.teachers have seen squares, and data.sequence_lengths makes '
      'patches of native aspect: leave one of them out.'
    )
  if scales and (len(scales) != len(teachers) or min(scales) <= 0):
    raise UsageError(
      f'objective.teacher_scales={tuple(scales)} for {len(teachers)} '
      'data.teachers: use a number above 0 for each, or () for their own.'
    )


def taught_terms(config: Config) -> tuple[str, ...]:
  """Returns those of `TAUGHT` that the objective has."""
  return tuple(name for name in TAUGHT if config.objective.added[name])


def first_taught_step(config: Config) -> int | None:
  """Returns the updates before these terms begin; None where there are none."""
  if not taught_terms(config):
    return None
  return int(config.objective.self_distillation.begin * config.total_steps)


def views_of(config: Config) -> 'Views | None':
  """Returns the views of each record; None where all views are new.

  Raises:
    UsageError: their number or their seed is below 0.
  """
  if not config.data.views and not config.data.view_seed:
    return None
  from clip_jax.data.views import Views

  return Views(config.data.views, config.data.view_seed)


# The groups of a run whose model has low-rank adapters, and no other table.
_ADAPTERS_ALONE = (('*/blocks/lora', 1.0), ('*', 0.0))


def optimizer_fields(config: Config, model: CLIPConfig) -> dict[str, Any]:
  """Returns `config.optimizer`, whose groups may follow from the model."""
  fields = {**config.optimizer}
  if model.lora is not None and not fields['groups']:
    fields['groups'] = _ADAPTERS_ALONE
  return fields


def check_objective(config: Config, model: CLIPConfig) -> None:
  """Refuses a model that cannot be trained as the config says.

  Raises:
    UsageError: the sigmoid loss without a bias, patches for a ResNet or for a
      decoder, or captions without a decoder for them, or the reverse.
  """
  _check_decoder(config, model)
  if config.objective.name == 'sigmoid' and model.initial_logit_bias is None:
    raise UsageError(
      "objective.name='sigmoid' needs a bias: say "
      'model.initial_logit_bias=-10 and model.initial_logit_scale=10, as '
      'SigLIP does.'
    )
  if config.data.sequence_lengths and isinstance(model.image, ResNetConfig):
    raise UsageError(
      f'data.sequence_lengths={tuple(config.data.sequence_lengths)} is for a '
      'ViT, and the image tower is a ResNet: leave it at ().'
    )
  reads = None if model.decoder is None else model.decoder.reads
  if config.data.sequence_lengths and reads not in (None, 'pooled_image'):
    raise UsageError(
      f'model.decoder.reads={reads!r} would read the padding of '
      f'data.sequence_lengths={tuple(config.data.sequence_lengths)}: train it '
      'on squares, or leave the decoder out.'
    )
  if config.model.patch_dropout and isinstance(model.image, ResNetConfig):
    raise UsageError(
      f'model.patch_dropout={config.model.patch_dropout} is for a ViT, and '
      'the image tower is a ResNet: leave it at 0.'
    )


def has_text_features(config: Config) -> bool:
  """Returns whether the objective compares images with texts."""
  return config.objective.name in OBJECTIVES


def trains_decoder(config: Config) -> bool:
  """Returns whether the objective predicts captions, by a decoder."""
  return bool(_predicting(config))


def _predicting(config: Config) -> dict[str, str]:
  """Returns the predictive parts of the objective, and how they were asked."""
  objective = config.objective
  if objective.name in PREDICTIVE:
    return {objective.name: f'objective.name={objective.name!r}'}
  return {
    name: f'objective.added.{name}={weight}'
    for name, weight in objective.added.items()
    if weight and name in PREDICTIVE
  }


def _check_decoder(config: Config, model: CLIPConfig) -> None:
  """Refuses an objective without its decoder, and a decoder without one."""
  decoder, trained = model.decoder, _predicting(config)
  for name, setting in trained.items():
    known = ' or '.join(map(repr, PREDICTIVE[name]))
    if decoder is None:
      raise UsageError(
        f'{setting} needs a decoder: say model.decoder.reads={known}, and its '
        'shape (configs/base.py).'
      )
    if decoder.reads not in PREDICTIVE[name]:
      raise UsageError(
        f'{setting} needs model.decoder.reads={known}, not {decoder.reads!r}.'
      )
  if decoder is not None and not trained:
    raise UsageError(
      f'model.decoder.reads={decoder.reads!r}, and nothing trains the decoder: '
      'say objective.added.captioning or a predictive objective.name, or leave '
      'model.decoder out.'
    )
  known = PREDICTIVE['captioning']
  if 'captioning' in config.evaluation.tasks and (
    decoder is None or decoder.reads not in known
  ):
    raise UsageError(
      "evaluation.tasks has 'captioning', which needs a decoder that writes: "
      f'say model.decoder.reads={" or ".join(map(repr, known))}, or take it '
      'out.'
    )


def check_devices(
  config: Config, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Checks a config against the devices, and returns its mesh of them.

  Args:
    devices: default, all of `jax.devices()`; they need not be attached.
  Raises:
    UsageError: the batch, its micro-batches or the tiles of the loss do not
      split over the mesh, or the mesh does not fit the devices.
  """
  sizes, objective = config.mesh, config.objective
  mesh = make_mesh(sizes.data, sizes.fsdp, sizes.tensor, sizes.slices, devices)
  batch_size = config.data.batch_size
  check_batch_size(batch_size, mesh)
  check_micro_batch(objective.micro_batch, batch_size, mesh)
  check_chunk(
    objective.form, objective.chunk, batch_size, batch_shard_count(mesh)
  )
  return mesh


def check_micro_batch(micro_batch: int, batch_size: int, mesh: Mesh) -> None:
  """Refuses micro-batches that do not divide the batch; 0 stands for none."""
  if micro_batch == 0:
    return
  shards = batch_shard_count(mesh)
  fits = 0 < micro_batch <= batch_size and batch_size % micro_batch == 0
  if not fits or micro_batch % shards:
    right = [
      str(shards * own)
      for own in range(1, batch_size // shards + 1)
      if batch_size // shards % own == 0
    ]
    right.sort(key=lambda size: abs(int(size) - micro_batch))
    raise UsageError(
      f'objective.micro_batch={micro_batch} must divide '
      f'data.batch_size={batch_size}, and split over {shards} devices: '
      f'{" or ".join(right[:2])} would do, or 0 for the whole batch.'
    )
