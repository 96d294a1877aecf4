"""Records of Arrow columns, which Parquet files and Arrow files hold.

Rows lie in chunks (row groups, or record batches), of which a few are kept
decoded. Nothing that a file says is believed: types are checked at the door,
and a value that cannot be read is a corrupt record.
"""

import abc
import collections
import contextlib
import os
import posixpath
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from clip_jax.data import decoding, storage
from clip_jax.data.decoding import CorruptImageError, MissingImageError
from clip_jax.data.sources import Record, Source, Spec
from clip_jax.data.sources.base import DEFAULT_CAPTIONS
from clip_jax.data.sources.columns import (
  Captions,
  captions_of,
  require_columns,
  texts_of,
  words,
)
from clip_jax.data.sources.shard_files import short_names
from clip_jax.errors import FailureError, MissingFileError
from clip_jax.files import is_url, parse_json

# Decoded chunks of a source that a process keeps; one is kept at least.
KEPT_BYTES = 2**28
# More is not decoded for one record, and may be a bomb.
MAX_CHUNK_BYTES = 2**30
# What pyarrow raises for damaged files; ArrowException is no base of all.
DAMAGE = (
  pa.ArrowException, OSError, ValueError, TypeError, EOFError, LookupError,
  OverflowError, MemoryError,
)  # fmt: skip
# Image columns, as people and img2dataset's Parquet writer name them.
_IMAGES = ('image', 'jpg', 'jpeg', 'png', 'webp')
# Columns of captions where none is asked for; `text` is Hugging Face's habit.
_CAPTIONS = (*DEFAULT_CAPTIONS, 'text')
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


class Columns(NamedTuple):
  """The columns of a data set that are read.

  Attributes:
    image: has bytes, paths, or structs {bytes, path}.
    captions: have texts, or lists of texts.
    label: has numbers or names; '' where there is none.
    label_names: the name of each number, where the data set says them.
    has_paths: whether images are paths and nothing else.
  """

  image: str
  captions: tuple[str, ...]
  label: str
  label_names: tuple[str, ...] | None
  has_paths: bool


def find_columns(
  spec: Spec,
  schema: pa.Schema,
  captions: tuple[str, ...],
  features: Mapping[str, Any] | None = None,
) -> Columns:
  """Returns the columns to read; see `open_source` for `captions`.

  Args:
    features: of Hugging Face's metadata, by column; None takes what the schema
      has of it.
  Raises:
    UsageError: a column is missing, or has values of another type.
  """
  names = schema.names
  image = next((name for name in _IMAGES if name in names), '')
  if not image and 'url' in map(str.lower, names):
    raise spec.error(
      'no column image, but URLs of images: clip-jax data fetch downloads them '
      f'(it has {", ".join(names)})'
    )
  require_columns(spec, [image or 'image'], names)
  _check_type(spec, schema, image, _is_image, 'bytes, paths or {bytes, path}')
  label = 'label' if 'label' in names else ''
  if label:
    _check_type(spec, schema, label, _is_label, 'whole numbers or names')
  wanted = captions
  if captions == DEFAULT_CAPTIONS:
    wanted = tuple(name for name in _CAPTIONS if name in names)[:1]
    if not wanted and not label:
      require_columns(spec, captions, names)
  require_columns(spec, wanted, names)
  for name in wanted:
    _check_type(spec, schema, name, _is_text, 'texts or lists of texts')
  label_names = _label_names(
    _features(schema) if features is None else features, label
  )
  kind = _plain(schema.field(image).type)
  has_paths = any(
    is_kind(kind)
    for is_kind in (
      pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
    )
  )  # fmt: skip
  return Columns(image, wanted, label, label_names, has_paths)


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
    if not _is_text(self._files.schema.field(label).type):
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
            names.update(_texts(value.as_py()))
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
      'image': _image(row[self.columns.image], path, self.columns.has_paths),
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
    texts = [(i, x) for i, name in enumerate(names) for x in _texts(row[name])]
    return captions_of(texts, len(names))

  def _names_of_label(self, row: Mapping[str, Any]) -> list[str]:
    value = row.get(self.columns.label)
    if isinstance(value, int) and self.label_names:
      if not -1 <= value < len(self.label_names):
        raise CorruptImageError(f'the label {value} has no name')
      return [words(self.label_names[value])] if value >= 0 else []
    return [] if isinstance(value, int) else list(map(words, _texts(value)))

  def _label(self, value: Any) -> int | None:
    if value is None:
      return -1
    if isinstance(value, int):
      if self.label_names and not -1 <= value < len(self.label_names):
        raise CorruptImageError(f'the label {value} has no name')
      return value
    names = _texts(value)
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


