"""How far a run is, for the person who watches: a bar on a terminal, plain
lines when the output goes to a file or a pipe.
"""

import io
import itertools
import sys
from collections.abc import Mapping
from typing import SupportsFloat

from tqdm import tqdm


class Progress:
  """A context manager around the training loop; writes to stderr.

  `update` is called at every step and costs microseconds; `report` at the
  steps that are logged; `log` prints a line without tearing the bar.
  """

  def __init__(
    self,
    total_steps: int,
    batch_size: int,
    *,
    start_step: int = 0,
    stream: io.TextIOBase | None = None,
  ):
    """Shows nothing until the first call.

    Args:
      total_steps: of the whole run, counted from 0.
      batch_size: examples a step, all devices together.
      start_step: updates done before, in a resumed run.
      stream: stderr, unless given.
    """
    self._total = total_steps
    self._batch_size = batch_size
    self._start = start_step
    self._stream = sys.stderr if stream is None else stream
    self._bar: tqdm | None = None

  def __enter__(self) -> 'Progress':
    if self._stream.isatty():
      self._bar = tqdm(
        total=self._total,
        initial=self._start,
        file=self._stream,
        desc='training',
        dynamic_ncols=True,
        bar_format='{desc} {percentage:3.0f}% {bar} '
        '{n_fmt}/{total_fmt}{postfix}',
      )
    elif self._start:
      self.log(f'resumes after step {self._start:,} of {self._total:,}')
    return self

  def __exit__(self, *exception: object) -> None:
    if self._bar is not None:
      self._bar.close()
      self._bar = None

  def update(self, step: int) -> None:
    """`step` updates are done."""
    if self._bar is not None:
      self._bar.update(step - self._bar.n)

  def report(self, step: int, numbers: Mapping[str, SupportsFloat]) -> None:
    """Shows the loss, the speed and the time left.

    Args:
      step: updates done.
      numbers: as in metrics.jsonl; `train/loss` and
        `train/examples_per_second` are shown where given.
    """
    words = []
    if 'train/loss' in numbers:
      words.append(f'loss {float(numbers["train/loss"]):.3f}')
    rate = float(numbers.get('train/examples_per_second', 0.0))
    if rate > 0:
      words.append(f'{speed(rate)} images/s')
      if step < self._total:
        left = (self._total - step) * self._batch_size / rate
        words.append(f'{duration(left)} left')
    if self._bar is None:
      place = f'step {step:,}/{self._total:,}'
      print('  '.join([place, *words]), file=self._stream, flush=True)
    else:
      self._bar.set_postfix_str('  '.join(words), refresh=False)
      self._bar.update(step - self._bar.n)
      self._bar.refresh()

  def log(self, message: str) -> None:
    """Prints a line above the bar."""
    if self._bar is None:
      print(message, file=self._stream, flush=True)
    else:
      self._bar.write(message, file=self._stream)


def duration(seconds: float | int) -> str:
  """A length of time in its two largest units: '48 s', '1 min 40 s'."""
  seconds = round(seconds)
  units = (('d', 86_400), ('h', 3_600), ('min', 60), ('s', 1))
  for (unit, size), (lower, lower_size) in itertools.pairwise(units):
    if seconds >= size:
      rest = seconds % size // lower_size
      whole = f'{seconds // size} {unit}'
      return f'{whole} {rest} {lower}' if rest else whole
  return f'{seconds} s'


def speed(rate: float | int) -> str:
  """Examples a second with three digits or more: '9.41', '82.4', '12,300'."""
  return f'{rate:,.0f}' if rate >= 100 else f'{rate:.3g}'
