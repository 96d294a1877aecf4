"""Describes a run before its first step, and warns of its data."""

import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clip_jax.data.examples import Repeats
from clip_jax.data.sources import Source, same_data, split_mixture
from clip_jax.errors import print_warnings
from clip_jax.models.config import ResNetConfig
from clip_jax.models.counting import TRAINING_ONLY, count_parameters
from clip_jax.parallel.mesh import batch_shard_count
from clip_jax.training.config import (
  Config,
  first_taught_step,
  has_text_features,
  taught_terms,
)
from clip_jax.training.optimizer import make_schedule
from clip_jax.training.run import Run
from clip_jax.training.workdir import Workdir

# Pairs that repeat another one: the least number, and the least fraction, for
# a warning.
_MIN_REPEATS = 8
_MIN_REPEATED_FRACTION = 0.02
# Of the first, random weights in the last of their moving averages, before a
# warning.
_MAX_RANDOM_PART = 0.01
# Limits of reading captions before the first step.
_MAX_RECORDS = 10_000
_MAX_SECONDS = 3.0


def introduce_run(run: Run, workdir: Workdir, first_step: int) -> None:
  """Prints on stderr what a run does, and what is doubtful about its data.

  Args:
    first_step: updates that were done before.
  """
  captions, are_all = draw_captions(run.sources)
  summary = describe_run(run, workdir, first_step, captions, are_all)
  print(summary, file=sys.stderr)
  warn_of_truncated_captions(run, captions)
  warn_of_short_average(run.config)
  if run.evaluation_source is not None:
    warn_of_training_data(run)


def describe_raised_total(
  optimizer: Mapping[str, Any], before: int, total_steps: int, step: int
) -> str:
  """Describes how more steps change the learning rate of a run.

  Args:
    optimizer: the fields of `optimizer` in configs/base.py.
    before: `total_steps` until now.
    total_steps: from now on.
    step: updates done.
  """
  name, peak = optimizer['schedule'], optimizer['learning_rate']
  old, new = (
    float(
      np.asarray(
        make_schedule(name, peak, optimizer['warmup_steps'], total)(step)
      )
    )
    for total in (before, total_steps)
  )
  change = f'total_steps raised from {before:,} to {total_steps:,}: '
  if name == 'constant' or step >= total_steps:
    return f'{change}the learning rate stays {new:.3g}.'
  return (
    f'{change}the {name} schedule now ends at step {total_steps:,}, so that '
    f'the learning rate at step {step:,} goes from {old:.3g} to {new:.3g} '
    f'(peak {peak:.3g}); there is no second warm-up.'
  )


def draw_captions(sources: Sequence[Source]) -> tuple[list[str], bool]:
  """Returns captions of records drawn at random, and whether they are all.

  A data set may have 10^9 records: no more than a few seconds are spent.
  """
  records = sum(map(len, sources))
  count = min(records, _MAX_RECORDS)
  deadline = time.monotonic() + _MAX_SECONDS
  captions, seen = [], 0
  for index in random.Random(0).sample(range(records), count):
    for source in sources:
      if index < len(source):
        captions += source.captions(index)
        break
      index -= len(source)
    seen += 1
    if time.monotonic() > deadline:
      break
  return captions, seen == records


def warn_of_truncated_captions(run: Run, captions: Sequence[str]) -> None:
  """Warns on stderr of captions that are longer than the context."""
  templates = run.config.data.templates
  if templates:
    longest = max(templates, key=len)
    captions = [longest.replace('{}', caption) for caption in captions]
  lengths = run.tokenizer.text_lengths(captions)
  truncated = int((lengths > run.tokenizer.context_length).sum())
  if truncated:
    line = (
      f'{truncated:,} of {len(captions):,} captions looked at are longer than '
      f'model.text.context_length={run.tokenizer.context_length} tokens and '
      'will be truncated.'
    )
    print_warnings([line])


def warn_of_training_data(run: Run) -> None:
  """Warns on stderr if `evaluation.data` is data that the run trains on."""
  evaluated = run.config.evaluation.data
  if any(
    same_data(evaluated, spec) for spec in split_mixture(run.config.data.train)
  ):
    line = (
      f'evaluation.data={evaluated} is trained on, so that nothing is held '
      'out: its numbers do not tell what the model makes of new images. Name '
      'others.'
    )
    print_warnings([line])


def warn_of_short_average(config: Config) -> None:
  """Warns on stderr if random weights make up a part of the last average."""
  decay, steps = config.optimizer.ema_decay, config.total_steps
  part = decay**steps
  if not decay or config.initialize_from or part <= _MAX_RANDOM_PART:
    return
  # One digit of 8 / steps is off by a third at most: exp(-5) is left.
  enough = max(0.0, 1 - float(f'{8 / steps:.1g}'))
  line = (
    f'optimizer.ema_decay={decay:g} over total_steps={steps:,} leaves '
    f'{100 * part:.2g} % of the random first weights in the average that is '
    f'evaluated and loaded: use at most {enough:g}, or more steps.'
  )
  print_warnings([line])


