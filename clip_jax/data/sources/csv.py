"""`csv:PATH`: a table of pictures with captions and/or labels."""

import csv
import io
import os
from collections.abc import Iterator
from typing import NamedTuple

from clip_jax.data.images import read_bytes
from clip_jax.data.sources.base import (
  DEFAULT_CAPTIONS,
  Record,
  Source,
  local_path,
  outline_of,
  read_text,
  require_columns,
  words,
)
from clip_jax.errors import UsageError


class Columns(NamedTuple):
  """What a table calls its pictures and labels.

  Attributes:
    image: the paths.
    label: the parts of a label, joined with spaces.
  """

  image: str = 'image'
  label: tuple[str, ...] = ('label',)


class CsvSource(Source):
  """A table of pictures: columns `image`, and captions and/or `label`.

  `image` is a path relative to the table. Rows of one image are one record
  with several captions. `label` is an int, or else a name; then `label_names`
  are the sorted names. A `.tsv` is separated by tabs. The id is the path.
  """

  def __init__(
    self,
    spec: str,
    location: str,
    captions: tuple[str, ...],
    columns: Columns | None = None,
  ):
    """Reads the table, and no picture.

    Args:
      captions: see `open_source`.
      columns: instead of `image` and `label`, and then all are needed.
    Raises:
      UsageError: it is missing, is no table, or lacks a column or rows.
    """
    self.spec = spec
    path = local_path(spec, location)
    if not os.path.isfile(path):
      raise UsageError(f'data {spec!r}: no file {path}')
    self._folder = os.path.dirname(path)
    rows = csv.DictReader(
      io.StringIO(read_text(spec, path), newline=''),
      delimiter='\t' if path.lower().endswith('.tsv') else ',',
    )
    try:
      there = list(rows.fieldnames or ())
      image, label = columns or Columns()
      require_columns(spec, (image,), there)
      if columns is None and label[0] not in there:
        label = ()
      require_columns(spec, label, there)
      if captions != DEFAULT_CAPTIONS or not label:
        require_columns(spec, captions, there)
      texts = [name for name in captions if name in there]
      self._read(rows, texts, Columns(image, label))
    except csv.Error as error:
      raise UsageError(
        f'{path}, line {rows.line_num}: not a table: {error}'
      ) from error
    if not self._paths:
      raise UsageError(f'data {spec!r}: no rows in {path}')

  def _read(
    self, rows: csv.DictReader, captions: list[str], columns: Columns
  ) -> None:
    texts: dict[str, list[str]] = {}  # By image, in the table's order.
    labels: dict[str, str] = {}
    for row in rows:
      image = (row[columns.image] or '').strip()
      if not image:
        raise UsageError(
          f'data {self.spec!r}, line {rows.line_num}: the image is empty'
        )
      values = [(row[name] or '').strip() for name in captions]
      texts.setdefault(image, []).extend(x for x in values if x)
      if columns.label:
        parts = [(row[name] or '').strip() for name in columns.label]
        label = ' '.join(parts) if all(parts) else ''
        if labels.setdefault(image, label) != label or not label:
          raise UsageError(
            f'data {self.spec!r}, line {rows.line_num}: {image} has the label '
            f'{label!r}, and {labels[image]!r} before; use one for an image'
          )
    self._paths = list(texts)
    self._texts = list(texts.values())
    self._labels: list[int] | None = None
    if columns.label:
      names = [labels[image] for image in self._paths]
      try:
        self._labels = [int(name) for name in names]
      except ValueError:
        self.label_names = tuple(sorted(set(names)))
        index = {name: i for i, name in enumerate(self.label_names)}
        self._labels = [index[name] for name in names]
        if not captions:
          self._texts = [[words(name)] for name in names]

  def __len__(self) -> int:
    return len(self._paths)

  def id(self, index: int) -> str:
    return self._paths[index]

  def captions(self, index: int) -> list[str]:
    return self._texts[index]

  def __getitem__(self, index: int) -> Record:
    record: Record = {
      'id': self._paths[index],
      'image': read_bytes(self._file(index)),
      'caption': self.captions(index),
    }
    if self._labels is not None:
      record['label'] = self._labels[index]
    return record

  def outline(self) -> Iterator[str]:
    for index, path in enumerate(self._paths):
      label = self._labels[index] if self._labels is not None else None
      yield outline_of(self._file(index), path, self._texts[index], label)

  def _file(self, index: int) -> str:
    return os.path.join(self._folder, os.path.expanduser(self._paths[index]))
