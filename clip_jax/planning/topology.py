"""Names of TPU slices: 'v5e:16x16' is 256 chips of v5e in a square."""

import dataclasses
import math
import re
from collections.abc import Sequence

import jax

from clip_jax.errors import UsageError
from clip_jax.planning.chips import CHIPS, Chip

_EXAMPLES = (
  'v4:2x2x2, v5p:4x4x4 (three sides), v5e:16x16 or v6e:8x8 (two sides)'
)


@dataclasses.dataclass(frozen=True)
class Topology:
  """Slices of one shape.

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
    """Its kind of chip."""
    return CHIPS[self.family]

  @property
  def chips(self) -> int:
    """Of all slices together."""
    return self.slices * math.prod(self.sides)

  def __str__(self) -> str:
    return f'{self.slices} x {self.name}' if self.slices > 1 else self.name


def parse_topology(name: str, slices: int = 1) -> Topology:
  """The topology of a name.

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
  """Its chips as devices that can be compiled for, not run on.

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
    said = str(error).partition('INVALID_ARGUMENT: ')[2].splitlines()[0]
    raise UsageError(
      f'no topology {topology.name!r}: {said}; names look like {_EXAMPLES}.'
    ) from error
