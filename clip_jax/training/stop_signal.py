"""SIGTERM and Ctrl-C as a question that the loop asks between two steps."""

import signal
import threading
from types import FrameType


class StopSignal:
  """A context manager that is true once the process was asked to end.

  A second signal has its usual effect, for those who cannot wait.
  """

  def __init__(self) -> None:
    self._asked: int | None = None
    self._before: dict[int, object] = {}

  def __enter__(self) -> 'StopSignal':
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._take)
    return self

  def __exit__(self, *exception: object) -> None:
    self._restore()

  def __bool__(self) -> bool:
    return self._asked is not None

  @property
  def name(self) -> str:
    """Of the signal that came, such as 'SIGTERM'."""
    return signal.Signals(self._asked).name if self._asked else ''

  def _take(self, number: int, frame: FrameType | None) -> None:
    del frame
    self._asked = number
    self._restore()

  def _restore(self) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
    self._before = {}
