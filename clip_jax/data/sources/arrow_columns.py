"""Finds columns of images and texts in schemas of Arrow; reads their cells."""

import os
import posixpath
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from clip_jax.data import decoding, storage
from clip_jax.data.decoding import CorruptImageError, MissingImageError
from clip_jax.data.sources import Spec
from clip_jax.data.sources.base import DEFAULT_CAPTIONS
from clip_jax.data.sources.columns import (
  NOT_A_FILE,
  require_columns,
  texts_of,
)
from clip_jax.errors import FailureError, MissingFileError
from clip_jax.files import is_url, parse_json

# Image columns, as people and writers of Parquet name them.
_IMAGES = ('image', 'img', 'jpg', 'jpeg', 'png', 'webp')
# Columns of captions where none is asked for; `text` is Hugging Face's habit.
_CAPTIONS = (*DEFAULT_CAPTIONS, 'text')


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
    _check_type(spec, schema, name, is_text, 'texts or lists of texts')
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


def _check_type(
  spec: Spec, schema: pa.Schema, name: str, is_right: Any, what: str
) -> None:
  kind = schema.field(name).type
  if not is_right(kind):
    raise spec.error(f'column {name!r} holds {kind}, where {what} are read')


def _is_label(kind: pa.DataType) -> bool:
  return pa.types.is_integer(kind) or is_text(kind)


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


def is_text(kind: pa.DataType) -> bool:
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


def texts_in(cell: Any) -> list[str]:
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


def image_in(cell: Any, table: str, is_path: bool) -> bytes:
  """Returns the bytes of an image that a cell holds or names.

  Args:
    table: the file of the cell, to whose folder paths are relative.
    is_path: whether bytes are those of a path.
  Raises:
    CorruptImageError: there is no image.
    FailureError: its store does not answer.
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
      raise CorruptImageError(f'{path}: {NOT_A_FILE}')
    return read_image(os.path.join(folder, os.path.expanduser(path)))
  relative = posixpath.normpath(path)
  if is_url(path) or relative.startswith(('/', '../')):
    raise CorruptImageError(f'{path} leads out of {folder}')
  return read_image(storage.join(folder, relative))


def read_image(path: str) -> bytes:
  """Returns the bytes of an image file, local or remote.

  Raises:
    CorruptImageError: it is missing, too large or, where it is local, cannot be
      read.
    FailureError: its store does not answer.
  """
  if not storage.is_remote(path):
    return decoding.read_bytes(path)
  try:
    size = storage.size(path)
    if size > decoding.MAX_FILE_BYTES:
      raise CorruptImageError(f'{path}: too large, {size:,} bytes')
    return storage.read_range(path, 0, size)
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
