"""The mesh of devices and what is split over which of its axes."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.errors import UsageError

AXES = ('data', 'fsdp', 'tensor')
BATCH_AXES = ('data', 'fsdp')  # pairs are split over both


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """All devices in a grid of (data, fsdp, tensor).

  Args:
    data: copies of the model, each with its share of the batch.
    fsdp: devices that share one copy's parameters and split its batch.
    tensor: devices that split heads, MLP columns and the vocabulary.
      One of the three may be -1: what the others leave.
    devices: default, all of `jax.devices()`.
  Raises:
    UsageError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = {'data': data, 'fsdp': fsdp, 'tensor': tensor}
  count = len(devices)
  said = ', '.join(f'mesh.{axis}={size}' for axis, size in sizes.items())
  free = [axis for axis, size in sizes.items() if size == -1]
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if len(free) > 1 or any(s < 1 and s != -1 for s in sizes.values()):
    raise UsageError(f'{said}: sizes of at least 1, and -1 at most once.')
  if count % fixed or (not free and fixed != count):
    raise UsageError(
      f'{said} does not fit {count} devices: the sizes must multiply to '
      f'{count} (-1 stands for the rest).'
    )
  for axis in free:
    sizes[axis] = count // fixed
  grid = np.asarray(devices).reshape(tuple(sizes.values()))
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_ways(mesh: Mesh) -> int:
  """How many parts the global batch is split into."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The first axis over all batch axes; the rest whole."""
  return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, P())


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Refuses a global batch that the mesh cannot split evenly.

  Raises:
    UsageError: it is below 1 or not a multiple of the devices that split it.
  """
  ways = batch_ways(mesh)
  if batch_size < 1 or batch_size % ways:
    raise UsageError(
      f'data.batch_size={batch_size} does not split over {ways} devices '
      f'(mesh axes data x fsdp, {dict(mesh.shape)}): use a multiple of {ways}.'
    )
