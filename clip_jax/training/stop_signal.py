"""SIGTERM and Ctrl-C as a question that the loop asks between two steps."""

import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopSignal:
  """A context manager that knows once the run was asked to end.

  Alone, a second signal has its usual effect, for those who cannot wait. Of
  several processes any may be asked: JAX tells the others, and they settle on
  a step that none of them has passed.
  """

  def __init__(self) -> None:
    self._asked: int | None = None
    self._before: dict[int, object] = {}

  def __enter__(self) -> 'StopSignal':
    if threading.current_thread() is threading.main_thread():
      if jax.process_count() == 1:
        handlers = {signal.SIGTERM: self._take, signal.SIGINT: self._take}
      else:  # JAX has SIGTERM
        handlers = {signal.SIGINT: self._pass_on}
      for number, handler in handlers.items():
        self._before[number] = signal.signal(number, handler)
    return self

  def __exit__(self, *exception: object) -> None:
    self._restore()

  def at(self, step: int) -> bool:
    """Whether the run ends after `step`; ask at every step.

    All processes get the same answer.
    """
    if jax.process_count() > 1:
      if multihost_utils.reached_preemption_sync_point(step):
        self._asked = self._asked or signal.SIGTERM
        return True
      return False
    return self._asked is not None

  @property
  def name(self) -> str:
    """Of the signal that came, such as 'SIGTERM'."""
    return signal.Signals(self._asked).name if self._asked else ''

  def _take(self, number: int, frame: FrameType | None) -> None:
    del frame
    self._asked = number
    self._restore()

  def _pass_on(self, number: int, frame: FrameType | None) -> None:
    self._take(number, frame)
    os.kill(os.getpid(), signal.SIGTERM)

  def _restore(self) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
    self._before = {}
