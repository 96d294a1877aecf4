"""Arranges the devices in a mesh, and splits batches over its axes."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.errors import UsageError

# The axes, from the slowest network to the fastest: the data centre's network
# connects slices, and links between chips connect the devices of a slice.
AXES = ('slice', 'data', 'fsdp', 'tensor')
BATCH_AXES = ('slice', 'data', 'fsdp')  # pairs are split over all three


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  slices: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns a mesh of all devices, with axes (slice, data, fsdp, tensor).

  Args:
    data: copies of the model in a slice, each with its rows of the batch.
    fsdp: devices that share one copy's parameters and split its batch.
    tensor: devices that split heads, MLP columns and the vocabulary.
      One of the three may be -1, which takes all devices that remain.
    slices: groups of devices with a slower network between them: TPU slices,
      or hosts. Only gradients and the loss cross it.
    devices: default, all of `jax.devices()`.
  Raises:
    UsageError: the sizes do not multiply to the number of devices, or the
      devices are in another number of slices.
  """
  devices = jax.devices() if devices is None else devices
  _check_slices(slices, devices)
  sizes = {'data': data, 'fsdp': fsdp, 'tensor': tensor}
  count = len(devices) // slices
  free = [axis for axis, size in sizes.items() if size == -1]
  fixed = math.prod(size for size in sizes.values() if size != -1)
  requested = ', '.join(f'mesh.{axis}={size}' for axis, size in sizes.items())
  if len(free) > 1 or any(s < 1 and s != -1 for s in sizes.values()):
    raise UsageError(f'{requested}: sizes of at least 1, and -1 at most once.')
  if count % fixed or (not free and fixed != count):
    each = f' in each of {slices} slices' if slices > 1 else ''
    raise UsageError(
      f'{requested} does not fit {count} devices{each}: the sizes must '
      f'multiply to {count} (-1 stands for the rest).'
    )
  for axis in free:
    sizes[axis] = count // fixed
  grid = _device_grid((slices, *sizes.values()), devices)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _check_slices(slices: int, devices: Sequence[jax.Device]) -> None:
  if slices < 1 or len(devices) % slices:
    raise UsageError(
      f'mesh.slices={slices} does not divide {len(devices)} devices.'
    )
  actual = len({getattr(device, 'slice_index', 0) for device in devices})
  if devices[0].platform == 'tpu' and actual != slices:
    raise UsageError(
      f'mesh.slices={slices}, but the devices are in {actual}: say '
      f'mesh.slices={actual}.'
    )


def _device_grid(
  shape: tuple[int, ...], devices: Sequence[jax.Device]
) -> np.ndarray:
  """Returns the devices as a grid; on a TPU, neighbours have a direct link.

  Other devices keep their order, in which those of one host are adjacent.
  """
  if devices[0].platform != 'tpu':
    return np.asarray(devices).reshape(shape)
  slices, *inner = shape
  if slices == 1:
    return mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  return mesh_utils.create_hybrid_device_mesh(
    (1, *inner), (slices, 1, 1, 1), devices, allow_split_physical_axes=True
  )


def batch_shard_count(mesh: Mesh) -> int:
  """Returns how many shards the global batch is split into."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns a sharding that splits the first axis over all batch axes."""
  return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns a sharding with a whole copy on every device."""
  return NamedSharding(mesh, P())


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Refuses a global batch that the mesh cannot split evenly.

  Raises:
    UsageError: it is below 1 or not a multiple of the devices that split it.
  """
  shards = batch_shard_count(mesh)
  if batch_size < 1 or batch_size % shards:
    raise UsageError(
      f'data.batch_size={batch_size} does not split over {shards} devices '
      f'(mesh axes {" x ".join(BATCH_AXES)}, {dict(mesh.shape)}): use a '
      f'multiple of {shards}, such as '
      f'{max(round(batch_size / shards), 1) * shards}.'
    )
