"""Reads a table of embeddings (see `embeddings`) without holding it in memory.

An .npz is mapped: its arrays lie uncompressed in the file. A .parquet is read
a group of rows at a time.
"""

import abc
import bisect
import collections
import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64, UInt8

from clip_jax.data.sources import Source, open_source
from clip_jax.data.sources.base import DEFAULT_CAPTIONS
from clip_jax.errors import FailureError, UsageError
from clip_jax.files import check_fields, open_regular, parse_json, typed_path
from clip_jax.inference.embeddings import DIGEST_BYTES, pyarrow_parquet
from clip_jax.interop.npz_file import read_array
from clip_jax.interop.zip_archive import ZipArchive

_CHUNK_BYTES = 32 * 2**20  # of vectors in memory at once
_CHUNK_ROWS = 65_536  # of kinds, and of ids


class Chunk(NamedTuple):
  """Rows of one kind, with their vectors."""

  rows: Int64[np.ndarray, ' n']  # their numbers in the table
  vectors: Float[np.ndarray, 'n E']  # float32


class Entry(NamedTuple):
  """The fields of a row beside its vector."""

  id: str
  kind: str
  caption: str


class Contents(NamedTuple):
  """Consecutive rows without their vectors."""

  ids: list[str]
  kinds: list[str]
  digests: UInt8[np.ndarray, 'n 16']


class EmbeddingsTable(contextlib.AbstractContextManager, abc.ABC):
  """N rows in a file.

  Attributes:
    path: the file.
    rows, dims: N and E.
    about: what made it; empty where it does not say.
    has_digests: whether it says what its rows were made of; files of earlier
      versions do not.
  """

  path: Path
  rows: int
  dims: int
  about: dict[str, Any]
  has_digests: bool

  @abc.abstractmethod
  def chunks(self, kind: str | None = None) -> Iterator[Chunk]:
    """Returns all rows in order, or those of one kind, a few megabytes at a
    time.
    """

  @abc.abstractmethod
  def entries(self, rows: Iterable[int]) -> dict[int, Entry]:
    """Returns the id, the kind and the caption of some rows."""

  @abc.abstractmethod
  def contents(self) -> Iterator[Contents]:
    """Returns all rows in order, some at a time, where it `has_digests`."""

  @abc.abstractmethod
  def vectors(self, rows: Sequence[int]) -> Float[np.ndarray, 'n E']:
    """Returns the vectors of some rows, float32; n of them are in memory."""

  @abc.abstractmethod
  def count_kinds(self) -> dict[str, int]:
    """Returns how many rows there are of each kind."""

  def open_images(self) -> Source | None:
    """Opens the images that were embedded; None where it names none.

    Raises:
      UsageError: they are not there any more.
    """
    spec = self.about.get('images')
    captions = self.about.get('captions', DEFAULT_CAPTIONS)
    return open_source(spec, captions=tuple(captions)) if spec else None


def open_embeddings(path: str | os.PathLike) -> EmbeddingsTable:
  """Opens what `clip-jax embed` wrote, in either format, whatever its name.

  Raises:
    UsageError: the file is missing, damaged, or something else.
  """
  path = typed_path(path)
  written = 'name a file that clip-jax embed wrote'
  if not path.is_file():
    what = 'does not exist'
    if path.exists():
      what = 'is a folder' if path.is_dir() else 'is a pipe or a device'
    raise UsageError(f'{path} {what}: {written}.')
  try:
    with open_regular(path) as file:
      head = file.read(4)
    if head[:2] == b'PK':
      return _NpzTable(path)
    if head == b'PAR1':
      return _ParquetTable(path)
    raise ValueError('it is neither an .npz nor a .parquet file')
  except UsageError:
    raise
  except (FailureError, *_UNREADABLE) as error:
    reason = str(error).rstrip('.') or type(error).__name__
    if isinstance(error, FailureError):  # whose message begins with the file
      reason = reason.partition(': ')[2] or reason
    raise UsageError(
      f'{path} is not a table of embeddings, or is damaged: {reason}.'
    ) from error


