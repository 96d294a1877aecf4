"""The words and numbers of a training report.

They are the headline, the settings, and the commands that repeat the run.
"""

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from clip_jax.evaluation.metrics.ranking import FEW_CLASSES
from clip_jax.progress import duration, speed
from clip_jax.report.examples import ShownExamples
from clip_jax.report.page import percent, short_count
from clip_jax.training.metrics import TRAIN_PREFIX, Row, series

# The settings that tell one run from another; all of them are in config.json.
SETTINGS = (
  'data.train',
  'data.captions',
  'data.batch_size',
  'tokenizer',
  'model.preset',
  'model.embed_dim',
  'model.image.image_size',
  'model.image.patch_size',
  'model.image.layers',
  'model.image.width',
  'model.image.depth',
  'model.text.width',
  'model.text.depth',
  'model.text.context_length',
  'model.dtype',
  'objective.name',
  'objective.form',
  'optimizer.learning_rate',
  'optimizer.schedule',
  'optimizer.warmup_steps',
  'optimizer.weight_decay',
  'total_steps',
  'seed',
)

_HIGHER = 1.05  # than the lowest held-out loss, which is more than its noise


def headline(
  rows: Sequence[Row],
  config: Mapping[str, Any],
  parameters: int | None,
  hidden: Collection[str] = (),
) -> list[dict[str, str]]:
  """Returns the numbers at the top, each with its name and a note.

  Numbers that the run has not measured, and those of `hidden`, are left out.
  """
  numbers = []

  def add(value: str, name: str, note: str = '') -> None:
    numbers.append({'value': value, 'name': name, 'note': note})

  for name, words, note in (
    ('zero_shot/top1', 'zero-shot top-1', 'right name first'),
    ('zero_shot/top5', 'zero-shot top-5', 'among its first five'),
    ('captioning/exact_match', 'captions right', 'written word for word'),
    ('retrieval/image_to_text_r1', 'image to text R@1', 'retrieval'),
    ('retrieval/text_to_image_r1', 'text to image R@1', 'retrieval'),
  ):
    value = _last(rows, f'eval/{name}')
    if value is None or f'eval/{name}' in hidden:
      continue
    notes = [note]
    for what, beside in (
      ('training pairs', f'eval/{TRAIN_PREFIX}{name}'),
      ('chance', f'eval/{name}_chance'),
    ):
      level = _last(rows, beside)
      if level is not None:
        notes.append(f'{what} {percent(level)}')
    add(percent(value), words, '; '.join(notes))
  loss, trained = (
    _last(rows, f'eval/{x}loss/loss') for x in ('', TRAIN_PREFIX)
  )
  if loss is not None:
    note = '' if trained is None else f'training pairs {trained:.2f}'
    add(f'{loss:.2f}', 'held-out loss', note)
  batch_size = setting(config, 'data.batch_size')
  if rows:
    note = f'of {batch_size:,} pairs each' if batch_size else ''
    add(f'{rows[-1]["step"]:,}', 'steps', note)
  if parameters is not None:
    add(short_count(parameters), 'parameters', f'{parameters:,}')
  _, rates = series(rows, 'train/examples_per_second')
  if rates:
    add(speed(sorted(rates)[len(rates) // 2]), 'images/s', 'median')
    seconds = training_seconds(rows, batch_size or 0)
    if seconds:
      add(duration(seconds), 'training time', 'without evaluation')
  return numbers


def _last(rows: Sequence[Row], name: str) -> float | None:
  """Returns the last value of a metric, if the run has it."""
  _, values = series(rows, name)
  return values[-1] if values else None


def overfitting(rows: Sequence[Row]) -> str:
  """Returns a sentence on a held-out loss that rose; '' where it did not."""
  steps, losses = series(rows, 'eval/loss/loss')
  if not losses or not losses[-1] > _HIGHER * min(losses):
    return ''
  best = losses.index(min(losses))
  line = (
    f'The held-out loss was lowest at step {steps[best]:,}, with '
    f'{losses[best]:.2f}, and is {losses[-1]:.2f} at the end: since then the '
    'model has learned its training pairs by heart'
  )
  trained = _last(rows, f'eval/{TRAIN_PREFIX}loss/loss')
  if trained is not None:
    line += f', whose loss is {trained:.2f}'
  return f'{line}. More data, augmentation or fewer steps would help.'


def training_seconds(rows: Sequence[Row], batch_size: int) -> float:
  """Returns the time spent in steps, from the measured speed.

  The clock would count the pauses of a run that was stopped and resumed.
  """
  steps, rates = series(rows, 'train/examples_per_second')
  total, last = 0.0, 0
  for step, rate in zip(steps, rates, strict=True):
    if rate > 0:
      total += (step - last) * batch_size / rate
    last = step
  return total


def summary(examples: ShownExamples, step: int) -> str:
  """Returns what the model can do, in a sentence or two."""
  after = f'After {step:,} steps' if step else 'Before training'
  if not len(examples):
    return f'{after}. No held-out data were given.'
  if examples.predictions is None:
    return (
      f'{after}, seen through {len(examples):,} held-out examples without '
      'labels or captions.'
    )
  ranks = [prediction.rank for prediction in examples.predictions]
  near = sum(rank is not None for rank in ranks)
  what = 'caption' if examples.captioned else 'name'
  chances = [
    len(set(x.answers)) / examples.choices for x in examples.predictions
  ]
  line = (
    f'{after}, the model gives {ranks.count(0):,} of {len(examples):,} '
    f'held-out images their right {what}, chosen among {examples.choices:,}; '
    f'guessing would get {percent(sum(chances) / len(chances))} right.'
  )
  if examples.choices > FEW_CLASSES:
    line += f' For {near:,} of them, the right {what} is one of its first five.'
  return line


def setting(config: Mapping[str, Any], name: str) -> Any:
  """Returns the value of a dotted name; None where the config lacks it."""
  value: Any = config
  for part in name.split('.'):
    value = value.get(part) if isinstance(value, Mapping) else None
  return value


def main_settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns the names and values of `SETTINGS` that the config has."""
  settings = []
  for name in SETTINGS:
    value = setting(config, name)
    if value not in (None, '', [], ()):
      if isinstance(value, list | tuple):
        value = ', '.join(map(str, value))
      settings.append(
        (name, f'{value:,}' if type(value) is int else str(value))
      )
  return settings


def commands(
  workdir: str, spec: str, command: str | None, labelled: bool
) -> list[tuple[str, str]]:
  """Returns commands to go on with, each after what it does."""
  model = f'--model={shlex.quote(workdir)}'
  lines = [('Train the model again', command)] if command else []
  if spec:
    task = 'zero_shot' if labelled else 'retrieval'
    data = f'--data={shlex.quote(spec)}'
    lines.append(
      ('Measure the model again', f'clip-jax eval {model} --task={task} {data}')
    )
  lines.append(
    (
      'Ask it about an image of your own',
      f'clip-jax classify {model} --labels="cat face,red apple" FILE.png',
    )
  )
  return lines
