"""The pickles in torch's archives, read as data: nothing in them is executed.

A pickle is a program for a stack machine. This machine knows the instructions
that torch writes and that build plain values; for the names that a pickle may
call, `torch_objects` says which description stands for the object.
There is no import, no attribute access and no call of anything that a file
names, so that the worst that a file can do is to be refused.
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from clip_jax.interop.torch_objects import (
  Module,
  Name,
  Opaque,
  PickleError,
  Storage,
  TensorView,
  describe,
  natural,
  resolve,
)

# A training checkpoint of a billion parameters has about 200,000
# instructions in 3 MB.
MAX_BYTES = 64 * 2**20
MAX_INSTRUCTIONS = 1_000_000


def parse(data: bytes) -> Any:
  """Returns the value that a pickle describes.

  Returns:
    dicts, lists, tuples, sets, numbers, text and None; with `TensorView`,
    `Module` and `Opaque` instead of objects.
  Raises:
    PickleError: the pickle is damaged, too large, or names anything beyond
      tensors and plain values.
  """
  if len(data) > MAX_BYTES:
    raise PickleError(f'its pickle is over {MAX_BYTES:,} bytes')
  machine = _Machine()
  try:
    for count, (opcode, argument, _) in enumerate(
      pickletools.genops(io.BytesIO(data))
    ):
      if count > MAX_INSTRUCTIONS:
        raise PickleError(f'its pickle has over {MAX_INSTRUCTIONS:,} steps')
      machine.step(opcode.name, argument)
    return machine.result()
  except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
    raise PickleError(
      'its pickle is malformed: fetch the file again'
    ) from error


class _Machine:
  """Interprets pickles: the opcodes that plain data takes, and no others."""

  def __init__(self):
    self.stack: list[Any] = []
    self._outer: list[list[Any]] = []  # the stacks below each mark
    self._memo: dict[int, Any] = {}

  def result(self) -> Any:
    [result] = self.stack
    if self._outer:
      raise ValueError  # a mark is left
    return result

  def step(self, opcode: str, argument: Any) -> None:
    if opcode in _CONSTANTS:
      self.stack.append(_CONSTANTS[opcode]())
    elif opcode in _LITERALS:
      self.stack.append(argument)
    elif opcode in _ACTIONS:
      _ACTIONS[opcode](self, argument)
    elif opcode not in _IGNORED:
      raise PickleError(f'its pickle has the instruction {opcode}')

  def mark(self, _: Any) -> None:
    self._outer.append(self.stack)
    self.stack = []

  def since_mark(self) -> list[Any]:
    items, self.stack = self.stack, self._outer.pop()
    return items

  def put(self, index: int) -> None:
    self._memo[index] = self.stack[-1]

  def memoize(self, _: Any) -> None:
    self._memo[len(self._memo)] = self.stack[-1]

  def get(self, index: int) -> None:
    self.stack.append(self._memo[index])

  def pop(self, _: Any) -> None:
    self.stack.pop()

  def tuple_of(self, size: int) -> None:
    items = self.stack[-size:]
    if len(items) != size:
      raise IndexError
    self.stack[-size:] = [tuple(items)]

  def tuple_since_mark(self, _: Any) -> None:
    items = self.since_mark()
    self.stack.append(tuple(items))

  def list_since_mark(self, _: Any) -> None:
    items = self.since_mark()
    self.stack.append(items)

  def dict_since_mark(self, _: Any) -> None:
    items = self.since_mark()
    self.stack.append({})
    self._set(items)

  def append(self, _: Any) -> None:
    self._extend([self.stack.pop()])

  def appends(self, _: Any) -> None:
    self._extend(self.since_mark())

  def _extend(self, items: list[Any]) -> None:
    if not isinstance(self.stack[-1], list):
      raise TypeError
    self.stack[-1].extend(items)

  def add_items(self, _: Any) -> None:
    items = self.since_mark()
    if not isinstance(self.stack[-1], set):
      raise TypeError
    self.stack[-1].update(_key(item) for item in items)

  def set_item(self, _: Any) -> None:
    value, key = self.stack.pop(), self.stack.pop()
    self._set([key, value])

  def set_items(self, _: Any) -> None:
    self._set(self.since_mark())

  def _set(self, items: list[Any]) -> None:
    target = self.stack[-1]
    if isinstance(target, Opaque):
      return
    if not isinstance(target, dict):
      raise TypeError
    for key, value in zip(items[::2], items[1::2], strict=True):
      target[_key(key)] = value

  def name(self, argument: str) -> None:
    module, _, name = argument.partition(' ')
    self.stack.append(resolve(f'{module}.{name}'))

  def stack_name(self, _: Any) -> None:
    name, module = self.stack.pop(), self.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
      raise TypeError
    self.stack.append(resolve(f'{module}.{name}'))

  def call(self, _: Any) -> None:
    """Describes an object instead of making it, for REDUCE and NEWOBJ."""
    arguments, function = self.stack.pop(), self.stack.pop()
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
      raise TypeError
    self.stack.append(describe(function.name, arguments))

  def build(self, _: Any) -> None:
    """Keeps a module's attributes; what other objects carry is dropped."""
    state, target = self.stack.pop(), self.stack[-1]
    if isinstance(target, Module):
      if isinstance(state, dict):
        target.attributes = state
    elif not isinstance(target, dict | TensorView | Opaque):
      raise TypeError

  def persistent(self, _: Any) -> None:
    """Pushes the storage of ('storage', class, key, device, elements)."""
    kind, dtype, key, _, size = self.stack.pop()
    if (
      kind != 'storage'
      or not isinstance(dtype, np.dtype)
      or type(key) is not str
      or not natural([size])
    ):
      raise TypeError
    self.stack.append(Storage(key, dtype, size))


