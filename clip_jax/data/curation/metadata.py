"""Reads the metadata of pairs, an image or its URL with a text, from Parquet.

Which column is what is told by its name, as img2dataset, LAION, DataComp and
`clip-jax embed` write them, or by the user.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_jax.data import storage
from clip_jax.data.curation.rows import POSITION
from clip_jax.errors import FailureError, UsageError, first_few, reason_of

# The names, in lower case, under which a column of each purpose is looked for;
# the first that a table has is taken.
NAMES = {
  'text': ('caption', 'text', 'alt_text', 'alt', 'title'),
  'image': ('url', 'image_url', 'image', 'image_path', 'path'),
  'id': ('uid', 'id', 'key'),
  'width': ('original_width', 'width'),
  'height': ('original_height', 'height'),
  'score': (
    'similarity', 'clip_score', 'clip_l14_similarity_score',
    'clip_b32_similarity_score',
  ),
  'hash': ('sha256',),
  'embedding': ('embedding',),
}  # fmt: skip
_SPAN_ROWS = 2**15  # that one task reads at least
_MAX_SPANS = 2048
# The most rows, and roughly the most bytes, that are read at a time.
_BATCH_ROWS, _BATCH_BYTES = 8192, 2**26
_MAX_GROUP_ROWS = 2**31
# The errors that pyarrow raises on damaged files.
_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError)


@dataclasses.dataclass(frozen=True)
class MetadataColumns:
  """The names of the columns that are used; None where there is none."""

  text: str
  image: str | None
  id: str | None
  width: str | None
  height: str | None
  score: str | None
  hash: str | None
  embedding: str | None


@dataclasses.dataclass(frozen=True)
class Span:
  """Rows that one task reads.

  Attributes:
    path, version: the file, and what changes with its content.
    groups: for each of its row groups that is read, its number and which of its
      rows, from and to.
    position: of the first row among those of all files.
  """

  path: str
  version: str
  groups: tuple[tuple[int, int, int], ...]
  position: int


@dataclasses.dataclass(frozen=True)
class Metadata:
  """The files of a collection's metadata.

  Attributes:
    schema: of the first file; the others are cast to it.
    columns: what the columns are.
    spans: of all rows.
    rows: how many there are.
    corrupt: path to reason, of files that cannot be read.
  """

  schema: pa.Schema
  columns: MetadataColumns
  spans: list[Span]
  rows: int
  corrupt: dict[str, str]


def open_metadata(
  patterns: Sequence[str],
  names: dict[str, str],
  max_corrupt: int,
) -> Metadata:
  """Reads the footers of Parquet files.

  Args:
    patterns: paths, folders, or patterns of `storage.expand`.
    names: columns that the user names, by the keys of NAMES.
    max_corrupt: files that may be unreadable.
  Raises:
    UsageError: there is no file, or a column is missing.
    FailureError: too many files cannot be read.
  """
  paths = [path for pattern in patterns for path in _parquet_files(pattern)]
  corrupt: dict[str, str] = {}
  files: list[tuple[str, str, list[int]]] = []
  schema = None
  for path in dict.fromkeys(paths):
    try:
      with storage.open_file(path) as file:
        footer = pq.ParquetFile(file).metadata
        rows = [
          footer.row_group(i).num_rows for i in range(footer.num_row_groups)
        ]
        file_schema = footer.schema.to_arrow_schema()
      if any(not 0 <= x <= _MAX_GROUP_ROWS for x in rows):
        raise ValueError('its footer claims more rows than it can have')
    except (*_DAMAGE, FailureError) as error:
      if isinstance(error, FailureError) and storage.is_remote(path):
        raise
      corrupt[path] = f'no Parquet file: {error}'
      check_corrupt(corrupt, max_corrupt)
      continue
    schema = schema or _plain(file_schema)
    missing = [x for x in schema.names if x not in file_schema.names]
    if missing:
      raise UsageError(
        f'{path} has no column {missing[0]!r}, which {files[0][0]} has: '
        'curate files of one kind together.'
      )
    files.append((path, storage.version(path), rows))
  if schema is None:
    reasons = [f'{path}: {reason}' for path, reason in corrupt.items()]
    raise FailureError(f'no file can be read: {first_few(reasons)}')
  total = sum(sum(rows) for _, _, rows in files)
  if not total:
    raise UsageError(f'no row in {first_few([path for path, _, _ in files])}.')
  return Metadata(
    schema,
    find_columns(schema, names),
    list(_make_spans(files, max(_SPAN_ROWS, -(-total // _MAX_SPANS)))),
    total,
    corrupt,
  )


def _plain(schema: pa.Schema) -> pa.Schema:
  """Returns a schema without dictionaries, which differ from batch to batch."""
  return pa.schema(
    field.with_type(field.type.value_type)
    if pa.types.is_dictionary(field.type)
    else field
    for field in schema
  )


def find_columns(schema: pa.Schema, names: dict[str, str]) -> MetadataColumns:
  """Returns which column is what.

  Raises:
    UsageError: one that the user names is missing, or there is no text.
  """
  lower = {name.lower(): name for name in reversed(schema.names)}
  columns: dict[str, str | None] = {}
  for what, known in NAMES.items():
    name = names.get(what)
    if name is not None and name not in schema.names:
      raise UsageError(
        f'--{what}_column={name}: the columns are {first_few(schema.names)}.'
      )
    columns[what] = name or next((lower[x] for x in known if x in lower), None)
  text = columns.pop('text')
  if text is None:
    raise UsageError(
      f'no column of texts among {first_few(schema.names)}: name it by '
      '--text_column.'
    )
  kind = schema.field(text).type
  if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
    raise UsageError(f'the column {text!r} holds {kind}, not texts.')
  return MetadataColumns(text=text, **columns)


def _parquet_files(pattern: str) -> list[str]:
  """Returns the files that a pattern stands for; of a folder all below it.

  Raises:
    UsageError: there are none.
  """
  files: list[str] = []
  for path in storage.expand(pattern):
    if not storage.is_folder(path):
      files.append(path)
      continue
    inside = storage.list_folder(path)
    files += [storage.join(path, x) for x in inside if x.endswith('.parquet')]
    for name in inside:
      if name.endswith('/') and not name.startswith(('.', '_')):
        files += _parquet_files(storage.join(path, name.rstrip('/')))
  if not files:
    raise UsageError(f'no .parquet file in {pattern}.')
  return files


def _make_spans(
  files: Sequence[tuple[str, str, list[int]]], limit: int
) -> Iterator[Span]:
  """Yields spans of at most `limit` rows, in the order of files and rows."""
  position = 0
  for path, version, group_rows in files:
    groups: list[tuple[int, int, int]] = []
    begun = 0
    for group, rows in enumerate(group_rows):
      start = 0
      while start < rows:
        end = min(rows, start + limit - begun)
        groups.append((group, start, end))
        begun += end - start
        start = end
        if begun == limit:
          yield Span(path, version, tuple(groups), position)
          position += begun
          groups, begun = [], 0
    if groups:
      yield Span(path, version, tuple(groups), position)
      position += begun


def read_span(
  span: Span, schema: pa.Schema, corrupt: dict[str, str], max_corrupt: int
) -> Iterator[pa.RecordBatch]:
  """Yields the rows of a span, with a column of their positions.

  A row group that cannot be read is left out and named.

  Args:
    schema: that of the first file.
    corrupt: gets the name of a row group and the reason.
    max_corrupt: row groups that may be unreadable.
  Raises:
    FailureError: there are more of these, or a remote file is missing or its
      store does not answer.
  """
  whole = schema.append(pa.field(POSITION, pa.int64()))
  position = span.position
  for group, start, end in span.groups:
    try:
      with storage.open_file(span.path) as file:
        parquet = pq.ParquetFile(file, pre_buffer=False)
        batches = parquet.iter_batches(
          _batch_rows(parquet, group), [group], schema.names
        )
        first = 0
        for batch in batches:
          lower, upper = max(start - first, 0), min(end - first, batch.num_rows)
          if lower < upper:
            rows = batch.slice(lower, upper - lower)
            yield _as_schema(rows, whole, position + first + lower - start)
          first += batch.num_rows
          if first >= end:
            break
        if first < end:
          raise ValueError(f'{first:,} rows, and its footer says more')
    except _DAMAGE as error:
      # A row group that its store does not give may be there the next time.
      if isinstance(error, FailureError) and storage.is_remote(span.path):
        raise
      reason = reason_of(error) if isinstance(error, OSError) else str(error)
      corrupt[f'{span.path}, row group {group}'] = reason
      check_corrupt(corrupt, max_corrupt)
    position += end - start


def _batch_rows(parquet: pq.ParquetFile, group: int) -> int:
  """Returns how many rows of a row group are read at a time."""
  about = parquet.metadata.row_group(group)
  row_bytes = max(1, about.total_byte_size // max(1, about.num_rows))
  return max(1, min(_BATCH_ROWS, _BATCH_BYTES // row_bytes))


def _as_schema(
  batch: pa.RecordBatch, schema: pa.Schema, position: int
) -> pa.RecordBatch:
  columns = [
    batch.column(field.name).cast(field.type) for field in list(schema)[:-1]
  ]
  positions = np.arange(position, position + batch.num_rows)
  return pa.RecordBatch.from_arrays(
    [*columns, pa.array(positions)], schema=schema
  )


def check_corrupt(corrupt: dict[str, str], max_corrupt: int) -> None:
  """Refuses metadata of which too much cannot be read.

  Args:
    corrupt: the reason by the name of a file, a row group or an image.
  Raises:
    FailureError: there are over `max_corrupt`; it names the first.
  """
  if len(corrupt) > max_corrupt:
    name, reason = next(iter(corrupt.items()))
    raise FailureError(
      f'over --max_corrupt={max_corrupt} files, row groups or images cannot be '
      f'read: {name}: {reason}'
    )


def first_width(metadata: Metadata, column: str) -> int:
  """Returns the width of the first embedding in a column of lists."""
  for span in metadata.spans:
    for batch in read_span(span, metadata.schema, {}, 1):
      lengths = batch.column(column).value_lengths().drop_null()
      if len(lengths):
        return lengths[0].as_py()
  raise UsageError(f'the column {column!r} has no embedding.')
