"""The first stage: reads pairs, cleans their texts, and drops single pairs.

Each step is a function of a batch of rows; the cheap ones come first, so that
the dear ones see fewer rows.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from clip_jax.data import storage
from clip_jax.data.curation import filters
from clip_jax.data.curation.cleaning import clean, languages_of
from clip_jax.data.curation.funnel import Funnel
from clip_jax.data.curation.hashing import (
  KEY_BYTES,
  hash_keys,
  hash_texts,
  upper_half,
)
from clip_jax.data.curation.image_checks import ImageChecks, check_images
from clip_jax.data.curation.matching import load_matcher
from clip_jax.data.curation.metadata import MetadataColumns, Span, read_span
from clip_jax.data.curation.partitions import partition_of, writing_partitions
from clip_jax.data.curation.rows import (
  CONTENT,
  DIGEST,
  EMBEDDING,
  ID,
  INTERNAL,
  LANGUAGE,
  MATCHED,
  MATCHED_QUERIES,
  POSITION,
  QUERIES,
  SCORE,
  with_column,
)
from clip_jax.data.curation.settings import Settings
from clip_jax.files import is_url

_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclasses.dataclass(frozen=True)
class Selection:
  """The settings and inputs of the stage that selects rows; it pickles.

  Attributes:
    settings: of the curation.
    schema: of the input.
    columns: of the input.
    partitions: of the rows that are written.
    root: the folder of all files of the input, as `storage.common_folder`.
    queries: the file of queries, or None; queries_version: changes with it.
    id_list: a file of `filters.write_id_list`, or None.
    images: how images are looked at, or None.
    width: of the embeddings; 0 where there are none.
  """

  settings: Settings
  schema: pa.Schema
  columns: MetadataColumns
  partitions: int
  root: str
  queries: str | None = None
  queries_version: str = ''
  id_list: str | None = None
  images: ImageChecks | None = None
  width: int = 0

  def row_schema(self) -> pa.Schema:
    """Returns the columns of the rows that are written."""
    fields = list(self.public_schema())
    fields += [
      pa.field(POSITION, pa.int64()),
      pa.field(ID, pa.uint64()),
      pa.field(CONTENT, pa.binary(KEY_BYTES)),
      pa.field(MATCHED, pa.list_(pa.int32())),
      pa.field(DIGEST, pa.binary()),
    ]
    if self.width:
      fields.append(pa.field(EMBEDDING, pa.list_(pa.float32(), self.width)))
    return pa.schema(fields)

  def public_schema(self) -> pa.Schema:
    """Returns the columns that the output has, besides the queries."""
    new = []
    if self.settings.languages:
      new.append(pa.field(LANGUAGE, pa.string()))
    if self.images is not None and self.images.scores:
      new.append(pa.field(SCORE, pa.float32()))
    names = {field.name for field in new} | {
      *INTERNAL,
      MATCHED_QUERIES,
      QUERIES,
    }
    kept = [field for field in self.schema if field.name not in names]
    return pa.schema([*kept, *new])


@dataclasses.dataclass(frozen=True)
class SelectionTask:
  """Rows to read, and the file that gets those that are kept."""

  span: Span
  out: str


def select(selection: Selection, task: SelectionTask) -> dict[str, Any]:
  """Does one task of the stage; returns its counts."""
  columns = selection.columns
  funnel = Funnel(columns.text, columns.image)
  corrupt: dict[str, str] = {}
  schema = selection.row_schema()
  with writing_partitions(task.out, schema, selection.partitions) as writer:
    batches = read_span(
      task.span, selection.schema, corrupt, selection.settings.max_corrupt
    )
    rows = 0
    for batch in batches:
      rows += batch.num_rows
      kept = select_batch(selection, batch, funnel, task.span.path, corrupt)
      numbers = partition_of(
        upper_half(kept.column(CONTENT).to_pylist()), selection.partitions
      )
      writer.add(kept, numbers)
  total = sum(end - start for _, start, end in task.span.groups)
  read = {'in': total, 'dropped': {'unreadable': total - rows}, 'samples': {}}
  steps = {'read': read, **funnel.as_counts()['steps']}
  return {'steps': steps, 'corrupt': corrupt}


def select_batch(
  selection: Selection,
  batch: pa.RecordBatch,
  funnel: Funnel,
  path: str = '',
  corrupt: dict[str, str] | None = None,
) -> pa.RecordBatch:
  """Returns the rows of a batch that all steps keep, with the columns between.

  Args:
    batch: of the input, with its positions.
    funnel: gets the counts.
    path: the file of the batch; paths of images are relative to its folder.
    corrupt: gets unreadable images and the reasons.
  """
  settings, columns = selection.settings, selection.columns
  batch = _with_whole_paths(batch, columns.image, storage.folder_of(path))
  if selection.id_list:
    assert columns.id is not None
    ids = batch.column(columns.id).to_pylist()
    batch = funnel.keep(
      'ids', batch, filters.id_reasons(ids, selection.id_list)
    )
  if _sizes_are_given(selection):
    assert columns.width is not None and columns.height is not None
    reasons = filters.size_reasons(
      filters.numbers_of(batch, columns.width),
      filters.numbers_of(batch, columns.height),
      settings.min_side,
      settings.max_aspect or np.inf,
    )
    batch = funnel.keep('size', batch, reasons)
  if _score_is_given(selection):
    assert columns.score is not None and settings.min_score is not None
    scores = filters.numbers_of(batch, columns.score)
    reasons = filters.score_reasons(scores, settings.min_score)
    batch = funnel.keep('score', batch, reasons)
  batch = _clean(selection, batch, funnel)
  if settings.languages:
    languages = languages_of(batch.column(columns.text).to_pylist())
    batch = with_column(batch, LANGUAGE, pa.array(languages, pa.string()))
    reasons = filters.language_reasons(languages, settings.languages)
    batch = funnel.keep('language', batch, reasons)
  batch = _match(selection, batch, funnel)
  batch = _with_digest(selection, batch)
  if selection.images is not None:
    batch = check_images(
      selection.images,
      batch,
      funnel,
      path,
      {} if corrupt is None else corrupt,
    )
  batch = _with_keys(selection, batch)
  schema = selection.row_schema()
  if selection.width and EMBEDDING not in batch.schema.names:  # of no rows
    nothing = pa.nulls(batch.num_rows, schema.field(EMBEDDING).type)
    batch = with_column(batch, EMBEDDING, nothing)
  return batch.select(schema.names).cast(schema)


def _with_whole_paths(
  batch: pa.RecordBatch, name: str | None, folder: str
) -> pa.RecordBatch:
  """Makes relative paths of images whole, as the output lies elsewhere.

  Columns of URLs, by their names, stay as they are. Of {bytes, path} the path
  is made whole where there are no bytes.
  """
  if name is None or 'url' in name.lower():
    return batch
  if not storage.is_remote(folder):
    folder = os.path.abspath(folder)
  column = batch.column(name)
  if not pa.types.is_struct(column.type):
    return with_column(batch, name, _whole_paths(column, folder))
  parts: dict[str, pa.Array] = dict(
    zip([field.name for field in column.type], column.flatten(), strict=True)
  )
  if 'path' not in parts or (
    'bytes' in parts and not parts['bytes'].null_count
  ):
    return batch
  whole = _whole_paths(parts['path'], folder)
  if 'bytes' in parts:
    known = parts['bytes'].is_valid().to_pylist()
    pairs = zip(
      known, parts['path'].to_pylist(), whole.to_pylist(), strict=True
    )
    whole = pa.array([old if x else new for x, old, new in pairs], whole.type)
  parts['path'] = whole
  structs = pa.StructArray.from_arrays(
    list(parts.values()), fields=list(column.type), mask=column.is_null()
  )
  return with_column(batch, name, structs)


def _whole_paths(column: pa.Array, folder: str) -> pa.Array:
  """Returns paths with their folder; a column of something else as it is."""
  kind = column.type
  if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
    return column
  paths = [
    x if not x or is_url(x) else storage.join(folder, x)
    for x in column.to_pylist()
  ]
  return pa.array(paths, kind)


def _sizes_are_given(selection: Selection) -> bool:
  wanted = selection.settings.min_side or selection.settings.max_aspect
  columns = selection.columns
  return bool(wanted) and None not in (columns.width, columns.height)


def _score_is_given(selection: Selection) -> bool:
  """Returns whether a column, and not a model, has the scores."""
  scored = selection.images is not None and selection.images.scores
  wanted = selection.settings.min_score is not None
  return wanted and not scored and selection.columns.score is not None


def _clean(
  selection: Selection, batch: pa.RecordBatch, funnel: Funnel
) -> pa.RecordBatch:
  """Cleans texts, and drops those that are empty, short or long."""
  settings, name = selection.settings, selection.columns.text
  texts = [clean(x or '') for x in batch.column(name).to_pylist()]
  kind = batch.schema.field(name).type
  batch = with_column(batch, name, pa.array(texts, kind))
  reasons = filters.length_reasons(
    texts,
    settings.min_characters,
    settings.max_characters,
    settings.min_words,
  )
  return funnel.keep('text', batch, reasons)


def _match(
  selection: Selection, batch: pa.RecordBatch, funnel: Funnel
) -> pa.RecordBatch:
  """Finds the queries of each text, and drops those that have none."""
  if selection.queries is None:
    empty = pa.nulls(batch.num_rows, pa.list_(pa.int32()))
    return with_column(batch, MATCHED, empty)
  matcher = load_matcher(selection.queries, selection.queries_version)
  texts = batch.column(selection.columns.text).to_pylist()
  indices, ends = matcher.match(texts)
  matched = pa.ListArray.from_arrays(pa.array(ends), pa.array(indices))
  batch = with_column(batch, MATCHED, matched)
  return funnel.keep('match', batch, {'no query': np.diff(ends) == 0})


def _with_digest(selection: Selection, batch: pa.RecordBatch) -> pa.RecordBatch:
  """Adds the SHA-256 of the images, where a column has it in hexadecimal."""
  name = selection.columns.hash
  values: list[bytes | None] = [None] * batch.num_rows
  if name is not None:
    values = [_digest_of(x) for x in batch.column(name).to_pylist()]
  return with_column(batch, DIGEST, pa.array(values, pa.binary()))


def _digest_of(value: Any) -> bytes | None:
  """Returns the bytes of a SHA-256; None where a value is not one."""
  if isinstance(value, str):
    try:
      value = bytes.fromhex(value)
    except ValueError:
      return None
  is_digest = isinstance(value, bytes) and len(value) == _DIGEST_BYTES
  return value if is_digest else None


def _with_keys(selection: Selection, batch: pa.RecordBatch) -> pa.RecordBatch:
  """Adds what copies have in common, and the number of random choices.

  Copies are pairs of one image, by its URL, its path or its bytes, and one
  text. The number is a hash of the id and the text or, without an id, of what
  copies have in common. Paths count from the root of the input, so that the
  same files elsewhere give the same choices.
  """
  columns = selection.columns
  texts = batch.column(columns.text).to_pylist()
  images: list[Any] = [None] * len(texts)
  if columns.image is not None:
    images = batch.column(columns.image).to_pylist()
  root = selection.root.rstrip('/') + '/'
  keys = hash_keys(
    _image_key(image, root) + b'\0' + text.encode('utf-8', 'surrogatepass')
    for image, text in zip(images, texts, strict=True)
  )
  numbers = upper_half(keys).copy()
  if columns.id is not None:
    ids = batch.column(columns.id).to_pylist()
    known = [row for row, own in enumerate(ids) if own is not None]
    numbers[known] = hash_texts(f'{ids[row]}\0{texts[row]}' for row in known)
  batch = with_column(batch, CONTENT, pa.array(keys, pa.binary(KEY_BYTES)))
  return with_column(batch, ID, pa.array(numbers, pa.uint64()))


def _image_key(image: Any, root: str) -> bytes:
  if isinstance(image, Mapping):  # {bytes, path} of a Hugging Face data set
    image = image.get('bytes') or image.get('path')
  if isinstance(image, str):
    return image.removeprefix(root).encode('utf-8', 'surrogatepass')
  return hash_keys([image])[0] if isinstance(image, bytes) else b''
