"""Batches on their way to the devices, and the time spent waiting for them."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from clip_jax.parallel.mesh import batch_sharding

# Steps that the host may be ahead of the devices: enough to hide its own work,
# few enough that memory and the clock stay honest.
_AHEAD = 2


class Feed:
  """Puts host batches on the mesh and keeps the times of a training loop.

  The loop calls `next`, launches the step, and hands its scalars to
  `launched`; `numbers` gives the measurements since the last call of it.
  """

  def __init__(self, batches: Iterator[Mapping[str, np.ndarray]], mesh: Mesh):
    """
    Args:
      batches: this process's share of each global batch.
      mesh: the first axis is split over its batch axes.
    """
    self._batches = batches
    self._sharding = batch_sharding(mesh)
    self._in_flight: deque[Mapping[str, jax.Array]] = deque()
    self._reset()

  def next(self) -> dict[str, jax.Array]:
    """The next global batch, on the devices; waits for the host's pipeline."""
    if len(self._in_flight) >= _AHEAD:
      jax.block_until_ready(self._in_flight.popleft())
    asked = time.perf_counter()
    batch = next(self._batches)
    self._waited += time.perf_counter() - asked
    self._examples += len(batch['tokens']) * jax.process_count()
    return {
      name: jax.make_array_from_process_local_data(self._sharding, array)
      for name, array in batch.items()
    }

  def launched(self, metrics: Mapping[str, jax.Array]) -> None:
    """The step of the last batch runs; `metrics` are ready when it ends."""
    self._in_flight.append(metrics)

  def numbers(self) -> dict[str, float]:
    """Waits for the last step; its scalars, and the interval's speed."""
    metrics = jax.device_get(self._in_flight[-1])
    self._in_flight.clear()
    seconds = time.perf_counter() - self._since
    numbers = {f'train/{name}': float(x) for name, x in metrics.items()}
    numbers['train/examples_per_second'] = self._examples / seconds
    numbers['train/input_wait_fraction'] = min(self._waited / seconds, 1.0)
    self._reset()
    return numbers

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Time that is not training's, such as an evaluation."""
    jax.block_until_ready(list(self._in_flight))
    self._in_flight.clear()
    began = time.perf_counter()
    yield
    self._since += time.perf_counter() - began

  def _reset(self) -> None:
    self._since = time.perf_counter()
    self._waited = 0.0
    self._examples = 0