def _key(value: Any) -> Any:
  """Returns a dict's key. Hashing a deep tuple would overflow the C stack."""
  if not isinstance(value, str | int | float | bytes | None):
    raise TypeError
  return value


_CONSTANTS: dict[str, Callable[[], Any]] = {
  'NONE': lambda: None,
  'NEWTRUE': lambda: True,
  'NEWFALSE': lambda: False,
  'EMPTY_DICT': dict,
  'EMPTY_LIST': list,
  'EMPTY_SET': set,
  'EMPTY_TUPLE': tuple,
}
_LITERALS = frozenset(
  {
    *('BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT'),
    *('BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8'),
    *('BINBYTES', 'SHORT_BINBYTES', 'BINSTRING', 'SHORT_BINSTRING'),
  }
)
_IGNORED = frozenset({'PROTO', 'FRAME', 'STOP'})
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
  'MARK': _Machine.mark,
  'BINPUT': _Machine.put,
  'LONG_BINPUT': _Machine.put,
  'MEMOIZE': _Machine.memoize,
  'BINGET': _Machine.get,
  'LONG_BINGET': _Machine.get,
  'POP': _Machine.pop,
  'TUPLE': _Machine.tuple_since_mark,
  'TUPLE1': lambda machine, _: machine.tuple_of(1),
  'TUPLE2': lambda machine, _: machine.tuple_of(2),
  'TUPLE3': lambda machine, _: machine.tuple_of(3),
  'LIST': _Machine.list_since_mark,
  'DICT': _Machine.dict_since_mark,
  'APPEND': _Machine.append,
  'APPENDS': _Machine.appends,
  'ADDITEMS': _Machine.add_items,
  'SETITEM': _Machine.set_item,
  'SETITEMS': _Machine.set_items,
  'GLOBAL': _Machine.name,
  'STACK_GLOBAL': _Machine.stack_name,
  'REDUCE': _Machine.call,
  'NEWOBJ': _Machine.call,
  'BUILD': _Machine.build,
  'BINPERSID': _Machine.persistent,
}
