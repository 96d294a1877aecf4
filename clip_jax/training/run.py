"""From a config to the objects of a run: nothing is computed yet."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_jax import tokenizers
from clip_jax.data.augment import Augmentation
from clip_jax.data.images import limit_megapixels
from clip_jax.data.pipeline import (
  Batches,
  check_captions,
  step_records,
  training_batches,
)
from clip_jax.data.sources import Source, open_source
from clip_jax.errors import UsageError, one_line
from clip_jax.evaluation import find_evaluator
from clip_jax.files import read_json
from clip_jax.inference.classifier import check_templates
from clip_jax.models import presets
from clip_jax.models.config import CLIPConfig
from clip_jax.models.description import Description
from clip_jax.parallel import distributed
from clip_jax.parallel.mesh import batch_sharding
from clip_jax.tokenizers import sentence_piece
from clip_jax.training.config import (
  INHERITED,
  Config,
  preprocessing_of,
  tokenizer_path,
  with_defaults,
)
from clip_jax.training.program import Program, check_devices, make_program


@dataclasses.dataclass(frozen=True)
class Run:
  """All that a config stands for, ready to be started or resumed."""

  config: Config
  sources: Sequence[Source]
  evaluation_source: Source | None
  tokenizer: tokenizers.Tokenizer
  description: Description
  program: Program

  def batches(self, start_step: int) -> Batches:
    """This process's batches from `start_step` on: uint8 images, tokens."""
    data = self.config.data
    part, parts = distributed.process_slice(
      batch_sharding(self.program.mesh), data.batch_size
    )
    return training_batches(
      self.sources,
      weights=tuple(data.weights) or None,
      tokenizer=self.tokenizer,
      preprocessing=self.description.preprocessing,
      augmentation=Augmentation.from_dict(data.augment.to_dict()),
      batch_size=data.batch_size,
      seed=self.config.seed,
      start_step=start_step,
      process_index=part,
      process_count=parts,
      workers=data.workers,
      cache=data.cache,
      max_corrupt_records=data.max_corrupt_records,
    )

  def records_of(self, step: int) -> list[str]:
    """The ids of the records that a step, counted from 1, trains on."""
    data = self.config.data
    return step_records(
      self.sources,
      weights=tuple(data.weights) or None,
      batch_size=data.batch_size,
      seed=self.config.seed,
      step=step,
    )


def make_run(config: Config, kept: Description | None = None) -> Run:
  """Opens the data, shapes the model, and prepares the jitted step.

  Args:
    kept: of a model whose tokenizer and vocabulary the run goes on with (see
      `initialization.Start`).
  Raises:
    UsageError: a field is impossible, or the data is not there.
  """
  config = with_defaults(config)
  check_devices(config)
  if config.data.max_megapixels:
    limit_megapixels(config.data.max_megapixels)
  sources = open_sources(config)
  evaluation_source = open_evaluation(config)
  _tell_notices([*sources, *filter(None, [evaluation_source])])
  check_captions(sources)
  tokenizer = make_tokenizer(config, sources, kept)
  model = make_model_config(config, tokenizer, kept)
  description = Description(
    model=model,
    tokenizer=tokenizer.describe(),
    preprocessing=preprocessing_of(config, model),
  )
  return Run(
    config=config,
    sources=sources,
    evaluation_source=evaluation_source,
    tokenizer=tokenizer,
    description=description,
    program=make_program(config, model, description.preprocessing),
  )


def open_sources(config: Config) -> list[Source]:
  """The sources of `data.train`.

  Raises:
    UsageError: none is named, or the weights do not fit them.
  """
  specs = [spec.strip() for spec in config.data.train.split('::')]
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


def _tell_notices(sources: Sequence[Source]) -> None:
  """Prints once on stderr what the sources left out or understood."""
  if distributed.is_first_process():
    lines = (line for source in sources for line in source.notices)
    for line in dict.fromkeys(lines):
      print(f'note: {one_line(line)}', file=sys.stderr)


def open_evaluation(config: Config) -> Source | None:
  """The source of `evaluation.data`, or None where nothing is evaluated.

  Raises:
    UsageError: a task is unknown, or the data has not what it needs.
  """
  tasks, spec = config.evaluation.tasks, config.evaluation.data
  for task in tasks:
    find_evaluator(task)
  if not spec:
    if tasks:
      raise UsageError('evaluation.data is empty: name a data set to evaluate.')
    return None
  check_templates(config.evaluation.templates)
  source = open_source(spec, captions=config.evaluation.captions)
  if 'zero_shot' in tasks and not source.label_names:
    raise UsageError(
      f'evaluation.data={spec!r} has no labels, which zero_shot needs: take '
      f'it out of evaluation.tasks, or name labelled data{source.hint}.'
    )
  if 'retrieval' in tasks and next(source.texts(), None) is None:
    raise UsageError(
      f'evaluation.data={spec!r} has no captions, which retrieval needs: take '
      f'it out of evaluation.tasks, or name captioned data{source.hint}.'
    )
  return source


