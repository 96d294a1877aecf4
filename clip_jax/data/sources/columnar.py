"""Records of Arrow columns, which Parquet files and Arrow files hold.

Rows lie in chunks (row groups, or record batches), of which a few are kept
decoded. Nothing that a file says is believed: types are checked at the door,
and a value that cannot be read is a corrupt record.
"""

import abc
import collections
import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from clip_jax.data import storage
from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import Record, Source, Spec
from clip_jax.data.sources.arrow_columns import (
  Columns,
  image_in,
  is_text,
  texts_in,
)
from clip_jax.data.sources.columns import Captions, captions_of, words
from clip_jax.data.sources.shard_files import short_names

# Decoded chunks of a source that a process keeps; one is kept at least.
KEPT_BYTES = 2**28
# More is not decoded for one record, and may be a bomb.
MAX_CHUNK_BYTES = 2**30
# The errors that pyarrow raises for damaged files, which share no base class.
DAMAGE = (
  pa.ArrowException, OSError, ValueError, TypeError, EOFError, LookupError,
  OverflowError, MemoryError,
)  # fmt: skip
# Names of labels are numbered after reading all of them, up to so many rows.
_LABELLED_ROWS = 10_000_000


class Chunk(NamedTuple):
  """The rows of a chunk that could be read.

  Attributes:
    batches: consecutive rows.
    ends: the number of rows up to the end of each batch.
    reason: why the rows after these cannot be read, or ''.
  """

  batches: list[pa.RecordBatch]
  ends: list[int]
  reason: str = ''

  def row(self, index: int) -> dict[str, Any]:
    """Returns the values of a row by column.

    Raises:
      CorruptImageError: it cannot be read.
    """
    position = np.searchsorted(self.ends, index, side='right')
    if position == len(self.batches):
      raise CorruptImageError(self.reason or 'the row is not there')
    batch = self.batches[position]
    first = self.ends[position] - batch.num_rows
    values = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
      try:
        values[name] = column[index - first].as_py()
      except (ValueError, pa.ArrowException) as error:
        raise CorruptImageError(f'column {name}: {error}') from error
    return values


class ChunkedFiles(abc.ABC):
  """Files of one schema, whose rows are read chunk by chunk.

  Attributes:
    schema: of the first file.
    paths: the files that could be opened, in the order of their rows.
    chunk_rows: int64 [chunks], the number of rows of each, file by file.
    chunk_files: int32 [chunks], the file that each is in.
    notices: lines about files that were left out.
  """

  schema: pa.Schema
  paths: list[str]
  chunk_rows: np.ndarray
  chunk_files: np.ndarray
  notices: tuple[str, ...] = ()

  @abc.abstractmethod
  def read(self, chunk: int, columns: Sequence[str]) -> Chunk:
    """Reads some columns of a chunk.

    Raises:
      FailureError: its store does not answer.
    """


