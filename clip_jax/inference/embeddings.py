"""Embeddings in a file: a table of id, kind, caption and vector.

`.npz` holds the arrays `ids`, `kinds`, `captions` (strings [N]) and
`embeddings` (float32 [N, E]); `.parquet` has the columns `id`, `kind`,
`caption` and `embedding`. A kind is 'image' or 'text'; a text's caption is the
text, an image's its first caption, or ''.
"""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Float

from clip_jax.errors import FailureError, UsageError

SUFFIXES = ('.npz', '.parquet')


@dataclasses.dataclass(frozen=True)
class Embeddings:
  """N rows; see the module's docstring."""

  ids: Sequence[str]
  kinds: Sequence[str]
  captions: Sequence[str]
  vectors: Float[np.ndarray, 'N E']  # float32, unit length


class EmbeddingsFile:
  """A context manager that puts a file in its place whole, or not at all.

  It is opened before the work, so that an output that cannot be written is
  refused at the start.
  """

  def __init__(self, path: str | os.PathLike):
    """Opens nothing yet.

    Raises:
      UsageError: the suffix is not one of `SUFFIXES`, or what writes it is
        not installed.
    """
    self._path = Path(os.path.expanduser(path))
    self._suffix = self._path.suffix.lower()
    if self._suffix not in SUFFIXES:
      raise UsageError(
        f'{self._path}: the name must end in {" or ".join(SUFFIXES)}.'
      )
    if self._suffix == '.parquet':
      _parquet()
    self._temporary = self._path.with_name(
      f'.{self._path.name}.{os.getpid()}.part'
    )

  def __enter__(self) -> 'EmbeddingsFile':
    folder = self._path.parent
    if not folder.is_dir():
      raise UsageError(f'{self._path}: there is no folder {folder}.')
    if self._path.is_dir():
      raise UsageError(f'{self._path} is a folder: name a file.')
    try:
      self._temporary.touch()
    except OSError as error:
      reason = (error.strerror or str(error)).lower()
      raise UsageError(
        f'{self._path}: the folder {folder} cannot be written ({reason}).'
      ) from error
    return self

  def write(self, table: Embeddings) -> None:
    """Writes all rows and moves the file into place.

    Raises:
      FailureError: it cannot be written, as where the disk is full.
    """
    try:
      if self._suffix == '.npz':
        _write_npz(self._temporary, table)
      else:
        _write_parquet(self._temporary, table)
      os.replace(self._temporary, self._path)
    except OSError as error:
      raise FailureError(
        f'{self._path} could not be written: '
        f'{(error.strerror or str(error)).lower()}.'
      ) from error

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    with contextlib.suppress(OSError):
      self._temporary.unlink(missing_ok=True)


def _write_npz(path: Path, table: Embeddings) -> None:
  with open(path, 'wb') as file:
    np.savez(
      file,
      ids=np.array(table.ids, dtype=np.str_),
      kinds=np.array(table.kinds, dtype=np.str_),
      captions=np.array(table.captions, dtype=np.str_),
      embeddings=table.vectors,
    )


def _write_parquet(path: Path, table: Embeddings) -> None:
  arrow, parquet = _parquet()
  width = table.vectors.shape[1]
  vectors = arrow.FixedSizeListArray.from_arrays(
    arrow.array(table.vectors.ravel()), width
  )
  columns = {
    'id': arrow.array(table.ids, arrow.string()),
    'kind': arrow.array(table.kinds, arrow.string()),
    'caption': arrow.array(table.captions, arrow.string()),
    'embedding': vectors,
  }
  parquet.write_table(arrow.table(columns), path)


def _parquet():
  """pyarrow and its parquet module; an extra, so imported where needed."""
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise UsageError(
      'writing .parquet needs pyarrow: pip install "clip-jax[parquet]", or '
      'name a .npz file.'
    ) from error
  return pyarrow, pyarrow.parquet