def _check_type(
  spec: Spec, schema: pa.Schema, name: str, is_right: Any, what: str
) -> None:
  kind = schema.field(name).type
  if not is_right(kind):
    raise spec.error(f'column {name!r} holds {kind}, where {what} are read')


def _is_label(kind: pa.DataType) -> bool:
  return pa.types.is_integer(kind) or _is_text(kind)


def _plain(kind: pa.DataType) -> pa.DataType:
  """Returns the type of a dictionary's values; others as they are."""
  return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_bytes(kind: pa.DataType) -> bool:
  """Returns whether values are bytes or texts, in any of Arrow's layouts."""
  kind = _plain(kind)
  return any(
    is_kind(kind)
    for is_kind in (
      pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
      pa.types.is_fixed_size_binary, pa.types.is_string,
      pa.types.is_large_string, pa.types.is_string_view,
    )
  )  # fmt: skip


def _is_text(kind: pa.DataType) -> bool:
  kind = _plain(kind)
  if pa.types.is_list(kind) or pa.types.is_large_list(kind):
    kind = kind.value_type
  return _is_bytes(kind) or pa.types.is_null(kind)


def _is_image(kind: pa.DataType) -> bool:
  if pa.types.is_struct(kind):
    fields: dict[str, pa.DataType] = {x.name: x.type for x in kind}
    return 'bytes' in fields and all(
      _is_bytes(fields[x]) or pa.types.is_null(fields[x])
      for x in ('bytes', 'path')
      if x in fields
    )
  return _is_bytes(kind)


def _texts(cell: Any) -> list[str]:
  """Returns the texts of a cell: none, one or a list; blank ones are left out.

  Raises:
    CorruptImageError: bytes are not UTF-8.
  """
  values = cell if isinstance(cell, list) else [cell]
  try:
    texts = texts_of(x for x in values if isinstance(x, bytes | str))
  except UnicodeDecodeError as error:
    raise CorruptImageError(f'a text is not UTF-8: {error}') from error
  return [text for text in texts if text.strip()]


def _image(cell: Any, table: str, is_path: bool) -> bytes:
  """Returns the bytes of an image that a cell holds or names.

  Args:
    table: the file of the cell, to whose folder paths are relative.
    is_path: whether bytes are those of a path.
  Raises:
    CorruptImageError: there is no image.
  """
  path = cell
  if isinstance(cell, dict):
    path, cell = cell.get('path'), cell.get('bytes')
  if isinstance(cell, bytes) and cell and not is_path:
    if len(cell) > decoding.MAX_FILE_BYTES:
      raise CorruptImageError(f'too large, {len(cell):,} bytes')
    return cell
  if isinstance(path, bytes):
    path = path.decode('utf-8', 'replace')
  if not path:
    raise CorruptImageError('no image')
  if '\0' in path:
    raise CorruptImageError('the path holds a NUL character')
  folder = storage.folder_of(table)
  if not storage.is_remote(folder):
    if is_url(path):
      raise CorruptImageError(f'{path} is a URL: save the image to a file')
    return decoding.read_bytes(os.path.join(folder, os.path.expanduser(path)))
  relative = posixpath.normpath(path)
  if is_url(path) or relative.startswith(('/', '../')):
    raise CorruptImageError(f'{path} leads out of {folder}')
  try:
    return storage.read_all(
      storage.join(folder, relative), decoding.MAX_FILE_BYTES
    )
  except MissingFileError as error:
    raise MissingImageError(str(error)) from error


def _features(schema: pa.Schema) -> Mapping[str, Any]:
  """Returns the features that Hugging Face's libraries keep in a schema."""
  text = (schema.metadata or {}).get(b'huggingface')
  if not text:
    return {}
  try:
    content = parse_json(text, 'the metadata of the schema')
    return content['info']['features']
  except (FailureError, KeyError, TypeError):
    return {}


def _label_names(features: Any, label: str) -> tuple[str, ...] | None:
  """Returns the names that a ClassLabel has, or None."""
  feature = features.get(label) if isinstance(features, Mapping) else None
  names = feature.get('names') if isinstance(feature, Mapping) else None
  if isinstance(names, Mapping):  # written by older versions: {'0': 'cat'}
    names = list(names.values())
  if isinstance(names, list) and all(isinstance(x, str) for x in names):
    return tuple(names) or None
  return None


def reason_of_damage(error: BaseException) -> str:
  """Returns the first line of what pyarrow says of a damaged file."""
  return (str(error) or repr(error)).splitlines()[0].rstrip('.')
