"""The facts of a report that are words and numbers: the headline, the
settings, and the commands that make the run again.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.pages.words import percent, short_count
from clip_jax.training.metrics import Row, series
from clip_jax.training.progress import duration, speed
from clip_jax.training.report.examples import Examples

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


def headline(
  rows: Sequence[Row], config: Mapping[str, Any], parameters: int | None
) -> list[dict[str, str]]:
  """The numbers at the top: a value, what it is, and a note.

  Those that the run has not measured are left out.
  """
  found = []

  def add(value: str, name: str, note: str = '') -> None:
    found.append({'value': value, 'name': name, 'note': note})

  for name, words, note in (
    ('zero_shot/top1', 'zero-shot top-1', 'right name first'),
    ('zero_shot/top5', 'zero-shot top-5', 'among its first five'),
    ('retrieval/image_to_text_r1', 'image to text R@1', 'retrieval'),
    ('retrieval/text_to_image_r1', 'text to image R@1', 'retrieval'),
  ):
    _, values = series(rows, f'eval/{name}')
    if values:
      add(percent(values[-1]), words, note)
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
  return found


def training_seconds(rows: Sequence[Row], batch_size: int) -> float:
  """Time spent in steps, from the measured speed.

  The clock would count the pauses of a run that was stopped and resumed.
  """
  steps, rates = series(rows, 'train/examples_per_second')
  total, last = 0.0, 0
  for step, rate in zip(steps, rates, strict=True):
    if rate > 0:
      total += (step - last) * batch_size / rate
    last = step
  return total


def summary(examples: Examples, step: int) -> str:
  """What the model can do, in a sentence or two."""
  after = f'After {step:,} steps' if step else 'Before training'
  if not len(examples):
    return f'{after}. No held-out data were given.'
  if examples.predictions is None:
    return (
      f'{after}, seen through {len(examples):,} held-out examples without '
      'labels.'
    )
  ranks = [prediction.rank for prediction in examples.predictions]
  near = sum(rank is not None for rank in ranks)
  return (
    f'{after}, the model gives {ranks.count(0):,} of {len(examples):,} '
    f'held-out pictures their right name, chosen among {examples.labels:,}. '
    f'For {near:,} of them, the right name is one of its first five.'
  )


def setting(config: Mapping[str, Any], name: str) -> Any:
  """The value of a dotted name; None where it is not there."""
  value: Any = config
  for part in name.split('.'):
    value = value.get(part) if isinstance(value, Mapping) else None
  return value


def main_settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Names and values of `SETTINGS` that the config has."""
  found = []
  for name in SETTINGS:
    value = setting(config, name)
    if value not in (None, '', [], ()):
      if isinstance(value, list | tuple):
        value = ', '.join(map(str, value))
      found.append((name, f'{value:,}' if type(value) is int else str(value)))
  return found


def commands(
  workdir: str, spec: str, command: str | None, labelled: bool
) -> list[tuple[str, str]]:
  """What each command does, and the command."""
  model = f'--model={shlex.quote(workdir)}'
  found = []
  if command:
    found.append(('Train the model again', command))
  if spec:
    task = 'zero_shot' if labelled else 'retrieval'
    found.append(
      (
        'Measure the model again',
        f'clip-jax eval {model} --task={task} --data={shlex.quote(spec)}',
      )
    )
  found.append(
    (
      'Ask it about a picture of your own',
      f'clip-jax classify {model} --labels="cat face,red apple" FILE.png',
    )
  )
  return found
