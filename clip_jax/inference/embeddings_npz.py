"""Tables of embeddings as .npz: written block by block, and mapped to be read.

The arrays are `ids`, `kinds`, `captions` (strings [N]), `embeddings` (float32
[N, E]), `digests` (uint8 [N, 16]) and `about` (JSON).

numpy's strings are as wide as the longest of their array. Where that would be
mostly padding, an .npz also holds them as UTF-8, one after another: `ids_utf8`
(uint8) has the i-th from `ids_offsets[i]` to `ids_offsets[i + 1]`, and the same
for captions. The padded array is compressed then, and left out where numpy
would need over `MOST_STRING_BYTES` for it.
"""

import collections
import functools
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float

from clip_jax.errors import FailureError, UsageError
from clip_jax.inference.embeddings_table import (
  CHUNK_ROWS,
  DIGEST_BYTES,
  Blocks,
  Contents,
  EmbeddingsTable,
  Entry,
  Extent,
  Lengths,
  VectorChunk,
  parse_about,
  reading,
  utf8_bytes,
)
from clip_jax.interop.npz_file import read_array
from clip_jax.interop.zip_archive import ZipArchive

# The largest array of strings that is written as numpy has it: with one caption
# of a megabyte, a million captions would take four terabytes.
MOST_STRING_BYTES = 2**30
# Padding is accepted up to these bytes, or this many times the strings' own.
_PADDING_BYTES = 32 * 2**20
_PADDING_TIMES = 32
_PIECE_BYTES = 16 * 2**20  # of padded strings in memory at once


def write_npz_table(
  file: IO[bytes], blocks: Blocks, extent: Extent, about: dict[str, Any]
) -> None:
  """Writes a whole table; see `embeddings.write_rows`."""
  text = np.array(json.dumps(about))
  kinds = Lengths().extended_by(('image', 'text'))
  count = extent.rows
  with zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
    _write_array(archive, 'about', text.dtype, (), [text])
    for name, lengths in (
      ('ids', extent.ids),
      ('kinds', Lengths(kinds.longest, count * kinds.size)),
      ('captions', extent.captions),
    ):
      columns = functools.partial(_columns, blocks, name)
      _write_strings(archive, name, count, lengths, columns)
    arrays = (rows.digests for rows in blocks())
    shape = (count, DIGEST_BYTES)
    _write_array(archive, 'digests', np.dtype(np.uint8), shape, arrays)
    dtype = np.dtype('<f4')
    arrays = (rows.vectors.astype(dtype, copy=False) for rows in blocks())
    _write_array(archive, 'embeddings', dtype, (count, extent.dims), arrays)


def _columns(blocks: Blocks, name: str) -> Iterator[Sequence[str]]:
  """Yields one column of strings, block by block."""
  return (getattr(rows, name) for rows in blocks())


