"""--profile=STEP:COUNT: traces what devices and host do in some steps."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import jax

from clip_jax.errors import UsageError, print_warnings
from clip_jax.parallel import distributed


class Profile:
  """A context manager that traces `count` steps with jax.profiler.

  The first of them is step `first`; `how_to_open` says what reads the trace.
  """

  def __init__(self, first: int, count: int):
    self.first = first
    self.count = count
    self._folder: Path | None = None  # of a trace that is being made

  @classmethod
  def parse(cls, text: str) -> 'Profile':
    """Parses STEP:COUNT; '' traces nothing.

    Raises:
      UsageError: the text is neither.
    """
    if not text:
      return cls(0, 0)
    match = re.fullmatch(r'(\d+):(\d+)', text)
    if match is None or not int(match[1]) or not int(match[2]):
      raise UsageError(
        f'--profile={text}: expected STEP:COUNT, two numbers of at least 1, '
        'such as 20:3 for steps 20, 21 and 22.'
      )
    return cls(int(match[1]), int(match[2]))

  def check(self, total_steps: int) -> None:
    """Refuses a profile of steps that the run does not have.

    Raises:
      UsageError: it begins after the last step.
    """
    if self.first > total_steps:
      raise UsageError(
        f'--profile={self.first}:{self.count} begins after the last step, '
        f'total_steps={total_steps}.'
      )

  def warn_if_passed(self, step: int) -> None:
    """Warns on stderr if a call that goes on after `step` traces nothing.

    It is no error: the same command is to resume a run.
    """
    if self.count and self.first <= step:
      line = (
        f'--profile={self.first}:{self.count} traces nothing, as the run goes '
        f'on after step {step:,}: name a later step.'
      )
      print_warnings([line])

  def __enter__(self) -> 'Profile':
    return self

  def __exit__(self, *exception: object) -> None:
    if self._folder is not None:  # the run ends before the last of its steps
      self._stop(self._folder)

  def before_step(
    self, step: int, workdir: Path, drain: Callable[[], None]
  ) -> None:
    """Starts or ends the trace if that is due before `step`.

    Args:
      workdir: the trace goes to `profile/` in it.
      drain: waits for the steps that still run.
    """
    if step == self.first:
      drain()
      self._folder = workdir / 'profile'
      jax.profiler.start_trace(str(self._folder))
    elif self._folder is not None and step == self.first + self.count:
      drain()
      self._stop(self._folder)

  def _stop(self, folder: Path) -> None:
    jax.profiler.stop_trace()
    self._folder = None
    if distributed.is_first_process():
      print(f'profiled to {folder}\n{how_to_open(folder)}', file=sys.stderr)


def how_to_open(folder: Path | str) -> str:
  """Returns a line that says how to view the traces of a folder."""
  return (
    f'to see it: pip install xprof; xprof --logdir={folder} --port=6006; then '
    'open http://localhost:6006 (or drop its .trace.json.gz on '
    'https://ui.perfetto.dev)'
  )
