"""Reads the text of an optimized XLA program (`compiled.as_text()`).

Only what `costs.py` and `collectives.py` ask for: computations, instructions
with the shapes of their results, what calls what, and how often loops turn.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

# Bytes of an element; what is not listed (tokens, opaque handles) has none.
_SIZES = {
  **dict.fromkeys(('pred', 's8', 'u8'), 1),
  **dict.fromkeys(('s16', 'u16', 'f16', 'bf16'), 2),
  **dict.fromkeys(('s32', 'u32', 'f32'), 4),
  **dict.fromkeys(('s64', 'u64', 'f64', 'c64'), 8),
  'c128': 16,
}
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?')
_INSTRUCTION = re.compile(r'\s+(ROOT )?%?([\w.\-]+) = (.*)')
_HEADER = re.compile(r'(ENTRY )?%?([\w.\-]+) .*\{$')
# The metadata of a kernel's call, the only attribute that spans several lines.
_METADATA = re.compile(r'kernel_metadata=\{\n.*?\n\}', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Shape:
  """One array of a result.

  Attributes:
    on_chip: it never is in the chip's main memory: its layout names another
      memory space, such as S(1), a TPU's vector memory.
  """

  dtype: str
  sizes: tuple[int, ...]
  on_chip: bool = False

  @property
  def bytes(self) -> int:
    """The size without the padding of a layout."""
    return math.prod(self.sizes) * _SIZES.get(self.dtype, 0)

  @property
  def hbm_bytes(self) -> int:
    """The bytes that move to or from main memory: none on the chip."""
    return 0 if self.on_chip else self.bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction of the text, on one line.

  Attributes:
    result: its text before the operation's name: a shape, or a tuple of them.
    arguments: the text between the operation's parentheses.
    attributes: the text after them.
  """

  name: str
  result: str
  opcode: str
  arguments: str
  attributes: str
  is_root: bool

  @functools.cached_property
  def shapes(self) -> tuple[Shape, ...]:
    """The arrays of the result, of nested tuples too."""
    return tuple(
      Shape(
        dtype,
        tuple(int(size.lstrip('<=')) for size in sizes.split(',') if size),
        re.search(r'S\([1-9]\d*\)', layout) is not None,
      )
      for dtype, sizes, layout in _ARRAY.findall(self.result)
    )

  @functools.cached_property
  def operands(self) -> tuple[str, ...]:
    """The names of the instructions that it reads."""
    return tuple(re.findall(r'%([\w.\-]+)', self.arguments))

  def attribute(self, pattern: str) -> str | None:
    """Returns the first group of a pattern in the attributes."""
    match = re.search(pattern, self.attributes)
    return match[1] if match else None

  @property
  def target(self) -> str | None:
    """What a custom call runs, such as 'tpu_custom_call' of Pallas kernels."""
    return self.attribute(r'custom_call_target="([^"]*)"')

  def called(self, key: str) -> str | None:
    """Returns the computation named by KEY=%NAME, or None."""
    return self.attribute(rf'\b{key}=%?([\w.\-]+)')


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions in the order of the text, by name."""

  name: str
  instructions: Mapping[str, Instruction]

  @functools.cached_property
  def root(self) -> Instruction:
    """The instruction whose result is that of the computation."""
    return next(i for i in self.instructions.values() if i.is_root)

  @functools.cached_property
  def parameters(self) -> dict[int, Instruction]:
    """The parameters by their number."""
    return {
      int(i.arguments): i
      for i in self.instructions.values()
      if i.opcode == 'parameter'
    }

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """The instructions that read each one, by its name."""
    users: dict[str, list[Instruction]] = {}
    for instruction in self.instructions.values():
      for name in set(instruction.operands):
        users.setdefault(name, []).append(instruction)
    return users

  def operands(self, instruction: Instruction) -> list[Instruction]:
    """Returns the instructions that one reads, in order."""
    return [self.instructions[name] for name in instruction.operands]


@dataclasses.dataclass(frozen=True)
class HloModule:
  """All computations by name, and the one that starts."""

  computations: Mapping[str, Computation]
  entry: str

  def executed(self) -> Iterator[tuple[Computation, Instruction, int]]:
    """Yields every scheduled instruction, with how many times it runs.

    Loops are entered as often as they turn; a fusion is one instruction (see
    `costs.py` for its inside); of a conditional all branches count.
    """
    yield from self._executed(self.entry, 1)

  def _executed(
    self, name: str, times: int
  ) -> Iterator[tuple[Computation, Instruction, int]]:
    computation = self.computations[name]
    for instruction in computation.instructions.values():
      yield computation, instruction, times
      if instruction.opcode == 'while':
        trip_count = self.trip_count(instruction)
        for key in ('condition', 'body'):
          called = instruction.called(key)
          if called is not None:
            yield from self._executed(called, times * trip_count)
      elif instruction.opcode in ('call', 'async-start'):
        called = instruction.called('to_apply') or instruction.called('calls')
        if called is not None:
          yield from self._executed(called, times)
      elif instruction.opcode == 'conditional':
        for branch in _branches(instruction):
          yield from self._executed(branch, times)

  def trip_count(self, loop: Instruction) -> int:
    """Returns how often a while loop turns.

    It is what XLA noted, or else the constant that its condition compares the
    counter with, which starts at 0, over what its body adds to it: loops that
    XLA has unrolled count by more than 1. A loop that has neither counts once.
    """
    noted = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    if noted is not None:
      return int(noted)
    condition = loop.called('condition')
    if condition is None:
      return 1
    bounds = [
      int(i.arguments)
      for i in self.computations[condition].instructions.values()
      if i.opcode == 'constant' and re.fullmatch(r'\d+', i.arguments)
    ]
    return -(-bounds[0] // self._step(loop)) if len(bounds) == 1 else 1

  def _step(self, loop: Instruction) -> int:
    """Returns what a loop's body adds to the counter, or 1 if not seen."""
    condition, body = (loop.called(key) for key in ('condition', 'body'))
    if condition is None or body is None:
      return 1
    inside = self.computations[body]
    compared = self.computations[condition]
    for counter in compared.operands(compared.root):
      index = counter.attribute(r'index=(\d+)')
      if index is not None and inside.root.opcode == 'tuple':
        added = inside.operands(inside.root)[int(index)]
        constants = [
          int(term.arguments)
          for term in inside.operands(added)
          if added.opcode == 'add' and term.opcode == 'constant'
        ]
        return constants[0] if constants else 1
    return 1


