"""Arrow files, whose record batches are mapped into memory where they lie.

Streams, as Hugging Face's libraries write them, and Arrow's file format, which
is a stream between two marks. Only the headers of batches are read at opening.
Types of texts are taken for bytes, so that a text that is not UTF-8 is the
fault of its record; the offsets in a batch are checked before it is used.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from clip_jax.data import storage
from clip_jax.data.decoding import CorruptImageError, first_reasons
from clip_jax.data.sources import Spec
from clip_jax.data.sources.columnar import (
  DAMAGE,
  MAX_CHUNK_BYTES,
  Chunk,
  ChunkedFiles,
  reason_of_damage,
)
from clip_jax.data.sources.shard_files import refuse_all
from clip_jax.errors import FailureError, plural

_FILE_MARK = b'ARROW1\0\0'
_CONTINUATION = b'\xff\xff\xff\xff'
_MAX_HEADER_BYTES = 2**26
_MAX_ROWS = 2**40
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3  # types of messages


class ArrowFiles(ChunkedFiles):
  """Arrow files, whose chunks are their record batches."""

  def __init__(self, spec: Spec, paths: Sequence[str]):
    """Reads the headers of all batches.

    Raises:
      UsageError: no file can be read, or they have several schemas.
    """
    self.paths = []
    damaged: dict[str, str] = {}
    rows: list[int] = []
    spans: list[tuple[int, int]] = []
    files: list[int] = []
    schema: pa.Schema | None = None
    for path in paths:
      try:
        own, batches, reason = _read_headers(path)
      except CorruptImageError as error:
        damaged[path] = str(error)
        continue
      if schema is not None and not own.equals(schema):
        raise spec.error(f'{path} has other columns than {self.paths[0]}')
      schema = own
      if reason:
        damaged[path] = f'after {plural(sum(x.rows for x in batches), "row")}: '
        damaged[path] += reason
      files += [len(self.paths)] * len(batches)
      self.paths.append(path)
      rows += [x.rows for x in batches]
      spans += [(x.start, x.end) for x in batches]
    if schema is None:
      refuse_all(spec, damaged)
    if damaged:
      self.notices = (
        f'{plural(len(damaged), "file")} cannot be read to the end'
        f'{first_reasons(damaged)}',
      )
    self.schema = schema
    self._bytes_schema = pa.schema([_as_bytes(x) for x in schema])
    self.chunk_rows = np.array(rows, np.int64)
    self.chunk_files = np.array(files, np.int32)
    self._spans = np.array(spans, np.int64).reshape(-1, 2)

  def read(self, chunk: int, columns: Sequence[str]) -> Chunk:
    path = self.paths[self.chunk_files[chunk]]
    start, end = self._spans[chunk].tolist()
    where = f'a record batch of {path}'
    try:
      data = _span(path, start, end)
      _check_compression(data)
      message = pa.ipc.read_message(data)
      whole = pa.ipc.read_record_batch(message, self._bytes_schema)
      batch = whole.select(list(columns))
      batch.validate(full=True)
    except CorruptImageError as error:
      return Chunk([], [], f'{where}: {error}')
    except FailureError:
      raise
    except DAMAGE as error:
      return Chunk([], [], f'{where}: {reason_of_damage(error)}')
    return Chunk([batch], [batch.num_rows], f'{where}: it ends before')


class _Batch(NamedTuple):
  """The position of a record batch in its file, with its header."""

  rows: int
  start: int
  end: int


class _Message(NamedTuple):
  """The fields of a message's header that are needed to pass over it."""

  kind: int
  body: int  # bytes
  rows: int


def _read_headers(path: str) -> tuple[pa.Schema, list[_Batch], str]:
  """Returns the schema and the batches of a file, and why there are no more.

  Raises:
    CorruptImageError: it has no schema, or dictionaries.
  """
  schema, batches = None, []
  try:
    for message, start, end, header in _messages(path):
      if message.kind == _SCHEMA and schema is None:
        schema = pa.ipc.read_schema(pa.py_buffer(header))
      elif message.kind == _BATCH and schema is not None:
        batches.append(_Batch(message.rows, start, end))
      else:
        raise CorruptImageError(
          'it has dictionaries, or several schemas; write plain columns'
          if message.kind in (_SCHEMA, _DICTIONARY)
          else 'no Arrow file'
        )
  except (FailureError, *DAMAGE) as error:
    if isinstance(error, FailureError) and not isinstance(
      error, CorruptImageError
    ):
      raise
    if schema is None:
      raise CorruptImageError(reason_of_damage(error)) from error
    return schema, batches, reason_of_damage(error)
  if schema is None:
    raise CorruptImageError('no Arrow file')
  return schema, batches, ''


