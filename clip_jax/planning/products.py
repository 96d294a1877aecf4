"""The matrix products of a program by shape, and how well they fill tiles.

A TPU's matrix unit is a square of multipliers. It holds a tile of one operand,
the stationary one, and lets rows of the other stream through, eight at a time
(jax-ml.github.io/scaling-book/tpus, appendix B). Axes of the tile that the
operands do not fill are padded with zeros, which take as long as data: heads of
64 leave half of a tile of 128 empty.

On a TPU every product is a convolution; a batch of products is a dilated one,
of which only the positions with data count.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from clip_jax.planning.hlo import Computation, HloModule, Instruction

# The rows that stream through a matrix unit come in registers of eight.
SUBLANES = 8
# How often products of bfloat16 run for one of float32, by XLA's name of the
# precision; 'default' is once.
_PASSES = {'high': 3, 'highest': 6}


@dataclasses.dataclass(frozen=True)
class Axis:
  """One axis of a product, or several that are one in memory.

  Attributes:
    size: of the axis that lies along a register.
    positions: how many of these there are.
    computed: the size with the zeros that are multiplied as well; None is the
      size itself.
  """

  size: int
  positions: int = 1
  computed: int | None = None

  @property
  def total(self) -> int:
    """The elements of all positions."""
    return self.size * self.positions

  @property
  def streamed(self) -> int:
    """The rows that stream: each position is padded to whole registers."""
    return _padded(self.computed or self.size, SUBLANES) * self.positions

  def tiled(self, tile: int) -> int:
    """Returns the elements of the whole tiles that hold the positions."""
    return _padded(self.streamed, tile)


@dataclasses.dataclass(frozen=True)
class Product:
  """A product [rows, summed] x [summed, columns], or a batch of such.

  Attributes:
    flops: a multiply-add as 2, of all of the batch.
    axes: rows, summed, columns; None where they are not known, which is so in
      kernels that state no shapes, and for convolutions of several groups,
      which XLA does not compute as so many small products.
    passes: how often the unit does it, for operands of more than 16 bits.
  """

  flops: int
  axes: tuple[Axis, Axis, Axis] | None = None
  passes: int = 1

  def efficiency(self, tile: int) -> float:
    """Returns the share of a matrix unit's work that is this product's.

    The operand that is stationary is taken to be the one that wastes less; the
    time to load its tiles is left out. Products of unknown axes are taken to
    fill their tiles.

    Args:
      tile: the multipliers along a side of the unit.
    """
    if self.axes is None:
      return 1 / self.passes
    rows, summed, columns = self.axes
    padded = min(
      rows.streamed * columns.tiled(tile), columns.streamed * rows.tiled(tile)
    )
    filled = rows.total * columns.total / padded
    return filled * summed.total / summed.tiled(tile) / self.passes


def _padded(size: int, unit: int) -> int:
  return -(-size // unit) * unit


def products_of(
  module: HloModule, computation: Computation, instruction: Instruction
) -> Iterator[Product]:
  """Yields the products of one execution, without those of loops and calls."""
  called = instruction.called('calls')
  if instruction.opcode == 'dot':
    yield _dot(computation, instruction)
  elif instruction.opcode == 'convolution':
    yield _convolution(computation, instruction)
  elif is_kernel(instruction):
    yield from _stated(instruction)
  elif instruction.opcode == 'fusion' and called is not None:
    inside = module.computations[called]
    for inner in inside.instructions.values():
      yield from products_of(module, inside, inner)


def is_kernel(instruction: Instruction) -> bool:
  """Returns whether an instruction is a Pallas kernel for TPUs."""
  return instruction.target == 'tpu_custom_call'


def kernels_without_costs(module: HloModule) -> list[str]:
  """Returns the names of the kernels that state no FLOPs, each once.

  Their arithmetic is unknown: `operations` counts only what they read and
  write.
  """
  return sorted(
    {
      instruction.attribute(r'op_name="([^"]*)"') or instruction.name
      for _, instruction, _ in module.executed()
      if is_kernel(instruction) and not list(_stated(instruction))
    }
  )


def _stated(kernel: Instruction) -> list[Product]:
  """Returns what a kernel was called with: shapes, or a cost estimate.

  Shapes are metadata of the call: {'products': 'COUNTxROWSxSUMMEDxCOLUMNS'},
  several with spaces between. Of an axis such as 80/256, the kernel multiplies
  256 elements, of which 80 count.
  """
  shapes = kernel.attribute(r'kernel_metadata=\{[^}]*products\W+([\dx/ ]+)')
  if shapes is not None:
    return [_stated_product(shape) for shape in shapes.split(' ')]
  flops = kernel.attribute(r'"cost_estimate":\{[^}]*"flops":"?(\d+)')
  return [Product(int(flops))] if flops and int(flops) else []


def _stated_product(shape: str) -> Product:
  count, *sizes = shape.split('x')
  axes = [
    Axis(int(size), computed=int(computed or size))
    for size, _, computed in (size.partition('/') for size in sizes)
  ]
  return _plain(int(count), *axes)


def _plain(count: int, rows: Axis, summed: Axis, columns: Axis) -> Product:
  flops = 2 * count * rows.size * summed.size * columns.size
  return Product(flops, (rows, summed, columns))


def _passes(instruction: Instruction) -> int:
  precision = instruction.attribute(r'operand_precision=\{(\w+)')
  return _PASSES.get(precision or '', 1)


def _dot(computation: Computation, dot: Instruction) -> Product:
  left, right = (operand.shapes[0] for operand in computation.operands(dot))

  def sizes(side: str, kind: str) -> list[int]:
    axes = dot.attribute(rf'{side}_{kind}_dims=\{{([\d,]*)\}}') or ''
    shape = left if side == 'lhs' else right
    return [shape.sizes[int(axis)] for axis in axes.split(',') if axis]

  summed = math.prod(sizes('lhs', 'contracting'))
  batch = math.prod(sizes('lhs', 'batch'))
  rows = math.prod(left.sizes) // (batch * summed)
  columns = math.prod(right.sizes) // (batch * summed)
  return dataclasses.replace(
    _plain(batch, Axis(rows), Axis(summed), Axis(columns)),
    passes=_passes(dot),
  )


def _convolution(computation: Computation, conv: Instruction) -> Product:
  """Returns a convolution as a product.

  `dim_labels=b01f_01io->b01f` says which axis is what; axes with a digit are
  spatial, and `window` has an entry for each. FLOPs are 2 x batch x features
  out x features in x valid positions.
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
  valid = rows = summed = columns = 1
  for axis in range(len(left.sizes) - 2):
    name = str(axis)
    sizes = inputs[name], kernel[name], outputs[name]
    fields = {key: values[axis] for key, values in window.items()}
    positions = _valid_positions(*sizes, fields)
    valid *= positions
    if sizes[0] == 1:
      columns *= sizes[2]  # each tap makes an output of its own
    elif not sizes[0] == sizes[1] == sizes[2] == positions:
      rows *= sizes[2]
      summed *= sizes[1]
    # Else it is an axis of a batch: each input meets one tap.
  flops = 2 * outputs['b'] * outputs['f'] * kernel['i'] * valid
  if groups := int(conv.attribute(r'batch_group_count=(\d+)') or 0):
    return Product(flops // groups)
  if conv.attribute(r'feature_group_count=(\d+)'):
    # The kernel's own input features are those of one group already.
    return Product(flops)
  axes = (
    Axis(outputs['b'], rows),
    Axis(kernel['i'], summed),
    Axis(outputs['f'], columns),
  )
  return Product(flops, axes, _passes(conv))


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