def describe_run(
  run: Run,
  workdir: Workdir,
  first_step: int,
  captions: Sequence[str],
  captions_are_all: bool,
) -> str:
  """Returns lines about the data, steps, model, devices and results.

  Args:
    first_step: updates done before.
    captions, captions_are_all: from `draw_captions`.
  """
  pairs = sum(map(len, run.sources))
  differing = _captions(captions, captions_are_all)
  count = count_parameters(run.description.model)
  rows = [
    ('data', f'{pairs:,} pairs in {run.config.data.train}; {differing}'),
    *_views(run),
    ('steps', _steps(run, first_step)),
    ('model', _model(run, count.total)),
    ('  image', _image(run, count.image)),
    ('  text', _text(run, count.text)),
    *_decoder(run, count.decoder),
    *_taught(run),
    *_trained(run),
    ('devices', _devices(run)),
    ('evaluation', _evaluation(run)),
    ('output', _output(run, workdir)),
  ]
  return '\n'.join(f'{name:12}{row}' for name, row in rows)


def _views(run: Run) -> list[tuple[str, str]]:
  """Returns how many views there are, and the teachers that have seen them."""
  data, objective = run.config.data, run.config.objective
  if not data.views:
    return []
  seen = ''
  if data.teachers:
    scales = ', '.join(f'{scale:.4g}' for scale in objective.teacher_scales)
    seen = f', as seen by {", ".join(data.teachers)}; logit scales {scales}'
  return [('views', f'{data.views} of each image{seen}')]


def _captions(captions: Sequence[str], are_all: bool) -> str:
  """Returns how many captions differ, of all or of those looked at."""
  distinct = len(set(captions))
  differ = (
    'all different' if distinct == len(captions) else f'{distinct:,} different'
  )
  return (
    f'{len(captions):,} captions{"" if are_all else " looked at"}, {differ}'
  )


def _steps(run: Run, first_step: int) -> str:
  config, batch = run.config, run.config.data.batch_size
  total, pairs = config.total_steps, sum(map(len, run.sources))
  if len(run.sources) > 1 and config.data.weights:
    per_weight = total * batch / sum(config.data.weights)
    epochs = ', '.join(
      f'{_number(per_weight * weight / len(source))} epochs of {source.spec}'
      for source, weight in zip(run.sources, config.data.weights, strict=True)
    )
  else:
    epochs = (
      f'an epoch is {_number(pairs / batch)} steps, the run '
      f'{_number(total * batch / pairs)} epochs'
    )
  done = f'; {first_step:,} are done' if first_step else ''
  return f'{total:,}, each of {batch:,} pairs{done}; {epochs}'


def _number(value: float) -> str:
  """Formats with one decimal place, or two digits for a small number."""
  return f'{value:,.1f}' if value >= 1 else f'{value:.2g}'


def _model(run: Run, parameters: int) -> str:
  config = run.config
  preset = f'{config.model.preset}, ' if config.model.preset else ''
  objective = config.objective
  weights = {objective.name: objective.weight, **objective.added}
  loss = ' + '.join(
    name if weight == 1 else f'{weight:g} {name}'
    for name, weight in weights.items()
    if weight
  )
  return f'{preset}{parameters:,} parameters, {config.model.dtype}, {loss} loss'


def _trained(run: Run) -> list[tuple[str, str]]:
  """Returns a row about what is trained, where something is frozen."""
  params = run.program.state.params
  total = sum(leaf.size for leaf in jax.tree.leaves(params))
  part = jax.eval_shape(run.program.optimizer.partition(params).trained, params)
  trained = sum(leaf.size for leaf in jax.tree.leaves(part))
  if trained == total:
    return []
  return [
    ('  trained', f'{trained:,} parameters; {total - trained:,} are frozen')
  ]


def _image(run: Run, parameters: int) -> str:
  tower = run.description.model.image
  kind = 'ResNet' if isinstance(tower, ResNetConfig) else 'ViT'
  size, lengths = tower.image_size, run.config.data.sequence_lengths
  read = f'{size} x {size} pixels'
  if lengths:
    each = ' or '.join(f'{length:,}' for length in lengths)
    read = f'native aspect, at most {each} patches'
  return f'{kind}, {parameters:,} parameters, {read}'