def _write_strings(
  archive: zipfile.ZipFile,
  name: str,
  count: int,
  lengths: Lengths,
  columns: Callable[[], Iterator[Sequence[str]]],
) -> None:
  """Writes a column as numpy has it, and as UTF-8 where padding prevails."""
  dtype = np.dtype(f'<U{max(1, lengths.longest)}')
  padded = count * dtype.itemsize
  wasteful = padded > max(_PADDING_BYTES, _PADDING_TIMES * lengths.size)
  if wasteful:
    encoded = ([utf8_bytes(x) for x in column] for column in columns())
    arrays = (np.frombuffer(b''.join(x), np.uint8) for x in encoded)
    shape, byte = (lengths.size,), np.dtype(np.uint8)
    _write_array(archive, f'{name}_utf8', byte, shape, arrays)
    offset = np.dtype('<i8')
    arrays = _offsets(columns())
    _write_array(archive, f'{name}_offsets', offset, (count + 1,), arrays)
  if not wasteful or padded <= MOST_STRING_BYTES:
    step = max(1, _PIECE_BYTES // dtype.itemsize)
    arrays = (
      np.array(column[i : i + step], dtype)
      for column in columns()
      for i in range(0, len(column), step)
    )
    _write_array(archive, name, dtype, (count,), arrays, compress=wasteful)


def _offsets(columns: Iterator[Sequence[str]]) -> Iterator[np.ndarray]:
  """Yields where each string begins among the UTF-8 of all, and the end."""
  end = 0
  yield np.array([0], '<i8')
  for column in columns:
    sizes = [len(utf8_bytes(text)) for text in column]
    ends = end + np.cumsum(sizes, dtype='<i8')
    yield ends
    end = ends[-1] if len(ends) else end


def _write_array(
  archive: zipfile.ZipFile,
  name: str,
  dtype: np.dtype,
  shape: tuple[int, ...],
  arrays: Iterable[np.ndarray],
  *,
  compress: bool = False,
) -> None:
  """Writes one member as numpy.savez does, but without a date.

  So the same rows are the same bytes.
  """
  header = {
    'descr': np.lib.format.dtype_to_descr(dtype),
    'fortran_order': False,
    'shape': shape,
  }
  member = zipfile.ZipInfo(f'{name}.npy')
  if compress:
    member.compress_type = zipfile.ZIP_DEFLATED
  with archive.open(member, 'w', force_zip64=True) as file:
    np.lib.format.write_array_header_1_0(file, header)
    for array in arrays:
      file.write(array.tobytes())


class NpzTable(EmbeddingsTable):
  """A table in an .npz, whose arrays are mapped into memory."""

  def __init__(self, path: Path):
    self.path = path
    arrays = map_arrays(path)
    for name in ('ids', 'kinds', 'captions'):
      utf8, offsets = f'{name}_utf8', f'{name}_offsets'
      if utf8 in arrays and offsets in arrays:
        arrays[name] = _Utf8Strings(path, arrays[utf8], arrays[offsets])
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
    self.about = parse_about(path, str(about) if about.ndim == 0 else 'null')

  def __exit__(self, *_: object) -> None:
    del self._ids, self._kinds, self._captions, self._vectors, self._digests

  def chunks(self, kind: str | None = None) -> Iterator[VectorChunk]:
    size = self._rows_per_chunk()
    for start in range(0, self.rows, size):
      stop = min(self.rows, start + size)
      rows = np.arange(start, stop)
      vectors = self._vectors[start:stop]
      if kind is not None:
        wanted = self._kinds[start:stop] == kind
        rows, vectors = rows[wanted], vectors[wanted]
      if len(rows):  # a copy, since the file does not align its arrays
        yield VectorChunk(rows, np.array(vectors, np.float32))

  def entries(self, rows: Iterable[int]) -> dict[int, Entry]:
    with reading(self.path):  # numpy's strings may hold invalid characters
      return {
        row: Entry(
          str(self._ids[row]), str(self._kinds[row]), str(self._captions[row])
        )
        for row in rows
      }

  def contents(self) -> Iterator[Contents]:
    for start in range(0, self.rows, CHUNK_ROWS):
      part = slice(start, start + CHUNK_ROWS)
      with reading(self.path):
        ids, kinds = self._ids[part].tolist(), self._kinds[part].tolist()
      yield Contents(ids, kinds, np.array(self._digests[part]))

  def vectors(self, rows: Sequence[int]) -> Float[np.ndarray, 'n E']:
    return np.array(self._vectors[list(rows)], np.float32)

  def count_kinds(self) -> dict[str, int]:
    counts: collections.Counter[str] = collections.Counter()
    with reading(self.path):
      for start in range(0, self.rows, CHUNK_ROWS):
        counts.update(self._kinds[start : start + CHUNK_ROWS].tolist())
    return dict(counts)


class _Utf8Strings:
  """An array of N strings that an .npz holds as UTF-8, without padding."""

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
