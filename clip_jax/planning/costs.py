"""Counts FLOPs and main-memory traffic of a compiled program, with loops.

XLA's own cost analysis counts the body of a loop once. FLOPs here are those of
matrix products and convolutions, a multiply-add as 2 (`models/counting.py`),
and what Pallas kernels state of theirs.
On a TPU every product is a convolution; a batch of products is a dilated one,
of which only the positions with data count.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from clip_jax.planning.hlo import Computation, HloModule, Instruction, Shape

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

  flops: int
  hbm_bytes: int
  times: int


def operations(module: HloModule) -> Iterator[Operation]:
  """Yields the cost of every instruction that runs and is not free."""
  for computation, instruction, times in module.executed():
    flops = flops_of(module, computation, instruction)
    hbm_bytes = traffic_of(module, computation, instruction)
    if flops or hbm_bytes:
      yield Operation(flops, hbm_bytes, times)


def flops_of(
  module: HloModule, computation: Computation, instruction: Instruction
) -> int:
  """Returns the FLOPs of one execution, without those of loops and calls."""
  if instruction.opcode == 'dot':
    return _dot_flops(computation, instruction)
  if instruction.opcode == 'convolution':
    return _convolution_flops(computation, instruction)
  if is_kernel(instruction):
    return _stated_flops(instruction)
  called = instruction.called('calls')
  if instruction.opcode != 'fusion' or called is None:
    return 0
  inside = module.computations[called]
  return sum(
    flops_of(module, inside, inner) for inner in inside.instructions.values()
  )


def is_kernel(instruction: Instruction) -> bool:
  """Returns whether an instruction is a Pallas kernel for TPUs."""
  return _target(instruction) == 'tpu_custom_call'


def kernels_without_costs(module: HloModule) -> list[str]:
  """Returns the names of the kernels that state no FLOPs, each once.

  Their arithmetic is unknown: `operations` counts only what they read and
  write.
  """
  return sorted(
    {
      instruction.attribute(r'op_name="([^"]*)"') or instruction.name
      for _, instruction, _ in module.executed()
      if is_kernel(instruction) and not _stated_flops(instruction)
    }
  )


def _stated_flops(kernel: Instruction) -> int:
  """Returns the FLOPs of the cost estimate that a kernel was called with."""
  stated = kernel.attribute(r'"cost_estimate":\{[^}]*"flops":"?(\d+)')
  return int(stated or 0)


def _target(instruction: Instruction) -> str | None:
  return instruction.attribute(r'custom_call_target="([^"]*)"')


def _dot_flops(computation: Computation, dot: Instruction) -> int:
  left = computation.operands(dot)[0].shapes[0]
  axes = dot.attribute(r'lhs_contracting_dims=\{([\d,]*)\}') or ''
  summed = math.prod(left.sizes[int(axis)] for axis in axes.split(',') if axis)
  return 2 * math.prod(dot.shapes[0].sizes) * summed


def _convolution_flops(computation: Computation, conv: Instruction) -> int:
  """Returns 2 x batch x features out x features in x valid positions.

  `dim_labels=b01f_01io->b01f` says which axis is what; axes with a digit are
  spatial, and `window` has an entry for each.
  """
  left, right = (operand.shapes[0] for operand in computation.operands(conv))
  labels = conv.attribute(r'dim_labels=(\S+?)(?:,|$)')
  match = re.fullmatch(r'(\w+)_(\w+)->(\w+)', labels or '')
  if match is None:
    raise ValueError(f'dim_labels of {conv.name} are not as expected: {labels}')
  inputs, kernel, outputs = (
    dict(zip(names, shape.sizes, strict=True))
    for names, shape in zip(
      match.groups(), (left, right, conv.shapes[0]), strict=True
    )
  )
  window = _window(conv.attribute(r'window=\{([^}]*)\}') or '')
  positions = 1
  for axis in range(len(left.sizes) - 2):
    name = str(axis)
    fields = {key: values[axis] for key, values in window.items()}
    positions *= _valid_positions(
      inputs[name], kernel[name], outputs[name], fields
    )
  groups = int(conv.attribute(r'batch_group_count=(\d+)') or 1)
  # The kernel's own input features are those of one feature group already.
  pairs = outputs['b'] * outputs['f'] * kernel['i'] * positions
  return 2 * pairs // groups


def _window(text: str) -> dict[str, list[str]]:
  """Parses 'size=3x3 pad=1_1x1_1', one entry for each spatial axis."""
  fields = (word.split('=') for word in text.split())
  return {key: value.split('x') for key, value in fields}


def _valid_positions(
  inputs: int, kernel: int, outputs: int, window: dict[str, str]
) -> int:
  """Counts (output, kernel tap) pairs of an axis that meet no padding."""
  stride = int(window.get('stride', 1))
  input_dilation = int(window.get('lhs_dilate', 1))
  kernel_dilation = int(window.get('rhs_dilate', 1))
  before = int(window.get('pad', '0_0').split('_')[0])
  starts = np.arange(outputs, dtype=np.int64) * stride - before
  count = 0
  for tap in range(kernel):
    positions = starts + tap * kernel_dilation
    valid = (positions >= 0) & (positions % input_dilation == 0)
    valid &= positions // input_dilation < inputs
    count += int(valid.sum())
  return count


def traffic_of(
  module: HloModule, computation: Computation, instruction: Instruction
) -> int:
  """Returns the bytes that one execution reads and writes in main memory.

  Of an array that is sliced, only the slice is read; an update in place writes
  only the part that it updates.
  """
  opcode = instruction.opcode
  if opcode in _FREE or _target(instruction) in _FREE_CALLS:
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