def _text(run: Run, parameters: int) -> str:
  tower = run.description.model.text
  return (
    f'{parameters:,} parameters, {tower.context_length} tokens, vocabulary of '
    f'{tower.vocab_size:,}'
  )


def _decoder(run: Run, parameters: int) -> list[tuple[str, str]]:
  """Returns a row on the caption decoder, if there is one."""
  decoder = run.description.model.decoder
  if decoder is None:
    return []
  reads = {
    'tokens': 'reads tokens itself',
    'text_tower': "goes on from the text tower's states",
    'image_prefix': "reads tokens after the image's",
    'pooled_image': 'predicts words from the pooled image',
  }[decoder.reads]
  return [('  decoder', f'{parameters:,} parameters, {reads}')]


def _taught(run: Run) -> list[tuple[str, str]]:
  """Returns a row on the terms that a momentum teacher gives answers to."""
  begin = first_taught_step(run.config)
  if begin is None:
    return []
  added = run.config.objective.added
  heads, teacher = (
    sum(leaf.size for leaf in jax.tree.leaves(tree))
    for tree in (
      run.program.state.params[TRAINING_ONLY],
      run.program.state.teacher,
    )
  )
  terms = ' and '.join(
    f'{name} (weight {added[name]:g})' for name in taught_terms(run.config)
  )
  return [
    (
      '  teacher',
      f'from step {begin + 1:,} on, for {terms}: {teacher:,} averages; heads '
      f'of {heads:,} parameters, which only training needs',
    )
  ]


def _devices(run: Run) -> str:
  mesh, processes = run.program.mesh, jax.process_count()
  kind = mesh.devices.flat[0].device_kind
  noun = 'process' if processes == 1 else 'processes'
  sides = ' x '.join(f'{k} {n}' for k, n in mesh.shape.items() if n > 1)
  shape = f'; mesh {sides}' if sides else ''
  each = run.config.data.batch_size // batch_shard_count(mesh)
  return (
    f'{mesh.size:,} x {kind}, {processes:,} {noun}{shape}; {each:,} pairs of '
    'a batch on each'
  )


def _evaluation(run: Run) -> str:
  evaluation = run.config.evaluation
  if run.evaluation_source is None:
    return 'none (evaluation.data is empty)'
  every = evaluation.every_steps
  when = f'every {every:,} steps and ' if every else ''
  pairs = run.evaluation_source.has_captions()
  what = ', '.join((*(['loss'] if pairs else []), *evaluation.tasks))
  return f'{what} on {evaluation.data}, {when}at the end'


def _output(run: Run, workdir: Workdir) -> str:
  name = workdir.name if workdir.is_remote else os.path.abspath(workdir.name)
  checkpoint = run.config.checkpoint
  return (
    f'{name}: metrics.jsonl, report.html, and checkpoints every '
    f'{checkpoint.every_steps:,} steps, of which {checkpoint.keep} stay'
  )


def describe_repeats(repeats: Repeats, records: int, config: Config) -> str:
  """Returns a warning of batches that repeat pairs, and what would help.

  Args:
    repeats: of the pairs so far, in the first process.
    records: in `data.train`.
  Returns:
    A line; '' where the repeats are few, or may be chance.
  """
  if not has_text_features(config):  # nothing is compared
    return ''
  if repeats.either < max(_MIN_REPEATS, _MIN_REPEATED_FRACTION * repeats.pairs):
    return ''
  batch_size = config.data.batch_size
  has_few_records = records < batch_size
  shares = [
    f'{100 * count / repeats.pairs:.3g} % of the pairs {what}'
    for count, what in (
      (repeats.captions, 'have the caption'),
      (repeats.images, 'have the image'),
    )
    if count
  ]
  sentences = [
    f'{" and ".join(shares)} of another pair of their batch: the loss takes '
    'each for a wrong answer to the other'
  ]
  floor = repeats.floor / repeats.pairs
  if config.objective.name == 'softmax' and floor >= 0.01:
    sentences[0] += f', and cannot fall below {floor:.2f}'
  if has_few_records:
    sentences.append(
      f'data.train has {records:,} records, fewer than data.batch_size='
      f'{batch_size:,}, so that a batch has some of them more than once'
    )
  if jax.process_count() > 1:
    sentences.append(
      f'This is the first of {jax.process_count():,} processes: whole '
      'batches repeat more'
    )
  helps = []
  if has_few_records:
    helps.append(f'a data.batch_size of at most {records:,}, or more data')
  elif repeats.captions:
    helps.append(f'a data.batch_size below {batch_size:,}')
  if repeats.captions > repeats.images:
    helps.append('captions that tell the images apart')
  if repeats.images and not has_few_records:
    helps.append('data without copies of images')
  return f'{". ".join(sentences)}. What helps: {"; ".join(helps)}.'
