"""Says where a run hangs; it never ends one."""

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
  """A context manager around a training loop; a thread of its own watches.

  The loop calls `beat` when a step is done, and names what it waits for with
  `doing`. Where no beat comes for `seconds`, a line on stderr says what the
  thread that entered does, and its stack; again at twice the time, and so on.
  """

  def __init__(self, seconds: float | int, stream: io.TextIOBase | None = None):
    """
    Args:
      seconds: without a step before it speaks; 0: it never does.
      stream: stderr, unless given.
    """
    self._seconds = seconds
    self._stream = stream
    self._doing = 'between two steps'
    self._beaten = time.monotonic()
    self._ended = threading.Event()
    self._watched = threading.get_ident()

  def __enter__(self) -> 'Watchdog':
    self._watched = threading.get_ident()
    self.beat()
    if self._seconds > 0:
      threading.Thread(target=self._watch, name='watchdog', daemon=True).start()
    return self

  def __exit__(self, *exception: object) -> None:
    self._ended.set()

  def beat(self) -> None:
    """A step is done."""
    self._beaten = time.monotonic()

  @contextlib.contextmanager
  def doing(self, what: str) -> Iterator[None]:
    """What the loop does, for as long as the block lasts."""
    before, self._doing = self._doing, what
    try:
      yield
    finally:
      self._doing = before

  def _watch(self) -> None:
    beaten, patience = self._beaten, self._seconds
    while not self._ended.wait(self._seconds / 10):
      if self._beaten != beaten:
        beaten, patience = self._beaten, self._seconds
      silent = time.monotonic() - beaten
      if silent >= patience:
        self._report(silent)
        patience *= 2

  def _report(self, silent: float) -> None:
    frame = sys._current_frames().get(self._watched)
    stack = traceback.extract_stack(frame)[-_FRAMES:] if frame else []
    where = ' > '.join(
      f'{f.name} ({os.path.basename(f.filename)}:{f.lineno})' for f in stack
    )
    print(
      f'warning: no step for {silent:.0f} s: {self._doing}; at {where}',
      file=self._stream or sys.stderr,
      flush=True,
    )
