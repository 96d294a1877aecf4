"""Records a run as it trains: metrics, skipped steps, progress, warnings."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from clip_jax.data.pipeline import Batches
from clip_jax.errors import FailureError
from clip_jax.files import append
from clip_jax.models.counting import model_flops_utilization
from clip_jax.parallel import distributed
from clip_jax.progress import TrainingProgress
from clip_jax.training.config import first_taught_step
from clip_jax.training.metrics import TRAIN_PREFIX
from clip_jax.training.prefetch import FinishedStep
from clip_jax.training.run import Run, caption_rule
from clip_jax.training.run_summary import describe_repeats
from clip_jax.training.writers import Writer

_SKIPPED_FILE = 'bad_steps.jsonl'
# Suffixes of numbers that describe another metric.
_SUFFIXES = ('_low', '_high', '_chance')
# The metrics of these tasks that are printed; all are in metrics.jsonl.
_TERSE_TASKS = ('zero_shot', 'retrieval', 'captioning', 'loss')
_PRINTED = (
  *('loss', 'top1', 'exact_match'),
  *('image_to_text_r1', 'text_to_image_r1'),
)


class RunMonitor:
  """A context manager around the steps of a run.

  All processes count skipped steps, so that all stop together; the first one
  writes and prints.
  """

  def __init__(
    self,
    run: Run,
    workdir: Path,
    first_step: int,
    batches: Batches,
    writers: Sequence[Callable[[Path], Writer]] = (),
    latest_checkpoint: Callable[[], int | None] = lambda: None,
  ):
    """Opens the writers, which forget what they wrote of later steps.

    Args:
      workdir: the folder of the run's files.
      first_step: updates done before.
      batches: of the run; asked for skipped and repeated records.
      writers: see `writers.Outputs`.
      latest_checkpoint: returns the newest one's step, or None.
    """
    self._run = run
    self._batches = batches
    self._warned_of_repeats = False
    self._context = contextlib.ExitStack()
    rule = caption_rule(run.config)
    self._has_filter = rule is not None and rule.filters
    program = run.program
    partition = program.optimizer.partition(program.state.params)
    self._without_gradient = partition.without_gradient()
    self._writers: list[Writer] = []
    self._progress: TrainingProgress | None = None
    self._skipped = SkippedSteps(
      workdir / _SKIPPED_FILE if distributed.is_first_process() else None,
      run.record_ids,
      run.config.max_skipped_steps,
      latest_checkpoint,
    )
    if distributed.is_first_process():
      for open_writer in writers:
        writer = open_writer(workdir)
        self._context.callback(writer.close)
        writer.truncate_after(first_step)
        self._writers.append(writer)
      self._progress = self._context.enter_context(
        TrainingProgress(
          run.config.total_steps,
          run.config.data.batch_size,
          start_step=first_step,
        )
      )

  def __enter__(self) -> 'RunMonitor':
    return self

  def __exit__(self, *exception: object) -> None:
    if self._progress is not None and self._batches.filtered:
      passes = ' that passes data.filter' if self._has_filter else ''
      self._progress.log(
        f'{self._batches.filtered:,} times, the next record was taken for one '
        f'without a caption{passes}'
      )
    self._context.close()

  def checked_batches(self) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches, and warns once if they repeat pairs."""
    for batch in self._batches:
      if not self._warned_of_repeats and self._progress is not None:
        warning = describe_repeats(
          self._batches.repeats, self._batches.records, self._run.config
        )
        if warning:
          self._progress.log(f'warning: {warning}')
          self._warned_of_repeats = True
      yield batch

  def step_launched(self, step: int) -> None:
    """Moves the progress bar."""
    if self._progress is not None:
      self._progress.update(step)

  def step_finished(self, finished: FinishedStep) -> None:
    """Counts a skipped step, and records the numbers of a logged one.

    Raises:
      FailureError: too many steps in a row were skipped.
    """
    self._skipped.count_step(finished)
    if finished.logged is None or self._progress is None:
      return
    numbers = finished.logged | {
      'train/corrupt_records': len(self._batches.corrupt),
      'train/skipped_steps': self._skipped.count,
    }
    if self._has_filter:
      numbers['train/filtered_records'] = self._batches.filtered
    del numbers['train/skipped']
    utilization = model_flops_utilization(
      self._run.description.model,
      numbers['train/examples_per_second'],
      jax.devices()[0].device_kind,
      jax.device_count(),
      self._run.config.model.patch_dropout,
      self._run.config.data.sequence_lengths,
      self._without_gradient,
    )
    begin = first_taught_step(self._run.config)
    # The arithmetic of a teacher's views is not among what is counted.
    if utilization is not None and (begin is None or finished.step <= begin):
      numbers['train/mfu'] = utilization
    self._write(finished.step, numbers)
    self._progress.report(finished.step, numbers)

  def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
    """Records the metrics of an evaluation."""
    if metrics and self._progress is not None:
      self._write(step, metrics)
      self._progress.log(f'step {step:,}: {describe_metrics(metrics)}')

  def _write(self, step: int, numbers: Mapping[str, float]) -> None:
    for writer in self._writers:
      writer.write(step, numbers)


