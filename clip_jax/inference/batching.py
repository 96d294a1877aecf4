"""Runs a compiled function over inputs, in batches of a few fixed sizes.

Threads prepare the next batches while the device computes.
"""

import collections
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from clip_jax.errors import UsageError
from clip_jax.parallel.mesh import batch_shard_count, batch_sharding

Item = TypeVar('Item')
Rows = Any  # an array, or a tuple of arrays, with a row for each item


def check_batch_size(batch_size: int) -> None:
  """Refuses batches of no rows.

  Raises:
    UsageError: it is below 1.
  """
  if batch_size < 1:
    raise UsageError(f'batch_size={batch_size} must be at least 1.')


def padded_size(count: int, batch_size: int, ways: int = 1) -> int:
  """Returns the rows of the batch that `count` inputs travel in.

  A power of two times `ways`, or the whole batch: over any number of calls
  a function is compiled for few sizes.

  Args:
    count: at least 1, at most `batch_size`.
    batch_size: the largest batch asked for; rounded up to a multiple of
      `ways`.
    ways: devices that share the rows.
  """
  largest = -(-batch_size // ways) * ways
  size = ways
  while size < count:
    size *= 2
  return min(size, largest)


def run_in_batches(
  function: Callable[[Any], Any],
  items: Iterable[Item],
  prepare: Callable[[list[Item]], Rows],
  *,
  batch_size: int,
  mesh: Mesh | None = None,
) -> Iterator[Any]:
  """Applies a jitted function to items, a batch at a time, in their order.

  Args:
    function: rows to rows, or to a tree of several; each row of the result
      depends on its own row.
    items: read as they are needed, up to three batches ahead.
    prepare: a few items to an array with a row for each, or for some of them,
      or to several such arrays (a tuple); called by threads.
    batch_size: rows a batch at most.
    mesh: its batch axes share the rows; None, the default device.
  Yields:
    The result of each batch in numpy, without its padding.
  Raises:
    Whatever `items` or `prepare` raise; the threads are done by then.
  """
  ways = 1 if mesh is None else batch_shard_count(mesh)
  threads = min(os.cpu_count() or 1, 32)
  rows_per_call = max(1, min(16, -(-batch_size // threads)))
  stream = iter(items)
  batches = iter(lambda: list(itertools.islice(stream, batch_size)), [])
  waiting: collections.deque[Any] = collections.deque()
  running: collections.deque[tuple[Any, int]] = collections.deque()
  pool = ThreadPoolExecutor(threads, thread_name_prefix='prepare')

  def start(calls):
    parts = [call.result() for call in calls]
    rows = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    count = len(jax.tree.leaves(rows)[0])
    if not count:
      return
    size = padded_size(count, batch_size, ways)

    def pad(array: np.ndarray) -> np.ndarray:
      rest = ((0, 0),) * (array.ndim - 1)
      return np.pad(array, ((0, size - count), *rest))

    running.append((function(to_device(jax.tree.map(pad, rows), mesh)), count))

  def finish():
    result, count = running.popleft()
    return jax.tree.map(lambda rows: rows[:count], jax.device_get(result))

  try:
    for batch in batches:
      waiting.append(
        [
          pool.submit(prepare, batch[i : i + rows_per_call])
          for i in range(0, len(batch), rows_per_call)
        ]
      )
      if len(waiting) > 2:
        start(waiting.popleft())
      if len(running) > 1:
        yield finish()
    while waiting:
      start(waiting.popleft())
      if len(running) > 1:
        yield finish()
    while running:
      yield finish()
  finally:
    pool.shutdown(cancel_futures=True)


def to_device(rows: Rows, mesh: Mesh | None) -> Any:
  """Returns rows on the default device, or split over a mesh's batch axes.

  Every process of a multi-host mesh gives the same rows, all of them.
  """
  if mesh is None:
    return jax.device_put(rows)

  def split(array: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback(
      array.shape, batch_sharding(mesh), lambda index: array[index]
    )

  return jax.tree.map(split, rows)
