"""Lists the collectives of a compiled program.

A TPU overlaps a collective with other work by splitting it into fusions that
name the same channel; they count as one collective. An all-reduce that is fused
with the slice that each device keeps counts as a reduce-scatter.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from clip_jax.planning.hlo import Computation, HloModule, Instruction

OPS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_OPCODES = {f'{op}{end}': op for op in OPS for end in ('', '-start')}
_BETWEEN_SLICES = r'_xla_megascale_transfer_type="(\w+)"'


@dataclasses.dataclass(frozen=True)
class Collective:
  """One exchange between devices.

  Attributes:
    op: one of `OPS`.
    bytes: of the array that is gathered, reduced, or passed on, whole.
    group: one of the groups that exchange, as positions in the mesh.
    times: how often a step runs it.
    overlapped: whether other work runs meanwhile.
  """

  op: str
  bytes: int
  group: tuple[int, ...]
  times: int
  overlapped: bool


def collectives(
  module: HloModule, devices: int, slices: int = 1
) -> list[Collective]:
  """Returns all collectives of a program, with how often each runs.

  Args:
    devices: of the mesh.
    slices: the number of slices; the devices of each are adjacent.
  """
  channels: dict[str, list[_Occurrence]] = defaultdict(list)
  for computation, instruction, times in module.executed():
    for inside, exchange in _exchanges_in(module, computation, instruction):
      channel = exchange.attribute(r'channel_id=(\d+)') or exchange.name
      channels[channel].append(
        _Occurrence(
          _read(inside, exchange, times, devices, slices),
          _starts(inside, exchange),
        )
      )
  exchanges = []
  for occurrences in channels.values():
    starts = [o.collective for o in occurrences if o.starts]
    if starts:
      exchanges += [
        dataclasses.replace(start, overlapped=True) for start in starts
      ]
    else:
      exchanges += [o.collective for o in occurrences]
  return exchanges


class _Occurrence(NamedTuple):
  collective: Collective
  starts: bool  # whether it is the first fusion of a channel


def _starts(inside: Computation, exchange: Instruction) -> bool:
  return any(
    'AsyncCollectiveStart' in user.attributes
    for user in inside.users.get(exchange.name, [])
  )


def _exchanges_in(
  module: HloModule, computation: Computation, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
  """Yields the collectives that an instruction is, or has in its fusion."""
  if _op_of(instruction) is not None:
    yield computation, instruction
  called = instruction.called('calls')
  if instruction.opcode == 'fusion' and called is not None:
    fused = module.computations[called]
    for inner in fused.instructions.values():
      yield from _exchanges_in(module, fused, inner)


def _op_of(instruction: Instruction) -> str | None:
  """Returns one of `OPS`, or None for what is no exchange."""
  if instruction.opcode != 'send':
    return _OPCODES.get(instruction.opcode)
  kind = instruction.attribute(_BETWEEN_SLICES)
  if kind is None:
    return None
  op = kind.lower().replace('_', '-')
  return op if op in OPS else 'collective-permute'


def _read(
  computation: Computation,
  exchange: Instruction,
  times: int,
  devices: int,
  slices: int,
) -> Collective:
  op = _op_of(exchange)
  assert op is not None  # `_exchanges_in` yields no others
  if op == 'all-reduce' and _is_sliced(computation, exchange):
    op = 'reduce-scatter'
  if exchange.opcode == 'send':
    group = tuple(range(0, devices, devices // slices))
  else:
    group = group_of(exchange.attributes, devices)
  size = sum(
    shape.bytes
    for operand in computation.operands(exchange)
    for shape in operand.shapes
  )
  if op == 'all-gather':
    size *= len(group)
  return Collective(op, size, group, times, exchange.opcode.endswith('-start'))


def _is_sliced(computation: Computation, exchange: Instruction) -> bool:
  users = computation.users.get(exchange.name, [])
  return bool(users) and all(user.opcode == 'dynamic-slice' for user in users)


def group_of(attributes: str, devices: int) -> tuple[int, ...]:
  """Returns one group of devices that exchange, from any of XLA's spellings.

  They are {{0,1},{2,3}}; [2,2]<=[4] or [2,2]<=[2,2]T(1,0), an array of the
  numbers from 0 on, reshaped and transposed; mesh['a'=2,'b'=2] {'b'}, a grid
  of them and the axes that a group runs along; and pairs of source and target.

  Args:
    attributes: those of the instruction.
    devices: their number in all.
  """
  pairs = re.search(r'source_target_pairs=\{\{(\d+),(\d+)\}', attributes)
  if pairs:
    return tuple(int(number) for number in pairs.groups())
  listed = re.search(r'replica_groups=\{\{([\d,]+)\}', attributes)
  if listed:
    return tuple(int(number) for number in listed[1].split(','))
  iota = re.search(
    r'replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)', attributes
  )
  if iota:
    groups = _numbers(iota[3]).reshape(int(iota[1]), int(iota[2]))
    return tuple(groups[0].tolist())
  mesh = re.search(
    r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}',
    attributes,
  )
  if mesh:
    return _along(mesh[1], mesh[2], mesh[3])
  return tuple(range(devices))


def _numbers(text: str) -> np.ndarray:
  """Returns numbers from 0 on in a shape and order such as '[2,4]T(1,0)'."""
  sizes, _, axes = text.partition('T')
  shape = [int(size) for size in re.findall(r'\d+', sizes)]
  numbers = np.arange(math.prod(shape)).reshape(shape)
  if axes:
    numbers = numbers.transpose(
      [int(axis) for axis in re.findall(r'\d+', axes)]
    )
  return numbers


def _along(mesh: str, order: str | None, axes: str) -> tuple[int, ...]:
  """Returns the first group along axes of a mesh, or parts ':(BEFORE)SIZE'."""
  sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
  index = [slice(None)] * len(sizes)
  numbers = _numbers(order) if order else np.arange(math.prod(sizes.values()))
  numbers = numbers.reshape(tuple(sizes.values()))
  chosen = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)
  for number, (name, size) in enumerate(sizes.items()):
    parts = [(before, part) for axis, before, part in chosen if axis == name]
    if not parts:
      index[number] = slice(0, 1)
    elif parts[0][1]:
      (before, part) = map(int, parts[0])
      step = size // (before * part)
      index[number] = slice(0, part * step, step)
  return tuple(numbers[tuple(index)].ravel().tolist())


def axes_of(group: tuple[int, ...], mesh: dict[str, int]) -> list[str]:
  """Returns the mesh axes that a group runs along.

  Args:
    group: positions in the flattened mesh.
    mesh: its axes and their sizes, outermost first.
  """
  coordinates = np.unravel_index(np.asarray(group), tuple(mesh.values()))
  return [
    axis
    for axis, along in zip(mesh, coordinates, strict=True)
    if len(set(along.tolist())) > 1
  ]
