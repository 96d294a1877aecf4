"""Prepares a run: completes the config, opens the data, builds the step.

What only `initialize_from` needs is in inheritance.py, and loads when used.
"""

import copy
import dataclasses
import hashlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from clip_jax import tokenizers
from clip_jax.data.augment import Augmentation
from clip_jax.data.decoding import limit_megapixels
from clip_jax.data.examples import Teachers
from clip_jax.data.pipeline import (
  Batches,
  captioned_sources,
  check_captions,
  step_records,
  training_batches,
)
from clip_jax.data.sources import Source, open_source, split_mixture
from clip_jax.data.sources.base import sample_indices
from clip_jax.errors import UsageError, print_notes
from clip_jax.models import presets
from clip_jax.models.config import CLIPConfig, LoRAConfig
from clip_jax.models.description import Description
from clip_jax.objectives.registry import PREDICTIVE
from clip_jax.parallel import distributed
from clip_jax.parallel.mesh import batch_sharding
from clip_jax.training.config import (
  INHERITED,
  Config,
  Start,
  check_config,
  check_devices,
  preprocessing_of,
  tokenizer_path,
  trains_decoder,
  views_of,
  with_defaults,
)
from clip_jax.training.program import TrainProgram, build_train_program
from clip_jax.training.saved_config import decode_of_run
from clip_jax.training.state import TrainState, sharded_init

if TYPE_CHECKING:
  from clip_jax.data.captions import CaptionRule
  from clip_jax.training.workdir import Workdir

# Records of each data set whose ids the processes of a run compare.
_COMPARED_IDS = 16

# Tasks that need labels in `evaluation.data`, and tasks that need captions.
_NEED_LABELS = ('zero_shot', 'prompt_gain', 'bias')
_NEED_CAPTIONS = ('retrieval', 'captioning')


@dataclasses.dataclass(frozen=True)
class Run:
  """The opened data and the built train step of a config."""

  config: Config
  sources: Sequence[Source]
  evaluation_source: Source | None
  tokenizer: tokenizers.Tokenizer
  description: Description
  program: TrainProgram
  teachers: Teachers | None = None

  def batches(self, start_step: int) -> Batches:
    """Returns this process's batches after `start_step` steps."""
    data = self.config.data
    index, count = distributed.process_slice(
      batch_sharding(self.program.mesh), data.batch_size
    )
    return training_batches(
      self.sources,
      weights=tuple(data.weights) or None,
      tokenizer=self.tokenizer,
      preprocessing=self.description.preprocessing,
      augmentation=augmentation_of(self.config),
      batch_size=data.batch_size,
      seed=self.config.seed,
      start_step=start_step,
      process_index=index,
      process_count=count,
      workers=data.workers,
      cache=data.cache,
      captions=caption_rule(self.config),
      decode=data.decode,
      max_corrupt_records=data.max_corrupt_records,
      sequence_lengths=tuple(data.sequence_lengths),
      views=views_of(self.config),
      teachers=self.teachers,
    )

  def record_ids(self, step: int) -> list[str]:
    """Returns the ids of the records that a step, counted from 1, reads."""
    data = self.config.data
    return step_records(
      self.sources,
      weights=tuple(data.weights) or None,
      batch_size=data.batch_size,
      seed=self.config.seed,
      step=step,
    )


def complete_config(
  config: Config,
  workdir: 'Workdir | None' = None,
  stated: Collection[str] = (),
) -> Start:
  """Fills what a config leaves open, from `initialize_from` where it is given.

  How images are decoded is taken from the run that is in the directory, and the
  temperatures of teachers from what they are said to have written.

  Args:
    config: not changed.
    workdir: of the run; None where nothing is trained. Its checkpoints, if any,
      describe how the run began: the model that it started from may be gone by
      then.
    stated: dotted names of the fields that the command line gives.
  Raises:
    UsageError: there is no model at `initialize_from`, or it contradicts the
      config.
    FailureError: there is one, and it cannot be read.
  """
  if not config.data.decode:
    config = copy.deepcopy(config)
    own = decode_of_run(workdir) if workdir is not None else None
    config.data.decode = own or 'fast'
  if not config.initialize_from:
    _check_without_model(config)
    start = Start(with_defaults(config))
  else:
    from clip_jax.training.inheritance import inherit_config

    start = inherit_config(config, workdir, stated)
  if workdir is not None:
    _fill_teacher_scales(start.config)
  return start


