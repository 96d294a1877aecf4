"""Embeddings in a file: a table of id, kind, caption and vector.

`.npz` holds the arrays `ids`, `kinds`, `captions` (strings [N]) and
`embeddings` (float32 [N, E]); `.parquet` has the columns `id`, `kind`,
`caption` and `embedding`. A kind is 'image' or 'text'; a text's caption is the
text, an image's its first caption, or ''. What made the file is JSON: the
array `about`, or `about` in Parquet's metadata.

Both are written block by block, so that a table may be larger than memory.
"""

import dataclasses
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float

from clip_jax.errors import FailureError, UsageError

SUFFIXES = ('.npz', '.parquet')

# Strings of an .npz are as wide as the longest, so that one caption of a
# megabyte among a million would make a file of four terabytes.
MOST_STRING_BYTES = 4 * 2**30

_GROUP_BYTES = 8 * 2**20  # of vectors in a Parquet file's group of rows


@dataclasses.dataclass(frozen=True)
class Rows:
  """A block of N rows; see the module's docstring."""

  ids: Sequence[str]
  kinds: Sequence[str]
  captions: Sequence[str]
  vectors: Float[np.ndarray, 'N E']  # float32, unit length


@dataclasses.dataclass(frozen=True)
class Extent:
  """What must be known of a table before its first row is written.

  Attributes:
    rows, dims: N and E.
    id_width, caption_width: characters of the longest.
  """

  rows: int
  dims: int
  id_width: int
  caption_width: int


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
    reason = (error.strerror or str(error)).lower()
    raise UsageError(
      f'{path}: the folder {path.parent} cannot be written ({reason}).'
    ) from error


def check_extent(path: Path, extent: Extent) -> None:
  """Refuses an .npz that long strings would make absurdly large.

  Raises:
    FailureError: it would be; `.parquet` holds strings of any length.
  """
  widths = extent.id_width + extent.caption_width
  size = 4 * extent.rows * widths
  if path.suffix.lower() == '.npz' and size > MOST_STRING_BYTES:
    raise FailureError(
      f'{path}: ids and captions of up to {widths:,} characters would take '
      f'{size / 2**30:,.1f} GiB in {extent.rows:,} rows of an .npz, where all '
      f'are as wide as the longest; name {path.with_suffix(".parquet")}.'
    )


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
    blocks: gives the rows; called once for each array of an .npz.
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
  kinds = max(map(len, ('image', 'text')))
  text = np.array(json.dumps(about))
  strings = {
    'ids': (extent.id_width, lambda rows: rows.ids),
    'kinds': (kinds, lambda rows: rows.kinds),
    'captions': (extent.caption_width, lambda rows: rows.captions),
  }
  with zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
    _write_array(archive, 'about', text.dtype, (), [text])
    for name, (width, column) in strings.items():
      dtype = np.dtype(f'<U{max(1, width)}')
      arrays = (np.array(column(rows), dtype) for rows in blocks())
      _write_array(archive, name, dtype, (extent.rows,), arrays)
    dtype = np.dtype('<f4')
    arrays = (rows.vectors.astype(dtype, copy=False) for rows in blocks())
    shape = (extent.rows, extent.dims)
    _write_array(archive, 'embeddings', dtype, shape, arrays)


def _write_array(
  archive: zipfile.ZipFile,
  name: str,
  dtype: np.dtype,
  shape: tuple[int, ...],
  arrays: Iterable[np.ndarray],
) -> None:
  """One member, as numpy.savez writes it; without a date, so that the same
  rows are the same bytes.
  """
  header = {
    'descr': np.lib.format.dtype_to_descr(dtype),
    'fortran_order': False,
    'shape': shape,
  }
  member = zipfile.ZipInfo(f'{name}.npy')
  with archive.open(member, 'w', force_zip64=True) as file:
    np.lib.format.write_array_header_1_0(file, header)
    for array in arrays:
      file.write(array.tobytes())


def _write_parquet(
  file: IO[bytes], blocks: Blocks, extent: Extent, about: dict[str, Any]
) -> None:
  arrow, parquet = pyarrow_parquet()
  vector = arrow.list_(arrow.float32(), extent.dims)
  text = arrow.string()
  schema = arrow.schema(
    {'id': text, 'kind': text, 'caption': text, 'embedding': vector},
    metadata={'about': json.dumps(about)},
  )
  # Embeddings are noise to a compressor.
  compression = {
    'id': 'snappy', 'kind': 'snappy', 'caption': 'snappy',
    'embedding.list.element': 'none',
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
      }
      writer.write_table(arrow.table(columns, schema=schema))


def _regrouped(blocks: Iterable[Rows], least: int) -> Iterator[Rows]:
  """The same rows in blocks of at least so many bytes, but for the last."""
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
  )


def _utf8(texts: Iterable[str]) -> list[str]:
  """Without lone surrogates, as in file names that are not UTF-8."""
  return [text.encode('utf-8', 'backslashreplace').decode() for text in texts]


def pyarrow_parquet():
  """pyarrow and its parquet module; an extra, so imported where needed.

  Raises:
    UsageError: it is not installed.
  """
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise UsageError(
      '.parquet needs pyarrow: pip install "clip-jax[parquet]", or name a '
      '.npz file.'
    ) from error
  return pyarrow, pyarrow.parquet
