"""Writes a table of embeddings to a file, .npz or .parquet, and opens it.

Both formats are written and read block by block, so that a table may be larger
than memory. `embeddings_table` says what a row is.
"""

import os
import tempfile
from pathlib import Path
from typing import IO, Any

from clip_jax.errors import FailureError, UsageError, reason_of
from clip_jax.files import open_regular, typed_path
from clip_jax.inference.embeddings_npz import NpzTable, write_npz_table
from clip_jax.inference.embeddings_parquet import (
  ParquetTable,
  pyarrow_parquet,
  write_parquet_table,
)
from clip_jax.inference.embeddings_table import (
  UNREADABLE,
  Blocks,
  EmbeddingsTable,
  Extent,
)

SUFFIXES = ('.npz', '.parquet')


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
    write_npz_table(file, blocks, extent, about)
  else:
    write_parquet_table(file, blocks, extent, about)


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
      return NpzTable(path)
    if head == b'PAR1':
      return ParquetTable(path)
    raise ValueError('it is neither an .npz nor a .parquet file')
  except UsageError:
    raise
  except (FailureError, *UNREADABLE) as error:
    reason = str(error).rstrip('.') or type(error).__name__
    if isinstance(error, FailureError):  # whose message begins with the file
      reason = reason.partition(': ')[2] or reason
    raise UsageError(
      f'{path} is not a table of embeddings, or is damaged: {reason}.'
    ) from error