def make_tokenizer(
  config: Config, sources: Sequence[Source], kept: Description | None = None
) -> tokenizers.Tokenizer:
  """The config's tokenizer, trained first where that is asked for.

  Of several processes one trains, into a file that all of them can read.

  Args:
    kept: the description of a model that the run goes on with: its tokenizer
      needs no file, and none is trained.
  """
  spec, path = config.tokenizer, tokenizer_path(config.tokenizer)
  length = config.model.text.context_length
  if length is None and config.model.preset:
    length = presets.find(config.model.preset).config.text.context_length
  needs_no_file = spec == INHERITED or (path and not path.exists())
  if kept is not None and kept.tokenizer is not None and needs_no_file:
    described = dict(kept.tokenizer)
    described['context_length'] = length or described['context_length']
    return tokenizers.from_description(described)
  trains = kept is None and config.tokenizer_training.vocab_size > 0
  if path and trains and spec.startswith('sentencepiece:'):
    if distributed.is_first_process():
      _train_vocabulary(config, sources, path)
    distributed.barrier('vocabulary')
  return tokenizers.load(spec, context_length=length)


def _train_vocabulary(
  config: Config, sources: Sequence[Source], path: Path
) -> None:
  """Trains `path`, or checks that it was trained as the config says.

  What it was trained on is written beside it, as PATH.json. A file without
  that is somebody's own, and is taken as it is.
  """
  origin = {
    'data': config.data.train,
    'captions': list(config.data.captions),
    **config.tokenizer_training,
  }
  note = path.with_name(f'{path.name}.json')
  if path.exists():
    if note.exists() and read_json(note) != origin:
      raise UsageError(
        f'{path} was trained on other captions or with other settings ('
        f'see {note}): name another file in tokenizer, or remove both.'
      )
    return
  print(
    f'training a vocabulary of {config.tokenizer_training.vocab_size:,} pieces '
    f'on {config.data.train} -> {path.absolute()}',
    file=sys.stderr,
  )
  note.parent.mkdir(parents=True, exist_ok=True)
  temporary = note.with_suffix('.tmp')
  temporary.write_text(json.dumps(origin, indent=2), encoding='utf-8')
  temporary.replace(note)  # before the vocabulary: a note alone is harmless
  captions = (text for source in sources for text in source.texts())
  pieces = sentence_piece.train(
    captions, path=path, **config.tokenizer_training
  )
  if pieces < config.tokenizer_training.vocab_size:
    print(
      f'note: the captions give no more than {pieces:,} pieces, fewer than '
      'tokenizer_training.vocab_size.',
      file=sys.stderr,
    )


def make_model_config(
  config: Config,
  tokenizer: tokenizers.Tokenizer,
  kept: Description | None = None,
) -> CLIPConfig:
  """The model of `config.model`, with the tokenizer's vocabulary and length.

  Args:
    kept: of a model whose vocabulary the run goes on with: it may have more
      tokens than its tokenizer gives.
  Raises:
    UsageError: see `shape_model`.
  """
  if kept is not None:
    text = kept.model.text
    return shape_model(
      config, text.vocab_size, tokenizer.context_length, text.end_token
    )
  return shape_model(
    config, tokenizer.vocab_size, tokenizer.context_length, tokenizer.eos_id
  )


def shape_model(
  config: Config, vocab_size: int, context_length: int | None, end_token: int
) -> CLIPConfig:
  """The model of `config.model` for a tokenizer of which this is known.

  Args:
    context_length: None leaves it to the config.
  Raises:
    UsageError: two fields that say the same differ, or the text tower would
      not find the tokenizer's end token.
  """
  overrides = config.model.to_dict()
  for name in ('preset', 'dtype', 'remat', 'patch_dropout'):
    del overrides[name]
  _settle(
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
    _settle(overrides['text'], field, value, f'the tokenizer ({field})')
  model = presets.resolve(config.model.preset or None, overrides)
  if model.text.pooling == 'highest' and end_token + 1 < vocab_size:
    raise UsageError(
      "model.text.pooling='highest' reads the highest id of a text, and the "
      f"tokenizer's end token is {end_token} of {vocab_size:,}: take 'end'."
    )
  return model


def _settle(fields: dict[str, Any], name: str, value: Any, origin: str) -> None:
  """Puts `value` into `fields`, unless another one was said there."""
  said = fields.get(name)
  if value is None:
    return
  if said is not None and said != value:
    raise UsageError(
      f'model {name}={said} and {origin}, which gives {value}, contradict '
      'each other: leave one of them out.'
    )
  fields[name] = value
