"""Shows the progress of long work on stderr.

A bar on a terminal; plain lines where the output goes to a file or a pipe.
"""

import datetime
import io
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, SupportsFloat, runtime_checkable

from tqdm import tqdm


@runtime_checkable
class Progress(Protocol):
  """Passes items on and shows how far they are: see `show_progress`."""

  def __call__(
    self,
    items: Iterable[Any],
    total: int,
    unit: str,
    /,
    *,
    done: int = 0,
    size: Callable[[Any], int] = lambda item: 1,
  ) -> Iterable[Any]:
    """Returns the same items.

    Args:
      total: how many there will be, with those that were done before.
      unit: what they are: 'images'.
      done: how many were done before, by a process that was stopped.
      size: how many an item counts for.
    """
    ...


def no_progress(
  items: Iterable[Any], total: int, unit: str, /, **options: Any
) -> Iterable[Any]:
  """Returns the items: a `Progress` that shows nothing."""
  del total, unit, options
  return items


def show_progress(
  items: Iterable[Any],
  total: int,
  unit: str,
  /,
  *,
  done: int = 0,
  size: Callable[[Any], int] = lambda item: 1,
) -> Iterator[Any]:
  """Shows on stderr how far an iteration is, with the arguments of `Progress`.

  On a terminal it is a bar; elsewhere a line every ten seconds, so that short
  work says nothing.
  """
  if sys.stderr.isatty():
    # leave=False: the bar makes way for the result.
    with tqdm(total=total, unit=f' {unit}', initial=done, leave=False) as bar:
      for item in items:
        yield item
        bar.update(size(item))
    return
  started = shown = time.monotonic()
  count = 0
  for item in items:
    now = time.monotonic()
    if now - shown > 10:
      shown = now
      rate = count / (now - started)
      print(_line(done + count, total, unit, rate), file=sys.stderr)
    yield item
    count += size(item)


def _line(done: int, total: int, unit: str, rate: float) -> str:
  position = f'{done:,} of {total:,} {unit}'
  if not rate:
    return position
  left = datetime.timedelta(seconds=round((total - done) / rate))
  return f'{position}, {rate:,.1f} a second, {left} left'


class TrainingProgress:
  """Shows how far a training run is; a context manager around its loop.

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

  def __enter__(self) -> 'TrainingProgress':
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
    """Shows that `step` updates are done."""
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
      position = f'step {step:,}/{self._total:,}'
      print('  '.join([position, *words]), file=self._stream, flush=True)
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
  """Returns a length of time in its two largest units: '48 s', '1 min 40 s'."""
  seconds = round(seconds)
  units = (('d', 86_400), ('h', 3_600), ('min', 60), ('s', 1))
  for (unit, size), (lower, lower_size) in itertools.pairwise(units):
    if seconds >= size:
      rest = seconds % size // lower_size
      whole = f'{seconds // size} {unit}'
      return f'{whole} {rest} {lower}' if rest else whole
  return f'{seconds} s'


def speed(rate: float | int) -> str:
  """Returns a rate with three digits or more: '9.41', '82.4', '12,300'."""
  return f'{rate:,.0f}' if rate >= 100 else f'{rate:.3g}'


def byte_count(count: int) -> str:
  """Returns a number of bytes as people say it: '7.4 MB', '1,203.0 GB'."""
  for unit, size in (('GB', 10**9), ('MB', 10**6), ('kB', 10**3)):
    if count >= size:
      return f'{count / size:,.1f} {unit}'
  return f'{count} bytes'