# What numpy and pyarrow raise for damaged bytes; MemoryError is pyarrow's,
# where a length is false.
_UNREADABLE = (
  OSError, ValueError, LookupError, TypeError, NotImplementedError,
  OverflowError, MemoryError,
)  # fmt: skip


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
  """Makes a FailureError that names the file of what a library raises."""
  try:
    yield
  except (UsageError, FailureError):
    raise
  except _UNREADABLE as error:
    raise FailureError(
      f'{path} is damaged: {str(error) or type(error).__name__}. Embed again.'
    ) from error


def _about(path: Path, text: str | bytes | None) -> dict[str, Any]:
  """Returns what made a table, with its fields of the right types."""
  where = f'{path}, about'
  fields = check_fields(
    where,
    parse_json(text, where) if text else {},
    {},
    {
      'images': str,
      'captions': list,
      'corrupt': dict,
      'truncated': int,
      'model': (str, type(None)),
      'origin': (str, type(None)),
    },
  )
  if not all(isinstance(name, str) for name in fields.get('captions', [])):
    raise FailureError(f"{where}: the field 'captions' holds no names.")
  return fields


class _NpzTable(EmbeddingsTable):
  """A table in an .npz, whose arrays are mapped into memory."""

  def __init__(self, path: Path):
    self.path = path
    arrays = map_arrays(path)
    for name in ('ids', 'kinds', 'captions'):
      utf8, offsets = f'{name}_utf8', f'{name}_offsets'
      if utf8 in arrays and offsets in arrays:
        arrays[name] = _Utf8(path, arrays[utf8], arrays[offsets])
    for name in ('ids', 'kinds', 'captions', 'embeddings'):
      if name not in arrays:
        raise UsageError(
          f'{path} has no array {name!r}: name a file that clip-jax embed '
          'wrote.'
        )
    self._ids, self._kinds = arrays['ids'], arrays['kinds']
    self._captions, self._vectors = arrays['captions'], arrays['embeddings']
    if self._vectors.ndim != 2 or self._vectors.dtype.kind != 'f':
      raise UsageError(
        f'{path}: embeddings are {self._vectors.dtype} '
        f'{list(self._vectors.shape)}, not float32 [N, E].'
      )
    self.rows, self.dims = self._vectors.shape
    for name in ('ids', 'kinds', 'captions'):
      if arrays[name].shape != (self.rows,) or arrays[name].dtype.kind != 'U':
        raise UsageError(
          f'{path}: {name} are {arrays[name].dtype} '
          f'{list(arrays[name].shape)}, not strings [{self.rows}].'
        )
    digests = arrays.get('digests', np.empty(0))
    shape = (self.rows, DIGEST_BYTES)
    self.has_digests = digests.shape == shape and digests.dtype == np.uint8
    self._digests = digests
    about = arrays.get('about', np.array(''))
    self.about = _about(path, str(about) if about.ndim == 0 else 'null')

  def __exit__(self, *_: object) -> None:
    del self._ids, self._kinds, self._captions, self._vectors, self._digests

  def chunks(self, kind: str | None = None) -> Iterator[Chunk]:
    size = max(1, _CHUNK_BYTES // (4 * max(1, self.dims)))
    for start in range(0, self.rows, size):
      stop = min(self.rows, start + size)
      rows = np.arange(start, stop)
      vectors = self._vectors[start:stop]
      if kind is not None:
        wanted = self._kinds[start:stop] == kind
        rows, vectors = rows[wanted], vectors[wanted]
      if len(rows):  # a copy, since the file does not align its arrays
        yield Chunk(rows, np.array(vectors, np.float32))

  def entries(self, rows: Iterable[int]) -> dict[int, Entry]:
    with _reading(self.path):  # numpy's strings may hold invalid characters
      return {
        row: Entry(
          str(self._ids[row]), str(self._kinds[row]), str(self._captions[row])
        )
        for row in rows
      }

  def contents(self) -> Iterator[Contents]:
    for start in range(0, self.rows, _CHUNK_ROWS):
      part = slice(start, start + _CHUNK_ROWS)
      with _reading(self.path):
        ids, kinds = self._ids[part].tolist(), self._kinds[part].tolist()
      yield Contents(ids, kinds, np.array(self._digests[part]))

  def vectors(self, rows: Sequence[int]) -> Float[np.ndarray, 'n E']:
    return np.array(self._vectors[list(rows)], np.float32)

  def count_kinds(self) -> dict[str, int]:
    counts: collections.Counter[str] = collections.Counter()
    with _reading(self.path):
      for start in range(0, self.rows, _CHUNK_ROWS):
        counts.update(self._kinds[start : start + _CHUNK_ROWS].tolist())
    return dict(counts)


class _Utf8:
  """N strings of an .npz that would be mostly padding as numpy has them."""

  dtype = np.dtype(str)

  def __init__(self, path: Path, data: np.ndarray, offsets: np.ndarray):
    if (data.dtype, offsets.dtype) != (np.uint8, np.int64) or not (
      data.ndim == offsets.ndim == 1 <= len(offsets)
    ):
      raise ValueError('its strings are no UTF-8 with offsets')
    self.shape = (len(offsets) - 1,)
    self._path, self._data, self._offsets = path, data, offsets

  def __getitem__(self, row: Any) -> Any:
    if isinstance(row, slice):
      rows = range(*row.indices(self.shape[0]))
      return np.array([self[i] for i in rows], object)
    start, stop = int(self._offsets[row]), int(self._offsets[row + 1])
    try:
      if not 0 <= start <= stop <= len(self._data):
        raise ValueError('a string lies outside of the file')
      return self._data[start:stop].tobytes().decode('utf-8', 'surrogatepass')
    except ValueError as error:
      raise FailureError(f'{self._path} is damaged: {error}.') from error


class _ParquetTable(EmbeddingsTable):
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
    self.about = _about(path, (schema.metadata or {}).get(b'about'))

  def __exit__(self, *_: object) -> None:
    self._file.close()

  def chunks(self, kind: str | None = None) -> Iterator[Chunk]:
    size = max(1, _CHUNK_BYTES // (4 * max(1, self.dims)))
    start = 0
    for batch in self._batches(size, ['kind', 'embedding']):
      rows = np.arange(start, start + len(batch))
      start += len(batch)
      values = batch.column('embedding').flatten().to_numpy()
      with _reading(self.path):  # a list that is null has no values
        vectors = values.reshape(len(batch), self.dims)
      if kind is not None:
        kinds = batch.column('kind').to_pylist()
        wanted = np.array([name == kind for name in kinds], bool)
        rows, vectors = rows[wanted], vectors[wanted]
      if len(rows):
        yield Chunk(rows, vectors.astype(np.float32, copy=False))

  def entries(self, rows: Iterable[int]) -> dict[int, Entry]:
    entries = {}
    for table, start, members in self._groups(rows, ['id', 'kind', 'caption']):
      for row in members:
        values = table.slice(row - start, 1).to_pylist()[0]
        entries[row] = Entry(values['id'], values['kind'], values['caption'])
    return entries

  def contents(self) -> Iterator[Contents]:
    for batch in self._batches(_CHUNK_ROWS, ['id', 'kind', 'digest']):
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
      with _reading(self.path):
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
      with _reading(self.path):
        table = self._file.read_row_group(group, columns)
        self._check(table)
      yield table, starts[group], members

  def _batches(self, size: int, columns: list[str]) -> Iterator[Any]:
    with _reading(self.path):
      batches = self._file.iter_batches(size, columns=columns)
    while True:
      with _reading(self.path):
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
    for batch in self._batches(_CHUNK_ROWS, ['kind']):
      counts.update(batch.column('kind').to_pylist())
    return dict(counts)


def map_arrays(path: Path) -> dict[str, Any]:
  """Returns the arrays of an .npz by name, mapped from the file."""
  archive = ZipArchive(path)
  arrays: dict[str, Any] = {}
  for member, info in archive.members.items():
    name = member.removesuffix('.npy')
    if info.compressed:
      if f'{name}_utf8.npy' in archive.members:
        continue  # which holds the same, and can be mapped
      raise UsageError(
        f'{path} is compressed: write it with clip-jax embed, or with '
        'numpy.savez.'
      )
    # To check the sum, a table of gigabytes would be read before any row.
    arrays[name] = read_array(archive, member, check=False)
  return arrays
