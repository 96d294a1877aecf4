"""Keeps the devices busy: batches are sent ahead, and steps run ahead of us."""

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
# few enough to bound memory, and for the measured speed to be true.
_MAX_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class FinishedStep:
  """A step that the devices have finished.

  Attributes:
    step: updates done, this one included.
    metrics: its scalars.
    logged: where logging was asked for, its scalars as `train/NAME`, and the
      speed since the last step that was logged; else None.
  """

  step: int
  metrics: Mapping[str, float]
  logged: dict[str, float] | None


class _RunningStep(NamedTuple):
  """A step that the devices still work on."""

  step: int
  metrics: Mapping[str, jax.Array]
  speed: dict[str, float] | None  # where it is logged


class Prefetcher:
  """Sends the next batch to the devices while a step runs.

  The host does not wait for the scalars of a step before it launches the next
  one. For each step the loop calls `next`, launches the step, and hands its
  scalars to `submit`; `on_finished` is called once the devices are done.
  """

  def __init__(
    self,
    batches: Iterator[Mapping[str, np.ndarray]],
    mesh: Mesh,
    batch_size: int,
    on_finished: Callable[[FinishedStep], None],
    watchdog: Watchdog | None = None,
    input_name: str = 'input',
  ):
    """Fetches nothing yet.

    Args:
      batches: this process's slice of each global batch.
      mesh: the first axis of a batch is split over its batch axes.
      batch_size: pairs, all processes together.
      on_finished: called with each finished step, in order.
      watchdog: told what the host waits for.
      input_name: what the batches come from, for the watchdog's warning.
    """
    self._batches = batches
    self._sharding = batch_sharding(mesh)
    self._batch_size = batch_size
    self._on_finished = on_finished
    self._watchdog = watchdog or Watchdog(0)
    self._input_name = input_name
    self._next_batch: dict[str, jax.Array] | None = None
    self._in_flight: deque[_RunningStep] = deque()
    self._waited_seconds = 0.0
    self._steps = 0  # since the last one that was logged
    self._since = time.perf_counter()

  def next(self) -> dict[str, jax.Array]:
    """Returns the next global batch, which is on its way to the devices."""
    while len(self._in_flight) >= _MAX_IN_FLIGHT:
      self._finish_oldest()
    batch, self._next_batch = self._next_batch or self._fetch(), None
    if batch is None:
      raise StopIteration
    return batch

  def submit(
    self, step: int, metrics: Mapping[str, jax.Array], *, log: bool = False
  ) -> None:
    """Registers a launched step, and fetches the next batch.

    Args:
      step: updates done, this one included.
      metrics: its scalars, ready when it ends.
      log: measure the speed since the last step that was logged.
    """
    for scalar in metrics.values():
      scalar.copy_to_host_async()
    self._steps += 1
    speed = self._speed() if log else None
    self._in_flight.append(_RunningStep(step, metrics, speed))
    self._next_batch = self._fetch()

  def drain(self) -> None:
    """Waits until the devices have finished every launched step."""
    while self._in_flight:
      self._finish_oldest()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Drains, and leaves the time of the block out of the measured speed."""
    self.drain()
    start = time.perf_counter()
    yield
    self._since += time.perf_counter() - start

  def _fetch(self) -> dict[str, jax.Array] | None:
    """Sends a batch to the devices; returns None after the last one."""
    start = time.perf_counter()
    with self._watchdog.activity(f'waiting for {self._input_name}'):
      batch = next(self._batches, None)
    self._waited_seconds += time.perf_counter() - start
    if batch is None:
      return None
    return {
      name: jax.make_array_from_process_local_data(
        self._sharding, array, (self._batch_size, *array.shape[1:])
      )
      for name, array in batch.items()
    }

  def _finish_oldest(self) -> None:
    """Waits for the oldest running step, and reports it."""
    step, scalars, speed = self._in_flight.popleft()
    with self._watchdog.activity(f'waiting for the devices at step {step:,}'):
      metrics = {name: float(x) for name, x in scalars.items()}
    self._watchdog.step_finished()
    logged = None
    if speed is not None:
      logged = {f'train/{name}': value for name, value in metrics.items()}
      logged |= speed
    self._on_finished(FinishedStep(step, metrics, logged))

  def _speed(self) -> dict[str, float]:
    """Returns the speed since the last call; steps start as others end."""
    now = time.perf_counter()
    seconds = now - self._since
    speed = {
      'train/examples_per_second': self._steps * self._batch_size / seconds,
      'train/input_wait_fraction': min(self._waited_seconds / seconds, 1.0),
    }
    self._since, self._steps, self._waited_seconds = now, 0, 0.0
    return speed