def _branches(instruction: Instruction) -> list[str]:
  names = instruction.attribute(r'branch_computations=\{([^}]*)\}')
  if names is not None:
    return re.findall(r'[\w.\-]+', names)
  keys = ('true_computation', 'false_computation')
  return [name for key in keys if (name := instruction.called(key))]


def parse(text: str) -> HloModule:
  """Parses the text of a program.

  Raises:
    ValueError: it has no entry computation.
  """
  computations: dict[str, Computation] = {}
  entry, instructions = None, {}
  text = _METADATA.sub(lambda match: match[0].replace('\n', ''), text)
  for line in text.splitlines():
    if match := _INSTRUCTION.match(line):
      instruction = _instruction(bool(match[1]), match[2], match[3])
      instructions[instruction.name] = instruction
    elif match := _HEADER.match(line):
      instructions = {}
      computations[match[2]] = Computation(match[2], instructions)
      entry = match[2] if match[1] else entry
  if entry is None:
    raise ValueError('no ENTRY computation in the text of the program')
  return HloModule(computations, entry)


def _instruction(is_root: bool, name: str, rest: str) -> Instruction:
  """Parses `RESULT OPCODE(ARGUMENTS)ATTRIBUTES`, the text behind `=`."""
  end = _closing(rest, 0) if rest.startswith('(') else rest.index(' ') - 1
  result, rest = rest[: end + 1], rest[end + 1 :].lstrip()
  start = rest.index('(')
  end = _closing(rest, start)
  return Instruction(
    name, result, rest[:start], rest[start + 1 : end], rest[end + 1 :], is_root
  )


def _closing(text: str, start: int) -> int:
  """Returns where the parenthesis that opens at `start` closes."""
  depth = 0
  for match in re.compile(r'[()]').finditer(text, start):
    depth += 1 if match[0] == '(' else -1
    if depth == 0:
      return match.start()
  raise ValueError(f'a parenthesis never closes: {text[:80]}')
