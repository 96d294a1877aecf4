"""Reads `csv:PATH`: a table of images with captions and/or labels."""

import os
import re
from typing import NamedTuple

from clip_jax.data.images import CorruptImageError
from clip_jax.data.sources.base import (
  DEFAULT_CAPTIONS,
  FileSource,
  Record,
  local_path,
  plural,
  read_text,
  require_columns,
  some,
  words,
)
from clip_jax.data.sources.table import Table
from clip_jax.errors import UsageError
from clip_jax.files import is_url


class Columns(NamedTuple):
  """The columns of a table that hold its images and labels.

  Attributes:
    image: the paths.
    label: the parts of a label, joined with spaces.
  """

  image: str = 'image'
  label: tuple[str, ...] = ('label',)


class CsvSource(FileSource):
  """A table of images: columns `image`, and captions and/or `label`.

  `image` is a path relative to the table. Rows of one image are one record
  with several captions. `label` is an int, or else a name; then `label_names`
  are the sorted names. The columns are separated by commas, tabs, semicolons
  or bars, as the header says. The id is the path.
  """

  def __init__(
    self,
    spec: str,
    location: str,
    captions: tuple[str, ...],
    columns: Columns | None = None,
  ):
    """Reads the table, and no image.

    Args:
      captions: see `open_source`.
      columns: instead of `image` and `label`, and then all are needed.
    Raises:
      UsageError: it is missing, is no table, or lacks a column or rows; the
        message names the line.
    """
    self.spec = spec
    path = local_path(spec, location)
    if not os.path.isfile(path):
      what = 'no regular file' if os.path.exists(path) else 'no file'
      raise UsageError(f'data {spec!r}: {what} {path}')
    self._folder = os.path.dirname(path)
    image, label = columns or Columns()
    table = Table(path, read_text(spec, path), image)
    names = table.columns
    require_columns(spec, (image,), names)
    if columns is None and label[0] not in names:
      label = ()
    require_columns(spec, label, names)
    if captions != DEFAULT_CAPTIONS or not label:
      require_columns(spec, captions, names)
    texts = [name for name in captions if name in names]
    table.require_single((image, *label, *texts))
    self._read(table, texts, Columns(image, label))
    if not self._paths:
      raise UsageError(f'data {spec!r}: no rows in {path}')
    self._describe()

  def _read(self, table: Table, captions: list[str], columns: Columns) -> None:
    texts: dict[str, list[str]] = {}  # By image, in the table's order.
    labels: dict[str, str] = {}
    self._damaged: dict[str, str] = {}
    used = (columns.image, *columns.label, *captions)
    for line, row in table:
      image = row[columns.image]
      where = f'data {self.spec!r}, line {line}'
      if not image:
        raise UsageError(f'{where}: the image is empty')
      if any('\0' in row[name] for name in used):
        # Not the table's fault, but the row's: a record that cannot be read.
        name = f'line {line}' if '\0' in image else image
        texts.setdefault(name, [])
        where = 'the path' if '\0' in image else f'line {line}'
        self._damaged[name] = f'{where} holds a NUL character'
        continue
      own = texts.setdefault(image, [])
      own += filter(None, (row[name] for name in captions))
      parts = [row[name] for name in columns.label]
      label = ' '.join(parts) if all(parts) else ''
      if parts and (labels.setdefault(image, label) != label or not label):
        raise UsageError(
          f'{where}: {image} has the label {label!r}, and {labels[image]!r} '
          'before; use one for an image'
        )
    self._paths = list(texts)
    self._texts = list(texts.values())
    self._labels: list[int] | None = None
    if columns.label:
      self._number(labels, captions)

  def _number(self, labels: dict[str, str], captions: list[str]) -> None:
    """Sets labels: as they are where all are numbers, else by name."""
    if all(re.fullmatch(r'[+-]?[0-9]{1,9}', x) for x in labels.values()):
      self._labels = [int(labels.get(image, -1)) for image in self._paths]
      return
    self.label_names = tuple(sorted(set(labels.values())))
    index = {name: i for i, name in enumerate(self.label_names)}
    names = [labels.get(image, '') for image in self._paths]
    self._labels = [index.get(name, -1) for name in names]
    if not captions:
      self._texts = [[words(name)] if name else [] for name in names]

  def _describe(self) -> None:
    without = [
      path
      for path, texts in zip(self._paths, self._texts, strict=True)
      if not texts and path not in self._damaged
    ]
    if self._labels is None:
      self.remedy = 'add a column label of names'
    if not without:
      return
    if len(without) == len(self._paths):
      self.remedy = 'no row has a caption'
      if self._labels is not None:
        self.remedy += ', and labels are numbers: add a column caption'
      return
    self.notices = (
      f'data {self.spec!r}: {len(without):,} of '
      f'{plural(len(self._paths), "image")} have no caption '
      f'({some(without, len(without))})',
    )

  def id(self, index: int) -> str:
    return self._paths[index]

  def captions(self, index: int) -> list[str]:
    return self._texts[index]

  def file(self, index: int) -> str:
    return os.path.join(self._folder, os.path.expanduser(self._paths[index]))

  def __getitem__(self, index: int) -> Record:
    path = self._paths[index]
    if path in self._damaged:
      raise CorruptImageError(self._damaged[path])
    if is_url(path):
      raise CorruptImageError(f'{path} is a URL: save the image to a file')
    return super().__getitem__(index)
