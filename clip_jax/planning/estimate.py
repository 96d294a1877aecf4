"""Estimates the time of a step: a roofline, one instruction after another.

Each instruction takes as long as its products need on the matrix units or its
bytes from main memory, whichever is longer. Collectives that overlap with other
work run beside all of it; the time of the others is added.

The time of products is estimated twice. The flat estimate has them all at one
fraction of the peak. The estimate by shape has them at a higher fraction of
what fills tiles (`products.py`), so that large products take less time than by
the flat one, and small heads more.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from clip_jax.planning.collectives import Collective
from clip_jax.planning.costs import Operation
from clip_jax.planning.topology import Topology

# The fractions of a data sheet's figures that programs of large products reach.
MATRIX_FRACTION = 0.75
# The fraction of the peak that a product reaches whose tiles are all full: that
# of 8192 x 8192 x 8192 on v5e, as JAX's guide measured it; see README.md.
FULL_TILE_FRACTION = 0.92
HBM_FRACTION = 0.85
NETWORK_FRACTION = 0.8

ASSUMPTIONS = (
  f'products reach {MATRIX_FRACTION:.0%} of the peak; by shape, '
  f'{FULL_TILE_FRACTION:.0%} with full tiles, and less as tiles are empty',
  f'main memory {HBM_FRACTION:.0%} and links {NETWORK_FRACTION:.0%} of theirs',
  'an instruction takes the longer of its arithmetic and its memory traffic',
  'collectives that XLA runs beside other work cost nothing until they last '
  'longer than it; all others are added',
  'input and checkpoints keep no step waiting',
)


@runtime_checkable
class DevicePosition(Protocol):
  """A device that knows where it is; among slices, its `slice_index` too."""

  @property
  def coords(self) -> Sequence[int]:
    """The coordinates in the torus of its slice."""
    ...


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds of one step by what they are spent on, and the step itself.

  Attributes:
    matrix_seconds: the products alone, at `MATRIX_FRACTION`.
    hbm_seconds: main memory alone.
    compute_seconds: the longer of the two, instruction by instruction.
    collective_seconds: all exchanges.
    step_seconds: the whole step.
    matrix_seconds_by_shape, compute_seconds_by_shape, step_seconds_by_shape:
      the same with products at `FULL_TILE_FRACTION` of the tiles they occupy.
  """

  matrix_seconds: float
  hbm_seconds: float
  compute_seconds: float
  collective_seconds: float
  step_seconds: float
  matrix_seconds_by_shape: float
  compute_seconds_by_shape: float
  step_seconds_by_shape: float


def estimate(
  operations: Iterable[Operation],
  exchanges: Iterable[Collective],
  topology: Topology,
  devices: Sequence[DevicePosition],
) -> Estimate:
  """Estimates the time of a step of a compiled program.

  Args:
    operations, exchanges: of the program, for one device.
    topology: where it would run.
    devices: in the order of the mesh, with their coordinates.
  """
  chip = topology.chip
  flat_rate = chip.peak_flops * MATRIX_FRACTION
  tile_rate = chip.peak_flops * FULL_TILE_FRACTION
  matrix = hbm = compute = matrix_by_shape = compute_by_shape = 0.0
  for one in operations:
    memory = one.times * one.hbm_bytes / (chip.hbm_bandwidth * HBM_FRACTION)
    flat = one.times * one.flops / flat_rate
    by_shape = one.times * one.occupied_flops(chip.matrix_tile) / tile_rate
    hbm += memory
    matrix += flat
    compute += max(flat, memory)
    matrix_by_shape += by_shape
    compute_by_shape += max(by_shape, memory)
  overlapped = exposed = 0.0
  for exchange in exchanges:
    seconds = exchange.times * exchange_seconds(exchange, topology, devices)
    if exchange.overlapped:
      overlapped += seconds
    else:
      exposed += seconds
  return Estimate(
    matrix_seconds=matrix,
    hbm_seconds=hbm,
    compute_seconds=compute,
    collective_seconds=overlapped + exposed,
    step_seconds=max(compute, overlapped) + exposed,
    matrix_seconds_by_shape=matrix_by_shape,
    compute_seconds_by_shape=compute_by_shape,
    step_seconds_by_shape=max(compute_by_shape, overlapped) + exposed,
  )


def exchange_seconds(
  exchange: Collective, topology: Topology, devices: Sequence[DevicePosition]
) -> float:
  """Returns the time of one collective, by bandwidth over rings.

  Within a slice, the links of every dimension that the group spans are used,
  both ways where the ends are linked. Between slices, each chip sends its part
  of the group's array over the network.
  """
  members = [devices[position] for position in exchange.group]
  count = len(members)
  if count < 2 or not exchange.bytes:
    return 0.0
  slices = len({getattr(member, 'slice_index', 0) for member in members})
  inside = count // slices
  passes = 2.0 if exchange.op == 'all-reduce' else 1.0
  seconds = 0.0
  if inside > 1:
    rate = NETWORK_FRACTION * _link_rate(members, topology)
    seconds += passes * exchange.bytes * _ring(exchange.op, inside) / rate
  if slices > 1:
    rate = NETWORK_FRACTION * topology.chip.dcn_bandwidth
    part = exchange.bytes / inside
    seconds += passes * part * _ring(exchange.op, slices) / rate
  return seconds


def _ring(op: str, count: int) -> float:
  """Returns the part of the array that a member sends in one pass of a ring."""
  return 1.0 if op == 'collective-permute' else (count - 1) / count


def _link_rate(members: Sequence[DevicePosition], topology: Topology) -> float:
  """Returns the bytes a second that a member can send within its slice."""
  chip = topology.chip
  link = chip.ici_bandwidth / (2 * chip.dimensions)
  links = 0
  for axis, side in enumerate(topology.sides):
    extent = len({member.coords[axis] for member in members})
    if extent > 1:
      links += 2 if extent == side and side >= chip.wrapped_side else 1
  return link * max(links, 1)


def days_and_chip_hours(
  step_seconds: float, steps: int, chips: int
) -> tuple[float, float]:
  """Returns how long a run takes, and its cost in hours times chips."""
  hours = step_seconds * steps / 3600
  return hours / 24, hours * chips
