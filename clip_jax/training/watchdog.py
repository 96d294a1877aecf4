"""Warns where a run hangs; it never ends the run."""

import contextlib
import io
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator

_FRAMES = 6  # of the stack that are shown, the innermost ones


class Watchdog:
  """A context manager whose thread watches over a training loop.

  The loop calls `step_finished` after each step, and names what it waits for
  with `activity`. After `seconds` without a step, a line on stderr says what
  the loop's thread does, and its stack; again at twice the time, and so on.
  """

  def __init__(self, seconds: float | int, stream: io.TextIOBase | None = None):
    """Starts nothing yet.

    Args:
      seconds: without a step before it warns; 0: it never does.
      stream: stderr, unless given.
    """
    self._seconds = seconds
    self._stream = stream
    self._activity = 'between two steps'
    self._last_step = time.monotonic()
    self._ended = threading.Event()
    self._thread = threading.get_ident()

  def __enter__(self) -> 'Watchdog':
    self._thread = threading.get_ident()
    self.step_finished()
    if self._seconds > 0:
      threading.Thread(target=self._watch, name='watchdog', daemon=True).start()
    return self

  def __exit__(self, *exception: object) -> None:
    self._ended.set()

  def step_finished(self) -> None:
    """Restarts the clock."""
    self._last_step = time.monotonic()

  @contextlib.contextmanager
  def activity(self, name: str) -> Iterator[None]:
    """Names what the loop does in the block."""
    before, self._activity = self._activity, name
    try:
      yield
    finally:
      self._activity = before

  def _watch(self) -> None:
    last_step, patience = self._last_step, self._seconds
    while not self._ended.wait(self._seconds / 10):
      if self._last_step != last_step:
        last_step, patience = self._last_step, self._seconds
      silent = time.monotonic() - last_step
      if silent >= patience:
        self._warn(silent)
        patience *= 2

  def _warn(self, silent: float) -> None:
    frame = sys._current_frames().get(self._thread)
    stack = traceback.extract_stack(frame)[-_FRAMES:] if frame else []
    where = ' > '.join(
      f'{f.name} ({os.path.basename(f.filename)}:{f.lineno})' for f in stack
    )
    print(
      f'warning: no step for {silent:.0f} s: {self._activity}; at {where}',
      file=self._stream or sys.stderr,
      flush=True,
    )