def _fill_teacher_scales(config: Config) -> None:
  """Fills the temperatures that a config leaves to its teachers.

  Raises:
    UsageError: there is no such teacher.
  """
  if config.data.teachers and not config.objective.teacher_scales:
    from clip_jax.inference.teacher_features import TeacherFeatures

    config.objective.teacher_scales = tuple(
      TeacherFeatures(folder).logit_scale for folder in config.data.teachers
    )


def _check_without_model(config: Config) -> None:
  """Refuses fields that mean nothing without a model to start from."""
  for name, is_given in (
    ('initialize_new_vocabulary=True', config.initialize_new_vocabulary),
    (f'tokenizer={INHERITED}', config.tokenizer == INHERITED),
    (f'initialize_anew={config.initialize_anew}', config.initialize_anew),
  ):
    if is_given:
      raise UsageError(
        f'{name} says how to start from a model: name that in initialize_from.'
      )
  if config.model.lora.rank and not config.optimizer.groups:
    raise UsageError(
      f'model.lora.rank={config.model.lora.rank} trains adapters of a model, '
      'and all else stays random: name the model in initialize_from, or say in '
      'optimizer.groups what is trained.'
    )


def prepare_run(config: Config, inherited: Description | None = None) -> Run:
  """Checks the config, opens the data, shapes the model, and builds the step.

  Args:
    config: with nothing left open (see `config.with_defaults`).
    inherited: the description of the model whose tokenizer and vocabulary the
      run keeps (see inheritance.py); None where the config decides.
  Raises:
    UsageError: a field is impossible, or the data is not there.
  """
  check_config(config)
  caption_rule(config)
  mesh = check_devices(config)
  if config.data.max_megapixels:
    limit_megapixels(config.data.max_megapixels)
  sources = open_training_sources(config)
  evaluation_source = open_evaluation_source(config)
  _print_notices([*sources, *filter(None, [evaluation_source])])
  check_captions(sources)
  check_same_records('data.train', sources)
  if evaluation_source is not None:
    check_same_records('evaluation.data', [evaluation_source])
  rule = caption_rule(config)
  if rule is not None and distributed.is_first_process():
    print_notes(rule.describe(sources))
  if inherited is None and config.tokenizer_training.vocab_size:
    from clip_jax.training.vocabulary import train_vocabulary

    train_vocabulary(config, sources)
  tokenizer = load_tokenizer(config, inherited)
  if trains_decoder(config) and tokenizer.padding_side == 'left':
    raise UsageError(
      f'tokenizer={config.tokenizer!r} pads texts on the left, and captions '
      'are predicted from their first token on: name one that pads on the '
      'right.'
    )
  # An inherited vocabulary may have more tokens than its tokenizer gives.
  vocabulary = (
    (tokenizer.vocab_size, tokenizer.eos_id)
    if inherited is None
    else (inherited.model.text.vocab_size, inherited.model.text.end_token)
  )
  model = make_model_config(config, *vocabulary, tokenizer.context_length)
  preprocessing = preprocessing_of(config, model)
  teachers = None
  if config.data.teachers:
    from clip_jax.inference.teacher_features import (
      describe_views,
      open_teachers,
    )

    views: Any = views_of(config)  # `check_config` has seen that there are some
    teachers = open_teachers(
      config.data.teachers,
      captioned_sources(sources),
      config.data.captions,
      views,
      describe_views(views, augmentation_of(config), preprocessing),
    )
  return Run(
    config=config,
    sources=sources,
    evaluation_source=evaluation_source,
    tokenizer=tokenizer,
    description=Description(model, tokenizer.describe(), preprocessing),
    program=build_train_program(config, mesh, model, preprocessing),
    teachers=teachers,
  )


