"""What a run tells of its steps: numbers on the disk, and words on stderr."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import jax

from clip_jax.parallel import distributed
from clip_jax.training.feed import Finished
from clip_jax.training.metrics import MetricsWriter
from clip_jax.training.progress import Progress
from clip_jax.training.run import Run
from clip_jax.training.skipped import FILE, SkippedSteps
from clip_jax.training.utilization import model_flops_utilization


class Journal:
  """A context manager; of several processes, the first one writes."""

  def __init__(
    self,
    run: Run,
    workdir: Path,
    first_step: int,
    corrupt: Mapping[str, str],
  ):
    """
    Args:
      workdir: where the files are; what they tell of later steps goes.
      first_step: updates done before.
      corrupt: the records that were skipped so far, as they become more.
    """
    self._run = run
    self._corrupt = corrupt
    self._open = contextlib.ExitStack()
    self._writer: MetricsWriter | None = None
    self._progress: Progress | None = None
    path = workdir / FILE if distributed.is_first() else None
    self._skipped = SkippedSteps(
      path, run.records_of, run.config.max_skipped_steps
    )
    if distributed.is_first():
      self._writer = self._open.enter_context(MetricsWriter(workdir))
      self._writer.truncate_after(first_step)
      self._progress = self._open.enter_context(
        Progress(
          run.config.total_steps,
          run.config.data.batch_size,
          start_step=first_step,
        )
      )

  def __enter__(self) -> 'Journal':
    return self

  def __exit__(self, *exception: object) -> None:
    self._open.close()

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
      'train/corrupt_records': len(self._corrupt),
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
    self._progress.log(f'step {step:,}: {_in_words(measured)}')


def _in_words(metrics: Mapping[str, float]) -> str:
  return ', '.join(
    f'{name.removeprefix("eval/")} {value:.4g}'
    for name, value in metrics.items()
  )