class ColumnarSource(Source):
  """Records of files with columns; the id is the file's name and the row."""

  def __init__(self, spec: Spec, files: ChunkedFiles, columns: Columns):
    """Reads nothing but, where labels are names, their column.

    Raises:
      UsageError: there are no rows.
    """
    self.spec = spec.text
    self.notices = tuple(f'data {spec.text!r}: {x}' for x in files.notices)
    self.columns = columns
    self.label_names = columns.label_names
    self._files = files
    self._ends = np.cumsum(files.chunk_rows, dtype=np.int64)
    if not len(self):
      raise spec.error('no rows')
    first = np.searchsorted(files.chunk_files, np.arange(len(files.paths)))
    starts = np.concatenate([[0], self._ends])
    self._file_starts = starts[first]
    self._names = short_names(files.paths)
    self._kept = _Kept()
    self._numbers: dict[str, int] | None = None
    if columns.label and self.label_names is None:
      self._number_labels()
    if not columns.captions and not columns.label:
      self.remedy = 'add a column caption'

  def _number_labels(self) -> None:
    """Numbers labels that are names by their sorted names."""
    label = self.columns.label
    if not is_text(self._files.schema.field(label).type):
      return
    if len(self) > _LABELLED_ROWS:
      self.notices += (
        f'data {self.spec!r}: labels that are names are numbered of up to '
        f'{_LABELLED_ROWS:,} rows; they are captions here, and no labels',
      )
      self._numbers = {}
      return
    names: set[str] = set()
    for chunk in range(len(self._ends)):
      for batch in self._files.read(chunk, [label]).batches:
        for value in batch.column(0).unique():
          # Where it cannot be read, reading the record says why.
          with contextlib.suppress(ValueError, CorruptImageError):
            names.update(texts_in(value.as_py()))
    self.label_names = tuple(sorted(names))
    self._numbers = {name: i for i, name in enumerate(self.label_names)}

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def outline(self) -> Iterator[str]:
    """Yields a line about the columns, and one for each file."""
    yield repr((self.columns, self.label_names))
    for name, path in zip(self._names, self._files.paths, strict=True):
      yield repr((name, storage.version(path)))

  def id(self, index: int) -> str:
    file = int(np.searchsorted(self._file_starts, index, side='right')) - 1
    return f'{self._names[file]}/{index - int(self._file_starts[file])}'

  def captions(self, index: int) -> list[str]:
    try:
      return self._captions(self._row(index, with_image=False))['caption']
    except CorruptImageError:
      return []

  def __getitem__(self, index: int) -> Record:
    row = self._row(index, with_image=True)
    chunk = int(np.searchsorted(self._ends, index, side='right'))
    path = self._files.paths[self._files.chunk_files[chunk]]
    record: Record = {
      'id': self.id(index),
      'image': image_in(row[self.columns.image], path, self.columns.has_paths),
      **self._captions(row),
    }
    if self.columns.label:
      label = self._label(row[self.columns.label])
      if label is not None:
        record['label'] = label
    return record

  def _row(self, index: int, *, with_image: bool) -> dict[str, Any]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    chunk = int(np.searchsorted(self._ends, index, side='right'))
    first = int(self._ends[chunk] - self._files.chunk_rows[chunk])
    columns = [*self.columns.captions]
    columns += [self.columns.label] if self.columns.label else []
    columns += [self.columns.image] if with_image else []
    kept = self._kept.get(
      (chunk, with_image), lambda: self._files.read(chunk, columns)
    )
    return kept.row(index - first)

  def _captions(self, row: Mapping[str, Any]) -> Captions:
    names = self.columns.captions
    if not names:
      return {'caption': self._names_of_label(row)}
    texts = [
      (i, x) for i, name in enumerate(names) for x in texts_in(row[name])
    ]
    return captions_of(texts, len(names))

  def _names_of_label(self, row: Mapping[str, Any]) -> list[str]:
    value = row.get(self.columns.label)
    if isinstance(value, int) and self.label_names:
      if not -1 <= value < len(self.label_names):
        raise CorruptImageError(f'the label {value} has no name')
      return [words(self.label_names[value])] if value >= 0 else []
    return [] if isinstance(value, int) else list(map(words, texts_in(value)))

  def _label(self, value: Any) -> int | None:
    if value is None:
      return -1
    if isinstance(value, int):
      if self.label_names and not -1 <= value < len(self.label_names):
        raise CorruptImageError(f'the label {value} has no name')
      return value
    names = texts_in(value)
    return (self._numbers or {}).get(names[0]) if names else -1

  def __getstate__(self) -> dict[str, Any]:
    # A worker process opens the files anew, and keeps chunks of its own.
    return vars(self) | {'_kept': None}

  def __setstate__(self, state: dict[str, Any]) -> None:
    vars(self).update(state)
    self._kept = _Kept()


class _Kept:
  """The chunks that were decoded last, up to `KEPT_BYTES`."""

  def __init__(self):
    self._chunks: collections.OrderedDict[Any, Chunk] = (
      collections.OrderedDict()
    )
    self._bytes: dict[Any, int] = {}
    self._lock = threading.Lock()
    self._decoding: dict[Any, threading.Lock] = {}

  def get(self, key: Any, read: Any) -> Chunk:
    """Returns the chunk of a key; a chunk is read by one thread at a time."""
    with self._lock:
      if key in self._chunks:
        self._chunks.move_to_end(key)
        return self._chunks[key]
      decoding = self._decoding.setdefault(key, threading.Lock())
    with decoding:
      with self._lock:
        if key in self._chunks:
          return self._chunks[key]
      chunk = read()
      with self._lock:
        self._chunks[key] = chunk
        self._bytes[key] = sum(x.nbytes for x in chunk.batches)
        self._decoding.pop(key, None)
        while len(self._chunks) > 1 and sum(self._bytes.values()) > KEPT_BYTES:
          old, _ = self._chunks.popitem(last=False)
          del self._bytes[old]
    return chunk


def reason_of_damage(error: BaseException) -> str:
  """Returns the first line of what pyarrow says of a damaged file."""
  return (str(error) or repr(error)).splitlines()[0].rstrip('.')
