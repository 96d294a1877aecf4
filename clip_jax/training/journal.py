"""What a run tells of its steps: numbers on the disk, and words on stderr."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from clip_jax.data.examples import Repeats
from clip_jax.data.pipeline import Batches
from clip_jax.parallel import distributed
from clip_jax.progress import TrainingProgress
from clip_jax.training.config import Config
from clip_jax.training.evaluations import TRAIN
from clip_jax.training.feed import Finished
from clip_jax.training.metrics import MetricsWriter
from clip_jax.training.run import Run
from clip_jax.training.skipped import FILE, SkippedSteps
from clip_jax.training.utilization import model_flops_utilization

# Pairs that repeat another: so many of them, and this share of all, are told.
_MANY_REPEATS = 8
_REPEATED_SHARE = 0.02
_BESIDE = ('_low', '_high', '_chance')  # of a metric
# The others of a task are in metrics.jsonl.
_TOLD = ('loss', 'top1', 'image_to_text_r1', 'text_to_image_r1')


class Journal:
  """A context manager; of several processes, the first one writes."""

  def __init__(
    self,
    run: Run,
    workdir: Path,
    first_step: int,
    batches: Batches,
    latest_checkpoint: Callable[[], int | None] = lambda: None,
  ):
    """
    Args:
      workdir: where the files are; what they tell of later steps goes.
      first_step: updates done before.
      batches: of which it is told what was skipped and what is repeated.
      latest_checkpoint: the step of the newest; None where there is none.
    """
    self._run = run
    self._batches = batches
    self._told_of_repeats = False
    self._open = contextlib.ExitStack()
    self._writer: MetricsWriter | None = None
    self._progress: TrainingProgress | None = None
    path = workdir / FILE if distributed.is_first_process() else None
    self._skipped = SkippedSteps(
      path,
      run.records_of,
      run.config.max_skipped_steps,
      latest_checkpoint,
    )
    if distributed.is_first_process():
      self._writer = self._open.enter_context(MetricsWriter(workdir))
      self._writer.truncate_after(first_step)
      self._progress = self._open.enter_context(
        TrainingProgress(
          run.config.total_steps,
          run.config.data.batch_size,
          start_step=first_step,
        )
      )

  def __enter__(self) -> 'Journal':
    return self

  def __exit__(self, *exception: object) -> None:
    self._open.close()

  def passing(self) -> Iterator[dict[str, np.ndarray]]:
    """The batches, each looked at before it goes on."""
    for batch in self._batches:
      if not self._told_of_repeats and self._progress is not None:
        told = repeats_told(
          self._batches.repeats, self._batches.records, self._run.config
        )
        if told:
          self._progress.log(f'warning: {told}')
          self._told_of_repeats = True
      yield batch

  def launched(self, step: int) -> None:
    """A step is on its way."""
    if self._progress is not None:
      self._progress.update(step)

  def finished(self, done: Finished) -> None:
    """A step is done.

    Raises:
      FailureError: it is one too many that is not finite.
    """
    self._skipped.take(done)
    if done.numbers is None or self._writer is None or self._progress is None:
      return
    numbers = done.numbers | {
      'train/corrupt_records': len(self._batches.corrupt),
      'train/skipped_steps': self._skipped.count,
    }
    del numbers['train/skipped']
    utilization = model_flops_utilization(
      self._run.description.model,
      numbers['train/examples_per_second'],
      jax.devices()[0].device_kind,
      jax.device_count(),
      self._run.config.model.patch_dropout,
    )
    if utilization is not None:
      numbers['train/mfu'] = utilization
    self._writer.write(done.step, numbers)
    self._progress.report(done.step, numbers)

  def evaluated(self, step: int, measured: Mapping[str, float]) -> None:
    """A state was evaluated."""
    if not measured or self._writer is None or self._progress is None:
      return
    self._writer.write(step, measured)
    self._progress.log(f'step {step:,}: {in_words(measured)}')


def repeats_told(repeats: Repeats, records: int, config: Config) -> str:
  """Returns what is wrong with batches that repeat pairs, and what would help.

  Args:
    repeats: of the pairs so far; the first process's.
    records: in `data.train`.
  Returns:
    A line; '' where the share is small, or may be chance.
  """
  if repeats.either < max(_MANY_REPEATS, _REPEATED_SHARE * repeats.pairs):
    return ''
  batch_size = config.data.batch_size
  wholly_in = records < batch_size
  shares = [
    f'{100 * count / repeats.pairs:.3g} % of the pairs {what}'
    for count, what in (
      (repeats.captions, 'have the caption'),
      (repeats.images, 'have the image'),
    )
    if count
  ]
  said = [
    f'{" and ".join(shares)} of another pair of their batch: the loss takes '
    'each for a wrong answer to the other'
  ]
  floor = repeats.floor / repeats.pairs
  if config.objective.name == 'softmax' and floor >= 0.01:
    said[0] += f', and cannot fall below {floor:.2f}'
  if wholly_in:
    said.append(
      f'data.train has {records:,} records, fewer than data.batch_size='
      f'{batch_size:,}, so that a batch has some of them more than once'
    )
  if jax.process_count() > 1:
    said.append(
      f'This is of the first of {jax.process_count():,} processes: whole '
      'batches repeat more'
    )
  helps = []
  if wholly_in:
    helps.append(f'a data.batch_size of at most {records:,}, or more data')
  elif repeats.captions:
    helps.append(f'a data.batch_size below {batch_size:,}')
  if repeats.captions > repeats.images:
    helps.append('captions that tell the images apart')
  if repeats.images and not wholly_in:
    helps.append('data without copies of images')
  return f'{". ".join(said)}. What helps: {"; ".join(helps)}.'


def in_words(metrics: Mapping[str, float]) -> str:
  """Returns the metrics of held-out data, beside training pairs and chance."""
  words = []
  for name, value in metrics.items():
    _, task, metric = name.split('/', 2)
    known = task in ('zero_shot', 'retrieval', 'loss')
    if task.startswith(TRAIN) or metric.endswith(_BESIDE):
      continue
    if known and metric not in _TOLD:
      continue
    beside = {
      'training pairs': metrics.get(f'eval/{TRAIN}{task}/{metric}'),
      'chance': metrics.get(f'{name}_chance'),
    }
    shown = ', '.join(
      f'{what} {number:.4g}'
      for what, number in beside.items()
      if number is not None
    )
    label = 'held-out loss' if task == metric else f'{task}/{metric}'
    words.append(f'{label} {value:.4g}' + (f' ({shown})' if shown else ''))
  return ', '.join(words)
