"""Counts FLOPs and main-memory traffic of a compiled program, with loops.

XLA's own cost analysis counts the body of a loop once. FLOPs here are those of
matrix products and convolutions, a multiply-add as 2 (`models/counting.py`),
and what Pallas kernels state of theirs.
"""

import dataclasses
from collections.abc import Iterator

from clip_jax.planning.hlo import Computation, HloModule, Instruction, Shape
from clip_jax.planning.products import Product, products_of

# Operations that move no bytes: they rename an array, or are the second half of
# one that is counted where it starts.
_FREE = frozenset(
  (
    *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast'),
    *('while', 'call', 'conditional', 'async-start', 'opt-barrier', 'domain'),
    *(
      'copy-done',
      'slice-done',
      'async-update',
      'async-done',
      'send-done',
      'send',
    ),
    *('all-gather-done', 'all-reduce-done', 'collective-permute-done'),
    *('recv', 'recv-done', 'after-all', 'partition-id', 'replica-id'),
  )
)
_FREE_CALLS = ('AllocateBuffer', 'ConcatBitcast', 'AssumeGatherIndicesInBound')
_SLICING = ('dynamic-slice', 'slice', 'gather')
_RENAMING = ('bitcast', 'convert', 'copy', 'reshape', 'transpose')


@dataclasses.dataclass(frozen=True)
class Operation:
  """The cost of one execution of an instruction, on one device."""

  products: tuple[Product, ...]
  hbm_bytes: int
  times: int

  @property
  def flops(self) -> int:
    """The FLOPs of its products."""
    return sum(product.flops for product in self.products)

  def occupied_flops(self, tile: int) -> float:
    """Returns what matrix units could do in the time that its products take.

    Args:
      tile: the multipliers along a side of a unit; what products leave empty
        of it is counted too.
    """
    occupied = (one.flops / one.efficiency(tile) for one in self.products)
    return sum(occupied, 0.0)


def operations(module: HloModule) -> Iterator[Operation]:
  """Yields the cost of every instruction that runs and is not free."""
  for computation, instruction, times in module.executed():
    products = tuple(products_of(module, computation, instruction))
    hbm_bytes = traffic_of(module, computation, instruction)
    if products or hbm_bytes:
      yield Operation(products, hbm_bytes, times)


def traffic_of(
  module: HloModule, computation: Computation, instruction: Instruction
) -> int:
  """Returns the bytes that one execution reads and writes in main memory.

  Of an array that is sliced, only the slice is read; an update in place writes
  only the part that it updates.
  """
  opcode = instruction.opcode
  if opcode in _FREE or instruction.target in _FREE_CALLS:
    return 0
  if opcode == 'fusion':
    return _fusion_traffic(module, computation, instruction)
  operands = computation.operands(instruction)
  if opcode in ('copy-start', 'slice-start'):
    # The result holds source, target and a context: the part is read once
    # and written once, where each of the two is in main memory.
    source = operands[0].shapes[0]
    target = _copied(instruction, source)
    read = 0 if source.on_chip else target.bytes
    return read + target.hbm_bytes
  if opcode == 'dynamic-update-slice':
    return 2 * operands[1].shapes[0].hbm_bytes
  written = sum(shape.hbm_bytes for shape in instruction.shapes)
  if opcode in _SLICING:
    return 2 * written
  return written + sum(
    shape.hbm_bytes for operand in operands for shape in operand.shapes
  )


def _copied(instruction: Instruction, source: Shape) -> Shape:
  """Returns the target of an asynchronous copy or slice.

  Of a copy it comes first or second, whichever is not the source; of a slice
  after the sources.
  """
  arrays = [shape for shape in instruction.shapes if len(shape.sizes) > 0]
  if instruction.opcode == 'slice-start':
    return arrays[-1]
  return next((s for s in arrays if s.on_chip != source.on_chip), arrays[0])


def _fusion_traffic(
  module: HloModule, computation: Computation, fusion: Instruction
) -> int:
  called = fusion.called('calls')
  if called is None:
    return 0
  inside = module.computations[called]
  total = 0
  for number, operand in enumerate(computation.operands(fusion)):
    parameter = inside.parameters.get(number)
    if parameter is not None and len(operand.shapes) == 1:
      total += _bytes_read(module, inside, parameter)
  root = inside.root
  results = inside.operands(root) if root.opcode == 'tuple' else [root]
  return total + sum(_bytes_written(inside, result) for result in results)


def _bytes_read(
  module: HloModule, inside: Computation, parameter: Instruction
) -> int:
  """Returns the bytes that a fusion reads of a parameter.

  These are all bytes, those of its slices, or none where the parameter is
  passed on or updated in place. A fusion inside of the fusion may be what
  slices it.
  """
  whole = parameter.shapes[0].hbm_bytes
  if whole == 0:
    return 0
  total = 0
  for user in inside.users.get(parameter.name, []):
    first = bool(user.operands) and user.operands[0] == parameter.name
    called = user.called('calls')
    if user.opcode in _SLICING and first:
      total += user.shapes[0].bytes
    elif user.opcode == 'fusion' and called is not None:
      inner = module.computations[called]
      for number, name in enumerate(user.operands):
        if name == parameter.name:
          total += _bytes_read(module, inner, inner.parameters[number])
    elif not _passes_on(user, first):
      return whole
  return min(total, whole)


def _passes_on(user: Instruction, first: bool) -> bool:
  """Returns whether an array goes through a fusion by its name alone."""
  updated = user.opcode == 'dynamic-update-slice' and first
  return updated or (user.opcode == 'tuple' and user.is_root)


def _bytes_written(inside: Computation, result: Instruction) -> int:
  """Returns the bytes that a fusion writes of one of its results.

  These are all bytes, those of an updated part, or none where a parameter is
  passed on.
  """
  source = result
  while source.opcode in _RENAMING:
    source = inside.operands(source)[0]
  if source.opcode == 'dynamic-update-slice':
    if result.shapes[0].on_chip:
      return 0
    return inside.operands(source)[1].shapes[0].bytes
  if result.opcode == 'parameter':
    return 0
  return sum(shape.hbm_bytes for shape in result.shapes)
