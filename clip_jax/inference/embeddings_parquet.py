"""Tables of embeddings as Parquet, written and read by groups of rows.

The columns are `id`, `kind`, `caption`, `embedding` (lists of one length) and
`digest`; what made the table is JSON under `about` in the file's metadata.
"""

import bisect
import collections
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float

from clip_jax.errors import UsageError
from clip_jax.inference.embeddings_table import (
  CHUNK_ROWS,
  DIGEST_BYTES,
  Blocks,
  Contents,
  EmbeddingsTable,
  Entry,
  Extent,
  Rows,
  VectorChunk,
  parse_about,
  reading,
)

_GROUP_BYTES = 8 * 2**20  # of vectors in a group of rows


def pyarrow_parquet():
  """Returns pyarrow and its parquet module, an optional dependency.

  Raises:
    UsageError: it is not installed.
  """
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise UsageError(
      '.parquet needs pyarrow: pip install ".[parquet]", or name a .npz file.'
    ) from error
  return pyarrow, pyarrow.parquet


def write_parquet_table(
  file: IO[bytes], blocks: Blocks, extent: Extent, about: dict[str, Any]
) -> None:
  """Writes a whole table; see `embeddings.write_rows`."""
  arrow, parquet = pyarrow_parquet()
  vector = arrow.list_(arrow.float32(), extent.dims)
  text, digest = arrow.string(), arrow.binary(DIGEST_BYTES)
  schema = arrow.schema(
    {
      'id': text,
      'kind': text,
      'caption': text,
      'embedding': vector,
      'digest': digest,
    },
    metadata={'about': json.dumps(about)},
  )
  # Embeddings and digests do not compress.
  compression = {
    'id': 'snappy', 'kind': 'snappy', 'caption': 'snappy',
    'embedding.list.element': 'none', 'digest': 'none',
  }  # fmt: skip
  with parquet.ParquetWriter(
    file, schema, use_dictionary=['kind'], compression=compression
  ) as writer:
    for rows in _regrouped(blocks(), _GROUP_BYTES):
      values = arrow.array(rows.vectors.ravel(), arrow.float32())
      columns = {
        'id': arrow.array(_utf8(rows.ids), text),
        'kind': arrow.array(rows.kinds, text),
        'caption': arrow.array(_utf8(rows.captions), text),
        'embedding': arrow.FixedSizeListArray.from_arrays(values, type=vector),
        'digest': arrow.array([x.tobytes() for x in rows.digests], digest),
      }
      writer.write_table(arrow.table(columns, schema=schema))


def _regrouped(blocks: Iterable[Rows], least: int) -> Iterator[Rows]:
  """Yields the rows in blocks of at least so many bytes, but for the last."""
  waiting: list[Rows] = []
  for block in blocks:
    waiting.append(block)
    if sum(rows.vectors.nbytes for rows in waiting) >= least:
      yield _joined(waiting)
      waiting = []
  if waiting:
    yield _joined(waiting)


def _joined(blocks: Sequence[Rows]) -> Rows:
  return Rows(
    ids=[key for rows in blocks for key in rows.ids],
    kinds=[kind for rows in blocks for kind in rows.kinds],
    captions=[caption for rows in blocks for caption in rows.captions],
    vectors=np.concatenate([rows.vectors for rows in blocks]),
    digests=np.concatenate([rows.digests for rows in blocks]),
  )


def _utf8(texts: Iterable[str]) -> list[str]:
  """Replaces lone surrogates, as in file names that are not UTF-8."""
  return [text.encode('utf-8', 'backslashreplace').decode() for text in texts]


