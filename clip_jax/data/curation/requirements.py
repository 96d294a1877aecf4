"""Says what a curation needs of columns and images, and refuses what lacks."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from clip_jax.data.curation.copies import FindCopies
from clip_jax.data.curation.image_checks import ImageChecks, Look
from clip_jax.data.curation.metadata import (
  Metadata,
  MetadataColumns,
  first_width,
)
from clip_jax.data.curation.settings import Settings
from clip_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Helpers:
  """Functions that need a model or an evaluation, which data/ cannot import.

  Attributes:
    looks: see `image_checks.Look`.
    identity: what all of these depend on, by names that `Settings` has not.
    scores, width: whether they give scores, and the width of their embeddings.
    find_copies: see `copies.FindCopies`.
    evaluation: names of files in the working folder, by 'digests', 'hashes' and
      'embeddings'.
    write_evaluation: writes these files into a folder; returns the images that
      cannot be decoded, and the reasons.
  """

  looks: tuple[Look, ...] = ()
  identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  scores: bool = False
  width: int = 0
  find_copies: FindCopies | None = None
  evaluation: tuple[str, ...] = ()
  write_evaluation: Callable[[str], dict[str, str]] | None = None


def embedding_width(
  settings: Settings, metadata: Metadata, helpers: Helpers
) -> int:
  """Returns the width of the embeddings that rows have; 0 is none.

  Raises:
    UsageError: embeddings are needed, and nothing has them.
  """
  if settings.near is None and settings.evaluation_near is None:
    return 0
  if helpers.width:
    return helpers.width
  name = metadata.columns.embedding
  if name is None:
    raise UsageError(
      'near copies are found by embeddings: name a --model, or a column of '
      'embeddings by --embedding_column.'
    )
  kind = metadata.schema.field(name).type
  if pa.types.is_fixed_size_list(kind):
    return kind.list_size
  if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
    raise UsageError(f'the column {name!r} holds {kind}, not embeddings.')
  return first_width(metadata, name)


def image_checks(
  settings: Settings,
  columns: MetadataColumns,
  helpers: Helpers,
  path: Callable[[str], str],
) -> ImageChecks | None:
  """Returns how images are looked at; None where they need not be.

  Args:
    path: returns the path of a file in the working folder.
  Raises:
    UsageError: it says which column or flag is missing.
  """
  read = settings.read_images or bool(helpers.looks)
  uses_vectors = bool(settings.near or settings.evaluation_near)
  _check_columns(settings, columns, helpers, read)
  if not (read or uses_vectors or helpers.evaluation):
    return None
  has_sizes = _has_sizes(columns)
  files = {x: path(f'evaluation_{x}.npy') for x in helpers.evaluation}
  return ImageChecks(
    columns.text,
    columns.image,
    read,
    helpers.looks,
    helpers.scores,
    columns.embedding if uses_vectors and not helpers.width else None,
    0 if has_sizes else settings.min_side,
    0.0 if has_sizes else settings.max_aspect,
    settings.min_score,
    files.get('digests'),
    files.get('hashes'),
    settings.evaluation_bits or 0,
    files.get('embeddings'),
    settings.evaluation_near or 1.0,
    settings.max_corrupt,
  )


def _has_sizes(columns: MetadataColumns) -> bool:
  return columns.width is not None and columns.height is not None


def _check_columns(
  settings: Settings, columns: MetadataColumns, helpers: Helpers, read: bool
) -> None:
  """Refuses filters that have nothing to look at.

  Args:
    read: whether images are read.
  Raises:
    UsageError: it says which column or flag is missing.
  """
  if settings.ids and columns.id is None:
    raise UsageError('--ids: no column of ids; name it by --id_column.')
  if read and columns.image is None:
    raise UsageError(
      'images are to be read, and no column has them: name it by '
      '--image_column.'
    )
  if (settings.min_side or settings.max_aspect) and not (
    _has_sizes(columns) or read
  ):
    raise UsageError(
      '--min_side and --max_aspect need columns of widths and heights '
      '(--width_column, --height_column), or --read_images.'
    )
  if settings.min_score is not None and not (columns.score or helpers.scores):
    raise UsageError(
      '--min_score needs a column of scores (--score_column), or --model=REF.'
    )
  if settings.copies == 'images' and not (read or columns.hash):
    raise UsageError(
      '--copies=images needs --read_images, where images are at hand, or a '
      'column of SHA-256 (--hash_column).'
    )
  if settings.evaluation and not (read or columns.hash):
    raise UsageError(
      '--evaluation compares images: add --read_images, where they are at '
      'hand, or name a column of SHA-256 by --hash_column.'
    )
