"""The rows of a table of embeddings, as they are written and read.

A row has an id, a kind ('image' or 'text'), a caption (the text itself, or an
image's first caption, or ''), a vector, and a digest of the image's bytes or of
the text. What made the table is JSON beside the rows. `embeddings` writes and
opens the files.
"""

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64, UInt8

from clip_jax.data.sources import Source, open_source
from clip_jax.data.sources.base import DEFAULT_CAPTIONS
from clip_jax.errors import FailureError, UsageError
from clip_jax.files import check_fields, parse_json

DIGEST_BYTES = 16
CHUNK_ROWS = 65_536  # of kinds, and of ids
_CHUNK_BYTES = 32 * 2**20  # of vectors in memory at once
# The errors that numpy and pyarrow raise for damaged bytes; pyarrow raises
# MemoryError where a length is false.
UNREADABLE = (
  OSError, ValueError, LookupError, TypeError, NotImplementedError,
  OverflowError, MemoryError,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rows:
  """A block of N rows."""

  ids: Sequence[str]
  kinds: Sequence[str]
  captions: Sequence[str]
  vectors: Float[np.ndarray, 'N E']  # float32, unit length
  digests: UInt8[np.ndarray, 'N 16']


class Lengths(NamedTuple):
  """Counts the characters of the longest text, and all bytes as UTF-8."""

  longest: int = 0
  size: int = 0

  def extended_by(self, texts: Iterable[str]) -> 'Lengths':
    """Returns the lengths of the texts so far and of these together."""
    longest, size = self
    for text in texts:
      longest = max(longest, len(text))
      size += len(utf8_bytes(text))
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


def utf8_bytes(text: str) -> bytes:
  """Encodes a text as UTF-8, the odd bytes of file names included."""
  return text.encode('utf-8', 'surrogatepass')


class VectorChunk(NamedTuple):
  """Rows of the table, with their vectors."""

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
  """A table of N embeddings in a file.

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
  def chunks(self, kind: str | None = None) -> Iterator[VectorChunk]:
    """Yields all rows in order, or those of one kind, some megabytes each."""

  @abc.abstractmethod
  def entries(self, rows: Iterable[int]) -> dict[int, Entry]:
    """Returns the id, the kind and the caption of some rows."""

  @abc.abstractmethod
  def contents(self) -> Iterator[Contents]:
    """Yields all rows in order, some at a time, where it `has_digests`."""

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

  def _rows_per_chunk(self) -> int:
    return max(1, _CHUNK_BYTES // (4 * max(1, self.dims)))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
  """Makes a FailureError that names the file of what a library raises."""
  try:
    yield
  except (UsageError, FailureError):
    raise
  except UNREADABLE as error:
    raise FailureError(
      f'{path} is damaged: {str(error) or type(error).__name__}. Embed again.'
    ) from error


def parse_about(path: Path, text: str | bytes | None) -> dict[str, Any]:
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