class ParquetTable(EmbeddingsTable):
  """A table in a Parquet file, whose groups of rows are read when needed."""

  def __init__(self, path: Path):
    arrow, parquet = pyarrow_parquet()
    self.path = path
    self._file = parquet.ParquetFile(path, page_checksum_verification=True)
    schema = self._file.schema_arrow
    for name in ('id', 'kind', 'caption', 'embedding'):
      if name not in schema.names:
        raise UsageError(
          f'{path} has no column {name!r}: name a file that clip-jax embed '
          'wrote.'
        )
    vector = schema.field('embedding').type
    if not arrow.types.is_fixed_size_list(vector) or not (
      arrow.types.is_floating(vector.value_type)
    ):
      raise UsageError(
        f'{path}: embeddings are {vector}, not lists of one size of floats.'
      )
    for name in ('id', 'kind', 'caption'):
      kind = schema.field(name).type
      if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
        raise UsageError(f'{path}: the column {name!r} is {kind}, no text.')
    self.rows, self.dims = self._file.metadata.num_rows, vector.list_size
    self.has_digests = 'digest' in schema.names and (
      schema.field('digest').type == arrow.binary(DIGEST_BYTES)
    )
    self.about = parse_about(path, (schema.metadata or {}).get(b'about'))

  def __exit__(self, *_: object) -> None:
    self._file.close()

  def chunks(self, kind: str | None = None) -> Iterator[VectorChunk]:
    size = self._rows_per_chunk()
    start = 0
    for batch in self._batches(size, ['kind', 'embedding']):
      rows = np.arange(start, start + len(batch))
      start += len(batch)
      values = batch.column('embedding').flatten().to_numpy()
      with reading(self.path):  # a list that is null has no values
        vectors = values.reshape(len(batch), self.dims)
      if kind is not None:
        kinds = batch.column('kind').to_pylist()
        wanted = np.array([name == kind for name in kinds], bool)
        rows, vectors = rows[wanted], vectors[wanted]
      if len(rows):
        yield VectorChunk(rows, vectors.astype(np.float32, copy=False))

  def entries(self, rows: Iterable[int]) -> dict[int, Entry]:
    entries = {}
    for table, start, members in self._groups(rows, ['id', 'kind', 'caption']):
      for row in members:
        values = table.slice(row - start, 1).to_pylist()[0]
        entries[row] = Entry(values['id'], values['kind'], values['caption'])
    return entries

  def contents(self) -> Iterator[Contents]:
    for batch in self._batches(CHUNK_ROWS, ['id', 'kind', 'digest']):
      digests = b''.join(batch.column('digest').to_pylist())
      yield Contents(
        batch.column('id').to_pylist(),
        batch.column('kind').to_pylist(),
        np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES),
      )

  def vectors(self, rows: Sequence[int]) -> Float[np.ndarray, 'n E']:
    vectors = np.empty((len(rows), self.dims), np.float32)
    positions: dict[int, list[int]] = collections.defaultdict(list)
    for position, row in enumerate(rows):
      positions[row].append(position)
    for table, start, members in self._groups(positions, ['embedding']):
      values = table.column('embedding').combine_chunks().flatten().to_numpy()
      with reading(self.path):
        values = values.reshape(table.num_rows, self.dims)
      for row in members:
        vectors[positions[row]] = values[row - start]
    return vectors

  def _groups(
    self, rows: Iterable[int], columns: list[str]
  ) -> Iterator[tuple[Any, int, list[int]]]:
    """Yields each group that has some of the rows, its first row, and which."""
    groups = range(self._file.num_row_groups)
    sizes = [self._file.metadata.row_group(i).num_rows for i in groups]
    starts = np.cumsum([0, *sizes]).tolist()
    wanted: dict[int, list[int]] = collections.defaultdict(list)
    for row in rows:
      wanted[bisect.bisect_right(starts, row) - 1].append(row)
    for group, members in wanted.items():
      with reading(self.path):
        table = self._file.read_row_group(group, columns)
        self._check(table)
      yield table, starts[group], members

  def _batches(self, size: int, columns: list[str]) -> Iterator[Any]:
    with reading(self.path):
      batches = self._file.iter_batches(size, columns=columns)
    while True:
      with reading(self.path):
        batch = next(batches, None)
        if batch is not None:
          self._check(batch)
      if batch is None:
        return
      yield batch

  def _check(self, table: Any) -> None:
    """Refuses a table or batch with nulls, or with text that is none."""
    table.validate(full=True)
    for name in table.schema.names:
      column = table.column(name)
      for part in getattr(column, 'chunks', [column]):
        inner = part.flatten() if name == 'embedding' else part
        if part.null_count or inner.null_count:
          raise ValueError(f'the column {name!r} has a row without a value')

  def count_kinds(self) -> dict[str, int]:
    counts: collections.Counter[str] = collections.Counter()
    for batch in self._batches(CHUNK_ROWS, ['kind']):
      counts.update(batch.column('kind').to_pylist())
    return dict(counts)