def _messages(path: str) -> Iterator[tuple[_Message, int, int, bytes]]:
  """Yields each message's header, where it begins and ends, and its bytes."""
  size = storage.size(path)
  position = 8 if storage.read_range(path, 0, 8) == _FILE_MARK else 0
  while position < size:
    prefix = storage.read_range(path, position, 8)
    if len(prefix) < 8 or prefix[:4] != _CONTINUATION:
      raise CorruptImageError('no Arrow file, or it is cut off')
    (length,) = struct.unpack('<i', prefix[4:])
    if length == 0:
      return  # the end of the stream
    if not 0 < length <= _MAX_HEADER_BYTES:
      raise CorruptImageError('a header claims an impossible size')
    header = storage.read_range(path, position + 8, length)
    message = _parse_message(header)
    end = position + 8 + length + message.body
    if end > size:
      raise CorruptImageError('it is cut off')
    yield message, position, end, prefix + header
    position = end


def _parse_message(header: bytes) -> _Message:
  """Reads a Message of Arrow's format (Message.fbs) out of a flatbuffer.

  Raises:
    CorruptImageError: it is none.
  """
  try:
    (table,) = struct.unpack_from('<I', header)
    kind = _scalar(header, table, 1, '<B')
    body = _scalar(header, table, 3, '<q')
    rows = 0
    if kind == _BATCH:
      rows = _scalar(header, _sub_table(header, table, 2), 0, '<q')
  except struct.error as error:
    raise CorruptImageError('a damaged header') from error
  if body < 0 or not 0 <= rows <= _MAX_ROWS:
    raise CorruptImageError('a header claims an impossible size')
  return _Message(kind, body, rows)


def _field(data: bytes, table: int, number: int) -> int:
  """Returns where a field of a flatbuffer's table lies, or 0."""
  (back,) = struct.unpack_from('<i', data, table)
  (size,) = struct.unpack_from('<H', data, max(0, table - back))
  if 4 + 2 * number >= size:
    return 0
  (offset,) = struct.unpack_from('<H', data, table - back + 4 + 2 * number)
  return table + offset if offset else 0


def _scalar(data: bytes, table: int, number: int, kind: str) -> int:
  position = _field(data, table, number)
  return struct.unpack_from(kind, data, position)[0] if position else 0


def _sub_table(data: bytes, table: int, number: int) -> int:
  position = _field(data, table, number)
  if not position:
    raise struct.error('no such table')
  return position + struct.unpack_from('<I', data, position)[0]


def _check_compression(data: pa.Buffer) -> None:
  """Refuses a compressed batch that claims more memory than a chunk may take.

  Raises:
    CorruptImageError: it does, or its header is damaged.
  """
  try:
    (length,) = struct.unpack('<i', data.slice(4, 4))
    header = data.slice(8, length).to_pybytes()
    body = data.slice(8 + length)
    (table,) = struct.unpack_from('<I', header)
    batch = _sub_table(header, table, 2)
    if not _field(header, batch, 3):
      return
    buffers = _sub_table(header, batch, 2)
    (count,) = struct.unpack_from('<I', header, buffers)
    total = 0
    for i in range(min(count, len(header) // 16)):
      start, size = struct.unpack_from('<qq', header, buffers + 4 + 16 * i)
      if size >= 8:
        total += max(0, struct.unpack('<q', body.slice(start, 8))[0])
  except (struct.error, ValueError, IndexError, OverflowError) as error:
    raise CorruptImageError('a damaged header') from error
  if total > MAX_CHUNK_BYTES:
    raise CorruptImageError('it claims more memory than a batch may take')


def _span(path: str, start: int, end: int) -> pa.Buffer:
  """Returns bytes of a file, mapped where it is local."""
  if storage.is_remote(path):
    if end - start > MAX_CHUNK_BYTES:
      raise CorruptImageError('it takes more memory than a batch may')
    data = storage.read_range(path, start, end - start)
  else:
    if storage.size(path) < end:
      raise FailureError(f'{path} is shorter than when it was opened.')
    with pa.memory_map(path) as mapped:
      mapped.seek(start)
      return mapped.read_buffer(end - start)
  if len(data) != end - start:
    raise FailureError(f'{path} is shorter than when it was opened.')
  return pa.py_buffer(data)


def _as_bytes(field: pa.Field) -> pa.Field:
  """Returns a field whose texts are bytes, which have the same layout."""
  return field.with_type(_bytes_type(field.type))


def _bytes_type(kind: pa.DataType) -> pa.DataType:
  types = pa.types
  if types.is_string(kind):
    return pa.binary()
  if types.is_large_string(kind):
    return pa.large_binary()
  if types.is_string_view(kind):
    return pa.binary_view()
  if types.is_struct(kind):
    return pa.struct([_as_bytes(x) for x in kind])
  if types.is_large_list(kind):
    return pa.large_list(_as_bytes(kind.value_field))
  if types.is_list(kind):
    return pa.list_(_as_bytes(kind.value_field))
  return kind
