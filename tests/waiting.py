"""Waiting for events, however slow the machine is."""

import time
from collections.abc import Callable

PATIENCE = 300  # seconds: what takes longer will not happen


def until(reached: Callable[[], bool]) -> None:
  """Returns once `reached()` is true."""
  deadline = time.monotonic() + PATIENCE
  while not reached():
    assert time.monotonic() < deadline
    time.sleep(0.01)


class Clock:
  """A clock that goes on where it is told to, in the place of `time`'s."""

  def __init__(self) -> None:
    self.now = 0.0
    self.asked = 0

  def __call__(self) -> float:
    self.asked += 1
    return self.now

  def pass_by(self, seconds: float) -> None:
    """Lets time pass."""
    self.now += seconds
