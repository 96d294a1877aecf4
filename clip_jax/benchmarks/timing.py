"""Times calls, and describes the devices, for all benchmarks."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.data.pipeline import PREFETCH

Figures = dict[str, Any]

WARM_UP = 2  # calls that are not counted
# Batches that were made while the step compiled are not counted.
WARM_UP_STEPS = PREFETCH + 2
_SIDE, _PRODUCTS = 1024, 16


def median_seconds(
  call: Callable[[], Any],
  calls: int,
  warm_up: bool = True,
  max_seconds: float = math.inf,
) -> float:
  """Returns the median duration of a call; the first ones are not counted.

  Args:
    calls: the number of calls that are measured.
    warm_up: whether two more come first.
    max_seconds: no call starts after this time; where the warm-up alone takes
      longer, its last call is the measurement.
  """
  seconds = []
  began = time.perf_counter()
  skipped = WARM_UP if warm_up else 0
  for _ in range(skipped + calls):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
    if time.perf_counter() - began > max_seconds:
      break
  return statistics.median(seconds[skipped:] or seconds[-1:])


def product_rate(mesh: Mesh, dtype: str) -> float | None:
  """Returns the FLOP/s of a plain matrix product on a CPU's devices together.

  It is the best of some products of 1,024 x 1,024 on each: what is reached on
  this machine now, to which other rates are compared. Those of accelerators are
  compared to the peak of their kind instead (MFU), and there it is None.
  """
  if mesh.devices.flat[0].platform != 'cpu':
    return None
  count = mesh.devices.size
  rows = NamedSharding(mesh, P(mesh.axis_names))
  matrices = jax.device_put(jnp.ones((count, _SIDE, _SIDE), dtype), rows)
  multiply = jax.jit(lambda x: x @ x, in_shardings=rows, out_shardings=rows)
  seconds = []
  for _ in range(WARM_UP + _PRODUCTS):
    start = time.perf_counter()
    jax.block_until_ready(multiply(matrices))
    seconds.append(time.perf_counter() - start)
  return 2 * count * _SIDE**3 / min(seconds)


def planned_bytes(compiled: jax.stages.Compiled) -> int:
  """Returns what the compiler plans to hold on one device at once."""
  memory: Any = compiled.memory_analysis()
  return int(
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )


def free_bytes() -> float:
  """Returns the memory that is free for this process's devices together."""
  device = jax.local_devices()[0]
  known = device.memory_stats() or {}
  if 'bytes_limit' in known:
    free = known['bytes_limit'] - known.get('bytes_in_use', 0)
    return float(free * jax.local_device_count())
  try:
    lines = Path('/proc/meminfo').read_text('ascii').splitlines()
  except OSError:  # not Linux
    return math.inf
  sizes = dict(line.split(':') for line in lines)
  return 1024.0 * int(sizes['MemAvailable'].removesuffix('kB'))


def device_facts() -> Figures:
  """Returns what the figures were measured on."""
  devices: Sequence[jax.Device] = jax.devices()
  return {'device_kind': devices[0].device_kind, 'devices': len(devices)}
