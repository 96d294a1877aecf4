"""How a call is timed, and on what: the parts that all figures share."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from clip_jax.data.pipeline import PREFETCH

Figures = dict[str, Any]

WARM_UP = 2  # calls that are not counted
# Batches made ahead, while the step compiled, must not flatter the pipeline.
WARM_UP_STEPS = PREFETCH + 2


def median_seconds(
  call: Callable[[], Any], calls: int, warm_up: bool = True
) -> float:
  """The median duration of a call; the first ones are not counted."""
  for _ in range(WARM_UP if warm_up else 0):
    call()
  seconds = []
  for _ in range(calls):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds)


def device_facts() -> Figures:
  """What the figures were measured on."""
  devices: Sequence[jax.Device] = jax.devices()
  return {'device_kind': devices[0].device_kind, 'devices': len(devices)}
