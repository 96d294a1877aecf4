"""Embeddings in a file: a table of id, kind, caption and vector.

`.npz` holds the arrays `ids`, `kinds`, `captions` (strings [N]), `embeddings`
(float32 [N, E]) and `digests` (uint8 [N, 16]); `.parquet` has the columns `id`,
`kind`, `caption`, `embedding` and `digest`. A kind is 'image' or 'text'; a
text's caption is the text, an image's its first caption, or ''; a digest is of
an image's bytes, or of a text's. What made the file is JSON: the array
`about`, or `about` in Parquet's metadata.

numpy's strings are as wide as the longest of their array. Where that would be
mostly padding, an .npz also holds them as UTF-8, one after another: `ids_utf8`
(uint8) has the i-th from `ids_offsets[i]` to `ids_offsets[i + 1]`, and the same
for captions. The padded array is compressed then, and left out where numpy
would need over `MOST_STRING_BYTES` for it.

Both formats are written block by block, so that a table may be larger than
memory.
"""

import dataclasses
import functools
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from clip_jax.errors import UsageError, reason_of

SUFFIXES = ('.npz', '.parquet')

# The largest array of strings that is written as numpy has it: with one caption
# of a megabyte, a million captions would take four terabytes.
MOST_STRING_BYTES = 2**30
# Padding is accepted up to these bytes, or this many times the strings' own.
_PADDING_BYTES = 32 * 2**20
_PADDING_TIMES = 32
_PIECE_BYTES = 16 * 2**20  # of padded strings in memory at once

_GROUP_BYTES = 8 * 2**20  # of vectors in a Parquet file's group of rows


DIGEST_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Rows:
  """A block of N rows; see the module's docstring."""

  ids: Sequence[str]
  kinds: Sequence[str]
  captions: Sequence[str]
  vectors: Float[np.ndarray, 'N E']  # float32, unit length
  digests: UInt8[np.ndarray, 'N 16']


class Lengths(NamedTuple):
  """Counts the characters of the longest text, and all bytes as UTF-8."""

  longest: int = 0
  size: int = 0

  def and_of(self, texts: Iterable[str]) -> 'Lengths':
    """Returns the lengths of the texts so far and of these together."""
    longest, size = self
    for text in texts:
      longest = max(longest, len(text))
      size += len(_encoded(text))
    return Lengths(longest, size)


@dataclasses.dataclass(frozen=True)
class Extent:
  """The sizes of a table that must be known before its first row is written.

  Attributes:
    rows, dims: N and E.
    ids, captions: how long they are.
  """

  rows: int
  dims: int
  ids: Lengths
  captions: Lengths


Blocks = Callable[[], Iterable[Rows]]  # the same blocks at every call


def check_path(path: Path) -> None:
  """Refuses, before the work, an output that cannot be written.

  Raises:
    UsageError: the suffix is not one of `SUFFIXES`, what writes it is not
      installed, or its folder is missing or cannot be written.
  """
  if path.suffix.lower() not in SUFFIXES:
    raise UsageError(f'{path}: the name must end in {" or ".join(SUFFIXES)}.')
  if path.suffix.lower() == '.parquet':
    pyarrow_parquet()
  if not path.parent.is_dir():
    raise UsageError(f'{path}: there is no folder {path.parent}.')
  if path.is_dir():
    raise UsageError(f'{path} is a folder: name a file.')
  try:
    tempfile.TemporaryFile(dir=path.parent).close()
  except OSError as error:
    reason = reason_of(error)
    raise UsageError(
      f'{path}: the folder {path.parent} cannot be written ({reason}).'
    ) from error


def write_rows(
  file: IO[bytes],
  suffix: str,
  blocks: Blocks,
  extent: Extent,
  about: dict[str, Any],
) -> None:
  """Writes a whole table, a block at a time.

  Args:
    file: opened for writing.
    suffix: one of `SUFFIXES`.
    blocks: gives the rows; called once or more for each array of an .npz.
    extent: of all the blocks together.
    about: what made them, as JSON has it.
  """
  if suffix == '.npz':
    _write_npz(file, blocks, extent, about)
  else:
    _write_parquet(file, blocks, extent, about)


def _write_npz(
  file: IO[bytes], blocks: Blocks, extent: Extent, about: dict[str, Any]
) -> None:
  text = np.array(json.dumps(about))
  kinds = Lengths().and_of(('image', 'text'))
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
  """Returns one column of strings, block by block."""
  return (getattr(rows, name) for rows in blocks())


def _write_strings(
  archive: zipfile.ZipFile,
  name: str,
  count: int,
  lengths: Lengths,
  columns: Callable[[], Iterator[Sequence[str]]],
) -> None:
  """Writes a column as numpy has it, and as UTF-8 where that is mostly
  padding.
  """
  dtype = np.dtype(f'<U{max(1, lengths.longest)}')
  padded = count * dtype.itemsize
  wasteful = padded > max(_PADDING_BYTES, _PADDING_TIMES * lengths.size)
  if wasteful:
    encoded = ([_encoded(x) for x in column] for column in columns())
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
    sizes = [len(_encoded(text)) for text in column]
    ends = end + np.cumsum(sizes, dtype='<i8')
    yield ends
    end = ends[-1] if len(ends) else end


def _encoded(text: str) -> bytes:
  """Encodes a text as UTF-8, the odd bytes of file names included."""
  return text.encode('utf-8', 'surrogatepass')


def _write_array(
  archive: zipfile.ZipFile,
  name: str,
  dtype: np.dtype,
  shape: tuple[int, ...],
  arrays: Iterable[np.ndarray],
  *,
  compress: bool = False,
) -> None:
  """Writes one member as numpy.savez does, but without a date, so that the
  same rows are the same bytes.
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


def _write_parquet(
  file: IO[bytes], blocks: Blocks, extent: Extent, about: dict[str, Any]
) -> None:
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
