"""Steps whose loss or gradient was not finite: counted, named, and, where they
do not end, a reason to stop.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from clip_jax.errors import FailureError
from clip_jax.files import append
from clip_jax.training.feed import Finished

FILE = 'bad_steps.jsonl'


class SkippedSteps:
  """Counts the steps that left the parameters as they were.

  Attributes:
    count: since this process started.
  """

  def __init__(
    self,
    path: Path | None,
    records: Callable[[int], Sequence[str]],
    most_in_a_row: int,
    latest_checkpoint: Callable[[], int | None] = lambda: None,
  ):
    """
    Args:
      path: a file that gets a line {"step", "ids"} for each; None: no file.
      records: a step to the ids of its records.
      most_in_a_row: one after another, before the run is given up; 0: never.
      latest_checkpoint: the step of the newest; None where there is none.
    """
    self._path = path
    self._records = records
    self._most = most_in_a_row
    self._latest_checkpoint = latest_checkpoint
    self._in_a_row = 0
    self._last_finite = 0
    self.count = 0

  def take(self, done: Finished) -> None:
    """Counts a step.

    Raises:
      FailureError: it is one too many in a row.
    """
    if not done.metrics['skipped']:
      self._in_a_row = 0
      self._last_finite = done.step
      return
    self.count += 1
    self._in_a_row += 1
    if self._path is not None:
      row = {'step': done.step, 'ids': list(self._records(done.step))}
      append(self._path, f'{json.dumps(row)}\n'.encode())
    if self._in_a_row == self._most:
      raise FailureError(
        f'the loss or the gradient was not finite in {self._most} steps in a '
        f'row, {done.step - self._most + 1:,} to {done.step:,} '
        '(max_skipped_steps): none of them changed the parameters, '
        f'{self._what_is_left()}. {FILE} in the run directory names their '
        'records; look at these, or start with a lower '
        'optimizer.learning_rate in another --workdir.'
      )

  def _what_is_left(self) -> str:
    """Whether there is a checkpoint to go on from.

    One is known to be good where a later step was finite.
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