def initial_state(
  program: TrainProgram, seed: int, start: Start | None = None
) -> TrainState:
  """Returns the state before the first update.

  The optimizer starts anew in any case, and so does the schedule.

  Args:
    program: of the run.
    seed: of the random weights.
    start: its weights, if any, are used instead, the temperature too, resized
      to the program's model. They are removed from it, to free their memory.
  Raises:
    UsageError: the weights are not those of the program's model.
  """
  state = sharded_init(program.module, program.optimizer, program.mesh, seed)
  if start is None or start.weights is None:
    return state
  from clip_jax.training.inheritance import inherit_weights

  return inherit_weights(state, start, program.module.config)


def open_training_sources(config: Config) -> list[Source]:
  """Opens the data sets of `data.train`.

  Raises:
    UsageError: none is named, or the weights do not fit them.
  """
  specs = split_mixture(config.data.train)
  if not specs[0]:
    raise UsageError(
      'data.train is empty: name a data set, such as '
      '--config.data.train=folder:PATH.'
    )
  if config.data.weights and len(config.data.weights) != len(specs):
    raise UsageError(
      f'data.weights has {len(config.data.weights)} numbers for '
      f'{len(specs)} data sets in data.train.'
    )
  return [open_source(spec, captions=config.data.captions) for spec in specs]


def augmentation_of(config: Config) -> Augmentation:
  """Returns the augmentation that `data.augment` describes.

  Raises:
    UsageError: one of its fields is impossible.
  """
  return Augmentation.from_dict(config.data.augment.to_dict())


def caption_rule(config: Config) -> 'CaptionRule | None':
  """Returns which captions training may draw, and how often; None for all.

  Raises:
    UsageError: `data.caption_weights`, `data.templates` or `data.filter` is
      impossible.
  """
  data = config.data
  choices = (data.caption_weights, data.templates, *data.filter.values())
  if not any(choices):
    return None
  from clip_jax.data.captions import CaptionRule

  rule = CaptionRule(
    tuple(map(float, data.caption_weights)),
    templates=tuple(data.templates),
    **data.filter.to_dict(),
  )
  rule.check_columns(data.captions)
  return rule


def check_same_records(field: str, sources: Sequence[Source]) -> None:
  """Refuses processes that see other records than the first.

  Compared are numbers and, of records all over the data, ids: as where a host
  lacks a shard, or has another version of the data.

  Args:
    field: of the config, which names the sources.
    sources: in the same order in all processes.
  Raises:
    UsageError: there is such a process.
  """
  digest = hashlib.sha256()
  for source in sources:
    ids = [source.id(i) for i in sample_indices(len(source), _COMPARED_IDS)]
    digest.update(repr((len(source), ids)).encode('utf-8', 'surrogatepass'))
  distributed.barrier(field)
  differing = distributed.processes_unlike_first(digest.digest())
  if differing:
    records = ', '.join(f'{len(source):,}' for source in sources)
    raise UsageError(
      f'{field} has other records in process {differing[0]} than in process 0 '
      f'({records} in this one): give all processes the same files.'
    )