class SkippedSteps:
  """Counts the steps that were skipped, whose loss or gradient is not finite.

  Attributes:
    count: skipped steps since this process started.
  """

  def __init__(
    self,
    path: Path | None,
    record_ids: Callable[[int], Sequence[str]],
    max_in_a_row: int,
    latest_checkpoint: Callable[[], int | None] = lambda: None,
  ):
    """Counts from zero.

    Args:
      path: a file that gets a line {"step", "ids"} for each; None: no file.
      record_ids: returns the ids of the records of a step.
      max_in_a_row: skipped steps that end the run; 0: never.
      latest_checkpoint: returns the newest one's step, or None.
    """
    self._path = path
    self._record_ids = record_ids
    self._max_in_a_row = max_in_a_row
    self._latest_checkpoint = latest_checkpoint
    self._in_a_row = 0
    self._last_finite = 0
    self.count = 0

  def count_step(self, finished: FinishedStep) -> None:
    """Counts a finished step.

    Raises:
      FailureError: too many in a row were skipped.
    """
    step = finished.step
    if not finished.metrics['skipped']:
      self._in_a_row = 0
      self._last_finite = step
      return
    self.count += 1
    self._in_a_row += 1
    if self._path is not None:
      row = {'step': step, 'ids': list(self._record_ids(step))}
      append(self._path, f'{json.dumps(row)}\n'.encode())
    if self._in_a_row == self._max_in_a_row:
      raise FailureError(
        f'the loss or the gradient was not finite in {self._in_a_row} steps in '
        f'a row, {step - self._in_a_row + 1:,} to {step:,} '
        '(max_skipped_steps): none of them changed the parameters, '
        f'{self._describe_checkpoint()}. {_SKIPPED_FILE} in the run directory '
        'names their records; look at these, or start with a lower '
        'optimizer.learning_rate in another --workdir.'
      )

  def _describe_checkpoint(self) -> str:
    """Tells whether the newest checkpoint is from before the trouble.

    It is known to be good if a later step was finite.
    """
    step = self._latest_checkpoint()
    if step is None:
      return 'and there is no checkpoint yet'
    if step < self._last_finite:
      return (
        f'and the checkpoint of step {step:,} is good (initialize_from can '
        'start from it)'
      )
    return (
      f'and the checkpoint of step {step:,} has the very parameters with which '
      'they failed'
    )


def describe_metrics(metrics: Mapping[str, float]) -> str:
  """Formats held-out metrics, each beside that of training pairs and chance.

  Args:
    metrics: under their names in metrics.jsonl.
  """
  words = []
  for name, value in metrics.items():
    _, task, metric = name.split('/', 2)
    if task.startswith(TRAIN_PREFIX) or metric.endswith(_SUFFIXES):
      continue
    if task in _TERSE_TASKS and metric not in _PRINTED:
      continue
    references = {
      'training pairs': metrics.get(f'eval/{TRAIN_PREFIX}{task}/{metric}'),
      'chance': metrics.get(f'{name}_chance'),
    }
    shown = ', '.join(
      f'{reference} {number:.4g}'
      for reference, number in references.items()
      if number is not None
    )
    label = 'held-out loss' if task == metric else f'{task}/{metric}'
    words.append(f'{label} {value:.4g}' + (f' ({shown})' if shown else ''))
  return ', '.join(words)
