"""How a call is timed, and on what: the parts that all figures share."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

Figures = dict[str, Any]

WARM_UP = 2  # calls that are not counted


def median_seconds(
  call: Callable[[], Any],
  calls: int,
  warm_up: bool = True,
  patience: float = math.inf,
) -> float:
  """The median duration of a call; the first ones are not counted.

  Args:
    calls: that are measured.
    warm_up: whether two more come first.
    patience: seconds. Once they have passed, what was measured is enough; a
      first call that took as long is the measurement.
  """
  seconds = []
  began = time.perf_counter()
  skipped = WARM_UP if warm_up else 0
  for _ in range(skipped + calls):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
    if time.perf_counter() - began > patience:
      break
  return statistics.median(seconds[skipped:] or seconds[-1:])


def free_bytes() -> float:
  """Memory that is free for this process's devices, all together."""
  device = jax.local_devices()[0]
  known = device.memory_stats() or {}
  if 'bytes_limit' in known:
    free = known['bytes_limit'] - known.get('bytes_in_use', 0)
    return free * jax.local_device_count()
  try:
    lines = Path('/proc/meminfo').read_text('ascii').splitlines()
  except OSError:  # not Linux
    return math.inf
  sizes = dict(line.split(':') for line in lines)
  return 1024 * int(sizes['MemAvailable'].removesuffix('kB'))


def device_facts() -> Figures:
  """What the figures were measured on."""
  devices: Sequence[jax.Device] = jax.devices()
  return {'device_kind': devices[0].device_kind, 'devices': len(devices)}
