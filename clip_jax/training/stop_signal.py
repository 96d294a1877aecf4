"""Turns SIGTERM and Ctrl-C into a question that the loop asks every step."""

import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopSignal:
  """A context manager that records a request to stop the run.

  In a run of one process, a second signal has its usual effect, for those who
  cannot wait. In a run of several processes any may be signalled: JAX tells the
  others, and they agree on a step that none of them has passed.
  """

  def __init__(self) -> None:
    self._signal: int | None = None
    self._before: dict[int, object] = {}

  def __enter__(self) -> 'StopSignal':
    if threading.current_thread() is threading.main_thread():
      if jax.process_count() == 1:
        handlers = {signal.SIGTERM: self._record, signal.SIGINT: self._record}
      else:  # JAX handles SIGTERM
        handlers = {signal.SIGINT: self._pass_on}
      for number, handler in handlers.items():
        self._before[number] = signal.signal(number, handler)
    return self

  def __exit__(self, *exception: object) -> None:
    self._restore()

  def requested(self, step: int) -> bool:
    """Returns whether the run is to stop after `step`; call it at every step.

    All processes get the same answer.
    """
    if jax.process_count() > 1:
      if multihost_utils.reached_preemption_sync_point(step):
        self._signal = self._signal or signal.SIGTERM
        return True
      return False
    return self._signal is not None

  @property
  def name(self) -> str:
    """The name of the signal that stopped the run, such as 'SIGTERM'."""
    return signal.Signals(self._signal).name if self._signal else ''

  def _record(self, number: int, frame: FrameType | None) -> None:
    del frame
    self._signal = number
    self._restore()

  def _pass_on(self, number: int, frame: FrameType | None) -> None:
    self._record(number, frame)
    os.kill(os.getpid(), signal.SIGTERM)

  def _restore(self) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
    self._before = {}
