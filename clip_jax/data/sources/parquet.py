"""Reads `parquet:PATTERN`: images and captions in Parquet files.

Opening reads the footers only, or an index of the numbers of rows. A record
costs the decoding of its row group, of which the last ones are kept
(`columnar.KEPT_BYTES`): with training's random order, of large data, nearly
each record costs one. So small row groups are best, of about a hundred images;
`clip-jax data build` writes shards of which a record costs itself only.

A file may claim anything: sizes are summed from the headers of the pages
before one is decompressed, and rows are decoded in batches.
"""

import functools
import io
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_jax.data import storage
from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import Spec
from clip_jax.data.sources.columnar import (
  DAMAGE,
  MAX_CHUNK_BYTES,
  Chunk,
  ChunkedFiles,
  ColumnarSource,
  find_columns,
  reason_of_damage,
)
from clip_jax.data.sources.shard_files import list_files, read_each
from clip_jax.errors import FailureError, UsageError

_MAXDAMAGED_FILES = 100  # then the data are refused
_MAX_GROUP_VALUES = 2**24  # of a column
_MAX_ROWS = 2**40
_BATCH_BYTES = 2**26  # that rows which are decoded together may take
_BATCH_ROWS = 4096
# From here on a note says that random records are slow.
_SLOW_GROUP_BYTES = 2**27
_HEADER_BYTES = 2**14  # of a page, with its statistics


class ParquetSource(ColumnarSource):
  """Records of Parquet files; columns image, captions and/or label."""

  def __init__(self, spec: Spec, captions: tuple[str, ...]):
    """Opens the files of a path, a pattern, or a folder.

    Args:
      captions: see `open_source`.
    Raises:
      UsageError: there are none, none can be read, or a column is missing or of
        another type.
    """
    files = ParquetFiles(spec, list_files(spec, '.parquet'))
    columns = find_columns(spec, files.schema, captions)
    super().__init__(spec, files, columns)
    self.notices += large_groups(spec, files, columns.image)


def large_groups(
  spec: Spec, files: 'ParquetFiles', image: str
) -> tuple[str, ...]:
  """Returns a line where row groups are so large that training is slow.

  Raises:
    UsageError: they are too large to be read.
  """
  size = files.largest_group(image)
  advice = 'write them anew with row_group_size=100, or clip-jax data build'
  if size > MAX_CHUNK_BYTES:
    raise spec.error(
      f'row groups have up to {size / 1e9:.1f} GB of images, over the limit of '
      f'{MAX_CHUNK_BYTES / 1e9:.1f}: {advice}'
    )
  if size <= _SLOW_GROUP_BYTES:
    return ()
  return (
    f'data {spec.text!r}: row groups have up to {size / 1e6:,.0f} MB of '
    f'images, which a random record costs to read: {advice}',
  )


class ParquetFiles(ChunkedFiles):
  """Parquet files, whose chunks are their row groups."""

  def __init__(
    self,
    spec: Spec,
    paths: Sequence[str],
    rows: Mapping[str, Sequence[int]] | None = None,
  ):
    """Reads the footer of the first file, and those of files without an index.

    Args:
      rows: the number of rows of each row group, of paths that are indexed.
    Raises:
      UsageError: no file can be read, or too many cannot.
    """
    known = rows or {}
    groups, self.notices = read_each(
      spec, paths, lambda x: known[x] if x in known else row_groups(x)
    )
    self.paths = list(groups)
    counts = list(groups.values())
    self.chunk_rows = np.array([x for rows in counts for x in rows], np.int64)
    self.chunk_files = np.repeat(
      np.arange(len(counts), dtype=np.int32), [len(x) for x in counts]
    )
    first = self.paths[0]
    try:
      self.schema = _footer(
        first, storage.version(first)
      ).schema.to_arrow_schema()
    except DAMAGE as error:
      raise spec.error(f'{first}: {reason_of_damage(error)}') from error

  def largest_group(self, column: str) -> int:
    """Returns the most bytes that a column takes in the first file's groups."""
    path = self.paths[0]
    footer = _footer(path, storage.version(path))
    return max(
      sum(
        max(0, part.total_uncompressed_size)
        for part in _parts(footer.row_group(i), [column])
      )
      for i in range(footer.num_row_groups)
    )

  def read(self, chunk: int, columns: Sequence[str]) -> Chunk:
    file = int(self.chunk_files[chunk])
    path = self.paths[file]
    group = chunk - int(np.searchsorted(self.chunk_files, file))
    rows = int(self.chunk_rows[chunk])
    batches: list[pa.RecordBatch] = []
    reason = ''
    try:
      footer = _footer(path, storage.version(path))
      with storage.open_file(path) as opened:
        for batch in _batches(opened, footer, group, columns, rows):
          batches.append(batch)
    except (FailureError, UsageError) as error:
      if not isinstance(error, CorruptImageError):
        raise
      reason = str(error)
    except DAMAGE as error:
      reason = reason_of_damage(error)
    ends = list(itertools.accumulate(x.num_rows for x in batches))
    where = f'row group {group} of {path}'
    return Chunk(batches, ends, f'{where}: {reason or "it ends before"}')


