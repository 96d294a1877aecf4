"""Batches on their way to the devices, steps under way, and their clock."""

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from clip_jax.parallel.mesh import batch_sharding
from clip_jax.training.watchdog import Watchdog

# Steps that the host may be ahead of the devices: enough to hide its own work,
# few enough that memory and the clock stay honest.
_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Finished:
  """A step that the devices have done.

  Attributes:
    step: updates done with it.
    metrics: its scalars.
    numbers: what is logged of it, where that was asked for: its scalars, and
      the speed since the last step that was logged.
  """

  step: int
  metrics: Mapping[str, float]
  numbers: dict[str, float] | None


class _InFlight(NamedTuple):
  """A step that runs; what is logged of its speed, if it is logged."""

  step: int
  metrics: Mapping[str, jax.Array]
  speed: dict[str, float] | None


class Feed:
  """Keeps the devices busy: the next batch is on its way while a step runs,
  and nobody waits for a step's scalars before a later step is launched.

  For each step the loop calls `next`, launches it, and hands its scalars to
  `launched`; once the devices have done it, `report` is called with it.
  """

  def __init__(
    self,
    batches: Iterator[Mapping[str, np.ndarray]],
    mesh: Mesh,
    batch_size: int,
    report: Callable[[Finished], None],
    watchdog: Watchdog | None = None,
    source: str = 'input',
  ):
    """
    Args:
      batches: this process's share of each global batch.
      mesh: the first axis is split over its batch axes.
      batch_size: pairs, all processes together.
      report: is given each step that the devices have done, in order.
      watchdog: is told what is waited for.
      source: what the batches come from, for the watchdog's words.
    """
    self._batches = batches
    self._sharding = batch_sharding(mesh)
    self._batch_size = batch_size
    self._report = report
    self._watchdog = watchdog or Watchdog(0)
    self._source = source
    self._ready: dict[str, jax.Array] | None = None
    self._in_flight: deque[_InFlight] = deque()
    self._waited = 0.0
    self._counted = 0
    self._since = time.perf_counter()

  def next(self) -> dict[str, jax.Array]:
    """The next global batch, on its way to the devices."""
    while len(self._in_flight) >= _AHEAD:
      self._finish()
    batch, self._ready = self._ready or self._fetch(), None
    if batch is None:
      raise StopIteration
    return batch

  def launched(
    self, step: int, metrics: Mapping[str, jax.Array], *, log: bool = False
  ) -> None:
    """A step runs; `metrics` are its scalars, ready when it ends.

    Args:
      step: updates done with it.
      log: take the time since the last step that was logged.
    """
    for scalar in metrics.values():
      scalar.copy_to_host_async()
    self._counted += 1
    speed = self._speed() if log else None
    self._in_flight.append(_InFlight(step, metrics, speed))
    self._ready = self._fetch()

  def drain(self) -> None:
    """Waits until all that was launched is done."""
    while self._in_flight:
      self._finish()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Time that is not training's, such as an evaluation."""
    self.drain()
    began = time.perf_counter()
    yield
    self._since += time.perf_counter() - began

  def _fetch(self) -> dict[str, jax.Array] | None:
    """A batch that is sent to the devices now; None after the last."""
    asked = time.perf_counter()
    with self._watchdog.doing(f'waiting for {self._source}'):
      batch = next(self._batches, None)
    self._waited += time.perf_counter() - asked
    if batch is None:
      return None
    return {
      name: jax.make_array_from_process_local_data(
        self._sharding, array, (self._batch_size, *array.shape[1:])
      )
      for name, array in batch.items()
    }

  def _finish(self) -> None:
    """Waits for the oldest step under way."""
    step, scalars, speed = self._in_flight.popleft()
    with self._watchdog.doing(f'waiting for the devices at step {step:,}'):
      metrics = {name: float(x) for name, x in scalars.items()}
    self._watchdog.beat()
    numbers = None
    if speed is not None:
      numbers = {f'train/{name}': value for name, value in metrics.items()}
      numbers |= speed
    self._report(Finished(step, metrics, numbers))

  def _speed(self) -> dict[str, float]:
    """Of the steps since the last call; each is launched as another ends."""
    now = time.perf_counter()
    seconds = now - self._since
    speed = {
      'train/examples_per_second': self._counted * self._batch_size / seconds,
      'train/input_wait_fraction': min(self._waited / seconds, 1.0),
    }
    self._since, self._counted, self._waited = now, 0, 0.0
    return speed
