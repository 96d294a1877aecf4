"""Parses footers and page headers of Parquet files, which may be hostile.

pyarrow ends the process where some fields of a footer contradict each other,
and allocates what a page claims; so what is asked of a file before it is
decoded is read here. Both are structs in Thrift's compact protocol
(parquet.thrift of the format's specification).
"""

import functools
import io
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from clip_jax.data import storage
from clip_jax.data.decoding import CorruptImageError

_MARK = b'PAR1'
_MAX_FOOTER_BYTES = 2**26
_MAX_DEPTH = 16
_MAX_ROWS = 2**40
_HEADER_BYTES = 2**14  # of a page, with its statistics
# Types of Thrift's compact protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 7, 8, 12
_INTEGERS, _LISTS = (4, 5, 6), (9, 10)


class Part(NamedTuple):
  """The pages of one column in a row group.

  Attributes:
    column: the name of the column, of which a struct has several.
    start, end: the bytes in the file.
    unpacked: bytes that the footer claims after decompression.
  """

  column: str
  start: int
  end: int
  unpacked: int


class Group(NamedTuple):
  """A row group, as the footer has it."""

  rows: int
  parts: list[Part]


class Pages(NamedTuple):
  """The sizes that the headers of some pages claim.

  Attributes:
    unpacked: bytes of all pages after decompression.
    dictionary: bytes of the largest dictionary.
    values: of the column that has the most.
  """

  unpacked: int
  dictionary: int
  values: int


@functools.lru_cache(maxsize=256)
def read_footer(path: str, version: str) -> list[Group]:
  """Reads the row groups of a Parquet file.

  Args:
    version: of the file's content; see `storage.version`.
  Raises:
    CorruptImageError: it is no Parquet file, or claims what is impossible.
    FailureError: it is missing, or its store does not answer.
  """
  del version
  size = storage.size(path)
  end = storage.read_range(path, max(0, size - 8), 8)
  if len(end) < 8 or end[4:] != _MARK:
    raise CorruptImageError('no Parquet file, or it is cut off')
  length = int.from_bytes(end[:4], 'little')
  if not 0 < length <= min(size - 8, _MAX_FOOTER_BYTES):
    raise CorruptImageError('its footer claims an impossible size')
  data = storage.read_range(path, size - 8 - length, length)
  try:
    footer = _Thrift(data).struct()
    groups = [_group(x, size) for x in footer.get(4, [])]
  except _DAMAGE as error:
    raise CorruptImageError('its footer is damaged') from error
  if sum(x.rows for x in groups) != footer.get(3):
    raise CorruptImageError('its footer claims impossible numbers of rows')
  return groups


def sum_pages(file: io.BufferedReader, parts: Iterable[Part]) -> Pages:
  """Sums what the pages of columns take, by the pages' own headers.

  Raises:
    CorruptImageError: a header is damaged.
  """
  unpacked = dictionary = most_values = 0
  length = file.seek(0, os.SEEK_END)
  for part in parts:
    position, values = part.start, 0
    while position < min(part.end, length):
      file.seek(position)
      thrift = _Thrift(file.read(_HEADER_BYTES))
      try:
        header = thrift.struct()
        size, packed = _count(header[2]), _count(header[3])
        counts = header.get(5) or header.get(8) or {}
        values += _count(counts.get(1, 0))
      except _DAMAGE as error:
        raise CorruptImageError('a page has a damaged header') from error
      unpacked += size
      if 7 in header:
        dictionary = max(dictionary, size)
      position += thrift.position + packed
    most_values = max(most_values, values)
  return Pages(unpacked, dictionary, most_values)


def _group(fields: dict[int, Any], file_bytes: int) -> Group:
  """Reads a RowGroup.

  Raises:
    one of _DAMAGE: it is none, or lies outside of the file.
  """
  rows = _count(fields[3])
  if rows > _MAX_ROWS:
    raise ValueError('too many rows')
  parts = []
  for column in fields[1]:
    about = column[3]
    start, dictionary = _count(about[9]), _count(about.get(11, 0))
    if 0 < dictionary < start:
      start = dictionary
    end = start + _count(about[7])
    if end > file_bytes:
      raise ValueError('outside of the file')
    name = about[3][0].decode()
    parts.append(Part(name, start, end, _count(about[6])))
  return Group(rows, parts)


def _count(value: Any) -> int:
  """Returns a number from 0, which a field has to be.

  Raises:
    ValueError: it is another.
  """
  if not isinstance(value, int) or value < 0:
    raise ValueError(f'{value!r} is no size')
  return value


# The errors that Python raises where a footer has another structure.
_DAMAGE = (
  ValueError, TypeError, LookupError, AttributeError, RecursionError,
)  # fmt: skip


class _Thrift:
  """A cursor over values in Thrift's compact protocol.

  Its methods raise IndexError or ValueError where the bytes hold no such value.
  """

  def __init__(self, data: bytes):
    self._data = data
    self.position = 0

  def struct(self, depth: int = 0) -> dict[int, Any]:
    """Reads a struct: its fields by their ids."""
    if depth > _MAX_DEPTH:
      raise ValueError('too deep')
    fields: dict[int, Any] = {}
    number = 0
    while head := self._byte():
      number = number + (head >> 4) if head >> 4 else self._integer()
      kind = head & 15
      if kind in (_TRUE, _FALSE):
        fields[number] = kind == _TRUE
      else:
        fields[number] = self._value(kind, depth)
    return fields

  def _value(self, kind: int, depth: int) -> Any:
    if kind in _INTEGERS:
      return self._integer()
    if kind == _BINARY:
      return self._take(self._varint())
    if kind == _STRUCT:
      return self.struct(depth + 1)
    if kind in _LISTS:
      return self._list(depth + 1)
    if kind == _DOUBLE:
      return self._take(8)
    if kind in (_TRUE, _FALSE, _BYTE):
      return self._byte()
    raise ValueError(f'a value of type {kind}')

  def _list(self, depth: int) -> list[Any]:
    head = self._byte()
    count = head >> 4 if head >> 4 < 15 else self._varint()
    if depth > _MAX_DEPTH or count > len(self._data) - self.position:
      raise ValueError('too long, or too deep')
    return [self._value(head & 15, depth) for _ in range(count)]

  def _take(self, size: int) -> bytes:
    start = self.position
    self.position += size
    if self.position > len(self._data):
      raise IndexError('cut off')
    return self._data[start : self.position]

  def _byte(self) -> int:
    byte = self._data[self.position]
    self.position += 1
    return byte

  def _varint(self) -> int:
    value = 0
    for shift in range(0, 70, 7):
      byte = self._byte()
      value |= (byte & 0x7F) << shift
      if byte < 0x80:
        return value
    raise ValueError('a number of over ten bytes')

  def _integer(self) -> int:
    value = self._varint()
    return (value >> 1) ^ -(value & 1)