def row_groups(path: str) -> list[int]:
  """Returns the number of rows of each row group of a Parquet file.

  Raises:
    CorruptImageError: it is no Parquet file, or is damaged.
    FailureError: it is missing, or its store does not answer.
  """
  try:
    footer = _footer(path, storage.version(path))
    rows = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
  except (FailureError, UsageError):
    raise
  except DAMAGE as error:
    raise CorruptImageError(reason_of_damage(error)) from error
  if any(not 0 <= x <= _MAX_ROWS for x in rows) or sum(rows) != footer.num_rows:
    raise CorruptImageError('its footer claims impossible numbers of rows')
  return rows


@functools.lru_cache(maxsize=64)
def _footer(path: str, version: str) -> pq.FileMetaData:
  """Reads the footer of a file; `version` is that of its content."""
  del version
  with storage.open_file(path) as file:
    return pq.read_metadata(file)


def _parts(group: Any, columns: Sequence[str]) -> list[Any]:
  """Returns the parts of a row group that hold some columns."""
  parts = [group.column(i) for i in range(group.num_columns)]
  return [x for x in parts if x.path_in_schema.split('.')[0] in columns]


def _batches(
  file: io.BufferedReader,
  footer: pq.FileMetaData,
  group: int,
  columns: Sequence[str],
  rows: int,
) -> Iterator[pa.RecordBatch]:
  """Decodes the rows of a row group, in batches of bounded size.

  Raises:
    FailureError: the file changed since its rows were counted.
    CorruptImageError: it claims, or takes, more memory than a group may.
  """
  if group >= footer.num_row_groups or footer.row_group(group).num_rows != rows:
    raise FailureError('changed since it was opened: run the command again.')
  parts = _parts(footer.row_group(group), columns)
  dictionary, total = _page_sizes(file, parts)
  row_bytes = max(dictionary, total // max(rows, 1), 1)
  parquet = pq.ParquetFile(file, metadata=footer, pre_buffer=False)
  taken = 0
  for batch in parquet.iter_batches(
    batch_size=min(_BATCH_ROWS, max(1, _BATCH_BYTES // row_bytes)),
    row_groups=[group],
    columns=list(columns),
    use_threads=False,
  ):
    taken += batch.nbytes
    _limit_bytes(taken)
    yield batch


def _limit_bytes(size: int) -> None:
  if size > MAX_CHUNK_BYTES:
    raise CorruptImageError(
      f'it takes over {MAX_CHUNK_BYTES / 2**30:g} GiB: write it in smaller row '
      'groups'
    )


def _page_sizes(
  file: io.BufferedReader, parts: Sequence[Any]
) -> tuple[int, int]:
  """Sums what the pages of columns take, by the pages' own headers.

  Returns:
    The bytes of the largest dictionary, and of all pages together.
  Raises:
    CorruptImageError: it is more than a row group may take.
  """
  largest = total = values = 0
  length = file.seek(0, os.SEEK_END)
  for part in parts:
    start = part.data_page_offset
    if part.has_dictionary_page and 0 < part.dictionary_page_offset < start:
      start = part.dictionary_page_offset
    end = min(start + part.total_compressed_size, length)
    while 0 <= start < end:
      file.seek(start)
      header, size = _page_header(file.read(_HEADER_BYTES))
      unpacked, packed = header.get(2, 0), header.get(3, 0)
      counts = header.get(5) or header.get(7) or header.get(8) or {}
      if unpacked < 0 or packed < 0 or not isinstance(counts, dict):
        raise CorruptImageError('a page claims an impossible size')
      total += unpacked
      if 7 in header:
        largest = max(largest, unpacked)
      else:
        values += max(0, counts.get(1, 0))
      _limit_bytes(total)
      start += size + packed
    if values > _MAX_GROUP_VALUES:
      raise CorruptImageError(
        f'it has over {_MAX_GROUP_VALUES:,} values: write it in smaller row '
        'groups'
      )
    values = 0
  return largest, total


def _page_header(data: bytes) -> tuple[dict[int, Any], int]:
  """Parses a PageHeader in Thrift's compact protocol, as Parquet has it.

  Returns:
    The fields of integers and structs by their ids, and the bytes they take.
  Raises:
    CorruptImageError: it is none.
  """
  reader = _Thrift(data)
  try:
    return reader.struct(), reader.position
  except (IndexError, RecursionError, ValueError) as error:
    raise CorruptImageError('a page has a damaged header') from error


class _Thrift:
  """A cursor over a struct in Thrift's compact protocol."""

  def __init__(self, data: bytes):
    self._data = data
    self.position = 0

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

  def struct(self, depth: int = 0) -> dict[int, Any]:
    """Reads a struct; other fields than numbers and structs are passed over."""
    if depth > 4:
      raise ValueError('too deep')
    fields: dict[int, Any] = {}
    number = 0
    while head := self._byte():
      number = number + (head >> 4) if head >> 4 else self._integer()
      kind = head & 15
      if kind in (1, 2):  # true, false
        continue
      if kind == 3:
        self.position += 1
      elif kind in (4, 5, 6):
        fields[number] = self._integer()
      elif kind == 7:
        self.position += 8
      elif kind == 8:
        length = self._varint()
        self.position += length
      elif kind == 12:
        fields[number] = self.struct(depth + 1)
      else:  # a page's header has no lists
        raise ValueError(f'a field of type {kind}')
    return fields