def open_evaluation_source(config: Config) -> Source | None:
  """Opens `evaluation.data`; returns None where nothing is evaluated.

  Raises:
    UsageError: a task is unknown, or needs what training or the data lacks.
  """
  tasks, spec = config.evaluation.tasks, config.evaluation.data
  if not spec and not tasks:
    return None
  from clip_jax.evaluation import NEED_OTHER_DATA, find_evaluator
  from clip_jax.inference.classifier import check_templates

  for task in tasks:
    if task in NEED_OTHER_DATA:
      raise UsageError(
        f'evaluation.tasks has {task!r}, which needs other data beside '
        'evaluation.data: take it out, and run `clip-jax eval '
        f'--task={task}` on what was trained.'
      )
    find_evaluator(task)
  if not spec:
    raise UsageError('evaluation.data is empty: name a data set to evaluate.')
  check_templates(config.evaluation.templates)
  source = open_source(spec, captions=config.evaluation.captions)
  for task in tasks:
    if task in _NEED_LABELS and not source.label_names:
      raise UsageError(
        f'evaluation.data={spec!r} has no labels, which {task} needs: take '
        f'it out of evaluation.tasks, or name labelled data{source.hint}.'
      )
    if task in _NEED_CAPTIONS and not source.has_captions():
      raise UsageError(
        f'evaluation.data={spec!r} has no captions, which {task} needs: take '
        f'it out of evaluation.tasks, or name captioned data{source.hint}.'
      )
  return source


def _print_notices(sources: Sequence[Source]) -> None:
  """Prints what the sources left out or inferred, each notice once."""
  if distributed.is_first_process():
    print_notes(line for source in sources for line in source.notices)


def load_tokenizer(
  config: Config, inherited: Description | None = None
) -> tokenizers.Tokenizer:
  """Loads the config's tokenizer, at the context length of the config's model.

  Args:
    inherited: as in `prepare_run`; its tokenizer needs no file.
  """
  spec, path = config.tokenizer, tokenizer_path(config.tokenizer)
  length = config.model.text.context_length
  if length is None and config.model.preset:
    length = presets.find(config.model.preset).config.text.context_length
  needs_no_file = spec == INHERITED or (path and not path.exists())
  if inherited is not None and inherited.tokenizer and needs_no_file:
    fields = dict(inherited.tokenizer)
    fields['context_length'] = length or fields['context_length']
    return tokenizers.from_description(fields)
  return tokenizers.load(spec, context_length=length)


def make_model_config(
  config: Config,
  vocab_size: int,
  end_token: int,
  context_length: int | None,
) -> CLIPConfig:
  """Returns the shape of `config.model` with a tokenizer's vocabulary.

  Args:
    vocab_size, end_token, context_length: of the tokenizer; a length of None
      leaves it to the config.
  Raises:
    UsageError: two fields that mean the same differ, or the text tower would
      not find the tokenizer's end token.
  """
  overrides = config.model.to_dict()
  for name in ('preset', 'dtype', 'remat', 'text_remat', 'patch_dropout'):
    del overrides[name]
  lora = overrides.pop('lora')
  _set_field(
    overrides['image'],
    'image_size',
    config.data.image_size,
    'data.image_size',
  )
  for field, value in (
    ('vocab_size', vocab_size),
    ('context_length', context_length),
    ('end_token', end_token),
  ):
    _set_field(overrides['text'], field, value, f'the tokenizer ({field})')
  has_decoder = any(x is not None for x in overrides['decoder'].values())
  if has_decoder and config.objective.name in PREDICTIVE:
    overrides['decoder']['only'] = True
  model = presets.resolve(config.model.preset or None, overrides)
  if lora['rank']:
    adapters = LoRAConfig(**{**lora, 'towers': tuple(lora['towers'])})
    model = dataclasses.replace(model, lora=adapters)
  if model.text.pooling == 'highest' and end_token + 1 < vocab_size:
    raise UsageError(
      "model.text.pooling='highest' reads the highest id of a text, and the "
      f"tokenizer's end token is {end_token} of {vocab_size:,}: take 'end'."
    )
  return model


def _set_field(
  fields: dict[str, Any], name: str, value: Any, origin: str
) -> None:
  """Sets a field of the model, which may not have another value already."""
  current = fields.get(name)
  if value is None:
    return
  if current is not None and current != value:
    raise UsageError(
      f'model {name}={current} and {origin}, which gives {value}, contradict '
      'each other: leave one of them out.'
    )
  fields[name] = value
