"""TPU slices by name, and the rates and the memory of their chips.

'v5e:16x16' is 256 chips of v5e in a square. The rates are from the vendor's
documentation: cloud.google.com/tpu/docs/v4, /v5e, /v5p-training and /v6e, as
they were in 2025, and the sizes of matrix units from that of the architecture,
/system-architecture-tpu-vm. The network of v4 and v5p is not stated there; it
is taken to be 200 Gbit/s a host of four chips. The memory that a program may
use is a little less than the chip has: it is what libtpu says when a program is
too large.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax

from clip_jax.errors import UsageError
from clip_jax.models.counting import PEAK_FLOPS

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
  """A kind of chip.

  Attributes:
    device_kind: as JAX names it; the key of `PEAK_FLOPS`.
    hbm_bytes: of memory that a program may use.
    hbm_bandwidth: bytes a second.
    ici_bandwidth: bytes a second that leave by all links to neighbours.
    dcn_bandwidth: bytes a second that leave for another slice.
    dimensions: of the torus: each has two links a chip.
    wrapped_side: the shortest side, in chips, whose two ends are linked.
    pod_chips: the most in one slice.
    matrix_tile: multipliers along a side of a matrix unit.
    options: what `get_topology_desc` must be told besides the name.
  """

  device_kind: str
  hbm_bytes: int
  hbm_bandwidth: float
  ici_bandwidth: float
  dcn_bandwidth: float
  dimensions: int
  wrapped_side: int
  pod_chips: int
  matrix_tile: int = 128
  options: tuple[tuple[str, Any], ...] = ()

  @property
  def peak_flops(self) -> float:
    """The peak rate of dense bfloat16 products, FLOP/s."""
    return PEAK_FLOPS[self.device_kind]


CHIPS = {
  'v4': Chip(
    device_kind='TPU v4',
    hbm_bytes=int(30.75 * GIB),
    hbm_bandwidth=1200e9,
    ici_bandwidth=300e9,
    dcn_bandwidth=6.25e9,
    dimensions=3,
    wrapped_side=4,
    pod_chips=4096,
    # The two cores of a chip as one device, as JAX has them on a real one.
    options=(('chip_config_name', 'megacore'),),
  ),
  'v5e': Chip(
    device_kind='TPU v5 lite',
    hbm_bytes=int(15.75 * GIB),
    hbm_bandwidth=819e9,
    ici_bandwidth=200e9,
    dcn_bandwidth=3.125e9,
    dimensions=2,
    wrapped_side=16,
    pod_chips=256,
  ),
  'v5p': Chip(
    device_kind='TPU v5',
    hbm_bytes=int(95.73 * GIB),
    hbm_bandwidth=2765e9,
    ici_bandwidth=600e9,
    dcn_bandwidth=6.25e9,
    dimensions=3,
    wrapped_side=4,
    pod_chips=8960,
  ),
  'v6e': Chip(
    device_kind='TPU v6 lite',
    hbm_bytes=int(31.24 * GIB),
    hbm_bandwidth=1640e9,
    ici_bandwidth=400e9,
    dcn_bandwidth=12.5e9,
    dimensions=2,
    wrapped_side=16,
    pod_chips=256,
    matrix_tile=256,
  ),
}

_EXAMPLES = (
  'v4:2x2x2, v5p:4x4x4 (three sides), v5e:16x16 or v6e:8x8 (two sides)'
)


@dataclasses.dataclass(frozen=True)
class Topology:
  """One or more slices of the same shape.

  Attributes:
    name: as libtpu spells it, of one slice.
    family: a key of `CHIPS`.
    sides: chips along each dimension of a slice.
    slices: joined by the data centre's network.
  """

  name: str
  family: str
  sides: tuple[int, ...]
  slices: int = 1

  @property
  def chip(self) -> Chip:
    """The kind of chip."""
    return CHIPS[self.family]

  @property
  def chips(self) -> int:
    """The number of chips in all slices together."""
    return self.slices * math.prod(self.sides)

  def __str__(self) -> str:
    return f'{self.slices} x {self.name}' if self.slices > 1 else self.name


def parse_topology(name: str, slices: int = 1) -> Topology:
  """Parses the name of a topology.

  Args:
    name: FAMILY:SIDExSIDE[xSIDE].
    slices: how many of them.
  Raises:
    UsageError: there is no such topology.
  """
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', name)
  if match is None or match[1] not in CHIPS:
    raise UsageError(
      f'no topology {name!r}: names look like {_EXAMPLES}; known chips: '
      f'{", ".join(CHIPS)}.'
    )
  family, sides = match[1], tuple(map(int, match[2].split('x')))
  chip = CHIPS[family]
  if len(sides) != chip.dimensions:
    raise UsageError(
      f'no topology {name!r}: {family} is wired in {chip.dimensions} '
      f'dimensions; names look like {_EXAMPLES}.'
    )
  if not 1 <= math.prod(sides) <= chip.pod_chips:
    raise UsageError(
      f'no topology {name!r}: a slice of {family} has 1 to '
      f'{chip.pod_chips:,} chips, and this has {math.prod(sides):,}.'
    )
  return Topology(name, family, sides, slices)


def devices_of(topology: Topology) -> Sequence[jax.Device]:
  """Returns the chips as devices that can be compiled for, not run on.

  Raises:
    UsageError: libtpu knows no such topology.
    RuntimeError: there is no libtpu.
  """
  from jax.experimental import topologies

  options = dict(topology.chip.options)
  if topology.slices > 1:
    options['num_slices'] = topology.slices
  try:
    return topologies.get_topology_desc(
      platform='tpu', topology_name=topology.name, **options
    ).devices
  except jax.errors.JaxRuntimeError as error:
    if 'INVALID_ARGUMENT' not in str(error):
      raise
    reason = str(error).partition('INVALID_ARGUMENT: ')[2].splitlines()[0]
    raise UsageError(
      f'no topology {topology.name!r}: {reason}; names look like {_EXAMPLES}.'
    ) from error
