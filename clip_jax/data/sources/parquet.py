"""Reads `parquet:PATTERN`: images and captions in Parquet files.

Opening reads the footers only, or an index of the numbers of rows. Reading one
record decodes its whole row group, of which the last ones are kept
(`columnar.KEPT_BYTES`): with training's random order, of large data, nearly
each record costs one. So small row groups are best, of about a hundred images;
`clip-jax data build` writes shards in which reading a record reads nothing
else.

A file may claim anything: sizes are summed from the headers of the pages
before one is decompressed, and rows are decoded in batches.
"""

import functools
import io
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_jax.data import storage
from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import Spec
from clip_jax.data.sources.arrow_columns import find_columns
from clip_jax.data.sources.columnar import (
  DAMAGE,
  MAX_CHUNK_BYTES,
  Chunk,
  ChunkedFiles,
  ColumnarSource,
  reason_of_damage,
)
from clip_jax.data.sources.parquet_footer import Group, read_footer, sum_pages
from clip_jax.data.sources.parquet_index import read_row_index, row_groups
from clip_jax.data.sources.shard_files import (
  list_files,
  read_each,
  short_names,
  split_of,
)
from clip_jax.errors import FailureError, UsageError

_MAXDAMAGED_FILES = 100  # then the data are refused
_MAX_GROUP_VALUES = 2**24  # of a column
_BATCH_BYTES = 2**26  # that rows which are decoded together may take
_BATCH_ROWS = 4096
# From here on a note says that random records are slow.
_SLOW_GROUP_BYTES = 2**27


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
    self.notices += _splits_together(spec, files.paths)
    self.notices += large_groups(spec, files, columns.image)


def _splits_together(spec: Spec, paths: Sequence[str]) -> tuple[str, ...]:
  """Returns a line where files of training are read with those of a test."""
  splits = sorted({split_of(name) for name in short_names(paths)} - {''})
  if len(splits) < 2:
    return ()
  one = 'train' if 'train' in splits else splits[0]
  return (
    f'data {spec.text!r}: files of the splits {", ".join(splits)} are read '
    f'together: name one in the pattern, or as hf:FOLDER#{one}',
  )


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

  def __init__(self, spec: Spec, paths: Sequence[str]):
    """Reads the footer of the first file, and those of files without an index.

    Raises:
      UsageError: no file can be read, or too many cannot.
    """
    known = read_row_index(paths) if len(paths) > 1 else {}
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
      metadata = _metadata(first, storage.version(first))
      self.schema = metadata.schema.to_arrow_schema()
    except DAMAGE as error:
      raise spec.error(f'{first}: {reason_of_damage(error)}') from error

  def largest_group(self, column: str) -> int:
    """Returns the most bytes that a column takes in the first file's groups."""
    path = self.paths[0]
    groups = read_footer(path, storage.version(path))
    return max(
      sum(part.unpacked for part in group.parts if part.column == column)
      for group in groups
    )

  def read(self, chunk: int, columns: Sequence[str]) -> Chunk:
    file = int(self.chunk_files[chunk])
    path = self.paths[file]
    group = chunk - int(np.searchsorted(self.chunk_files, file))
    rows = int(self.chunk_rows[chunk])
    batches: list[pa.RecordBatch] = []
    reason = ''
    try:
      version = storage.version(path)
      groups = read_footer(path, version)
      if group >= len(groups) or groups[group].rows != rows:
        raise FailureError(
          f'{path} changed since it was opened: run the command again.'
        )
      metadata = _metadata(path, version)
      with storage.open_file(path) as opened:
        _require_columns(columns, groups[group], self.paths[0])
        for batch in _batches(opened, metadata, group, groups[group], columns):
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


@functools.lru_cache(maxsize=64)
def _metadata(path: str, version: str) -> pq.FileMetaData:
  """Reads pyarrow's view of a footer; `version` is that of the content.

  Do not ask it for a column's: it ends the process where fields contradict each
  other.
  """
  del version
  with storage.open_file(path) as file:
    return pq.read_metadata(file)


def _require_columns(names: Sequence[str], group: Group, first: str) -> None:
  """Refuses a file whose columns are others than those of the first.

  Raises:
    CorruptImageError: it lacks a column; the message names it.
  """
  own = list(dict.fromkeys(part.column for part in group.parts))
  for name in names:
    if name not in own:
      raise CorruptImageError(
        f'no column {name!r}, which {first} has (here: {", ".join(own)})'
      )


def _batches(
  file: io.BufferedReader,
  metadata: pq.FileMetaData,
  number: int,
  group: Group,
  columns: Sequence[str],
) -> Iterator[pa.RecordBatch]:
  """Decodes the rows of a row group, in batches of bounded size.

  Raises:
    CorruptImageError: it claims, or takes, more memory than a group may.
  """
  pages = sum_pages(file, (x for x in group.parts if x.column in columns))
  _limit_bytes(pages.unpacked)
  if pages.values > _MAX_GROUP_VALUES:
    raise CorruptImageError(
      f'it has over {_MAX_GROUP_VALUES:,} values: write it in smaller groups'
    )
  # Each row may stand for the largest value of a dictionary.
  row_bytes = max(pages.dictionary, pages.unpacked // max(group.rows, 1), 1)
  parquet = pq.ParquetFile(file, metadata=metadata, pre_buffer=False)
  taken = 0
  for batch in parquet.iter_batches(
    batch_size=min(_BATCH_ROWS, max(1, _BATCH_BYTES // row_bytes)),
    row_groups=[number],
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
