"""Reads `csv:PATH`: a table of images with captions and/or labels."""

import os
from typing import NamedTuple

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import Record, Spec
from clip_jax.data.sources.columns import (
  NOT_A_FILE,
  Captions,
  caption_columns,
  label_captions,
  number_labels,
  numbered_texts,
  require_columns,
)
from clip_jax.data.sources.delimited import DelimitedTable
from clip_jax.data.sources.image_files import FileSource, read_text
from clip_jax.errors import plural, quote_first
from clip_jax.files import is_url


class Columns(NamedTuple):
  """The columns of a table that hold its images and labels.

  Attributes:
    image: the column of paths.
    label: the columns whose cells, joined with spaces, are the label.
  """

  image: str = 'image'
  label: tuple[str, ...] = ('label',)


class CsvSource(FileSource):
  """A table of images: columns `image`, and captions and/or `label`.

  `image` is a path relative to the table. Rows with the same image are one
  record, which has the captions of all of them. `label` is an int, or else a
  name; then `label_names` are the sorted names. The columns are separated by
  commas, tabs, semicolons or bars, as the header says. The id is the path.
  """

  def __init__(
    self,
    spec: Spec,
    captions: tuple[str, ...],
    columns: Columns | None = None,
  ):
    """Reads the table, and no image.

    Args:
      captions: see `open_source`.
      columns: all of these have to be there; None is `image` and, if there is
        one, `label`.
    Raises:
      UsageError: it is missing, is no table, or lacks a column or rows; the
        message names the line.
    """
    self.spec = spec.text
    path = spec.path()
    if not os.path.isfile(path):
      what = 'no regular file' if os.path.exists(path) else 'no file'
      raise spec.error(f'{what} {path}')
    self._folder = os.path.dirname(path)
    image, label = columns or Columns()
    table = DelimitedTable(path, read_text(spec, path), image)
    names = table.columns
    require_columns(spec, [image], names)
    if columns is None and label[0] not in names:
      label = ()
    require_columns(spec, label, names)
    texts = caption_columns(spec, captions, names, labelled=bool(label))
    table.require_single((image, *label, *texts))
    self._read(spec, table, texts, Columns(image, label))
    if not self._paths:
      raise spec.error(f'no rows in {path}')
    self._describe()

  def _read(
    self,
    spec: Spec,
    table: DelimitedTable,
    captions: list[str],
    columns: Columns,
  ) -> None:
    """Reads all rows, and makes one record of those with the same image."""
    # By image, in the table's order: texts with the numbers of their columns.
    texts: dict[str, list[tuple[int, str]]] = {}
    labels: dict[str, str] = {}
    self._damaged: dict[str, str] = {}
    used = (columns.image, *columns.label, *captions)
    for line, row in table:
      image = row[columns.image]
      if not image:
        raise spec.error('the image is empty', line)
      if any('\0' in row[name] for name in used):
        # The row is damaged, not the table: a record that cannot be read.
        name = f'line {line}' if '\0' in image else image
        texts.setdefault(name, [])
        part = 'the path' if '\0' in image else f'line {line}'
        self._damaged[name] = f'{part} holds a NUL character'
        continue
      image_texts = texts.setdefault(image, [])
      cells = numbered_texts(row[name] for name in captions)
      image_texts += ((number, text) for number, text in cells if text)
      parts = [row[name] for name in columns.label]
      label = ' '.join(parts) if all(parts) else ''
      if parts and (labels.setdefault(image, label) != label or not label):
        raise spec.error(
          f'{image} has the label {label!r}, and {labels[image]!r} before; use '
          'one for an image',
          line,
        )
    self._paths = list(texts)
    self._texts = [[text for _, text in pairs] for pairs in texts.values()]
    self._numbers: list[list[int]] | None = None
    if len(captions) > 1:
      self._numbers = [[number for number, _ in x] for x in texts.values()]
    self._labels: list[int] | None = None
    if columns.label:
      names = [labels.get(image, '') for image in self._paths]
      self._labels, self.label_names = number_labels(names)
      if self.label_names and not captions:
        self._texts = [
          label_captions(self.label_names, [label]) for label in self._labels
        ]

  def _describe(self) -> None:
    """Sets the remedy and the notice of a table that lacks captions."""
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
      f'({quote_first(without, len(without))})',
    )

  def id(self, index: int) -> str:
    return self._paths[index]

  def captions(self, index: int) -> list[str]:
    return self._texts[index]

  def numbered_captions(self, index: int) -> Captions:
    captions: Captions = {'caption': self._texts[index]}
    if self._numbers is not None:
      captions['columns'] = self._numbers[index]
    return captions

  def file(self, index: int) -> str:
    return os.path.join(self._folder, os.path.expanduser(self._paths[index]))

  def __getitem__(self, index: int) -> Record:
    path = self._paths[index]
    if path in self._damaged:
      raise CorruptImageError(self._damaged[path])
    if is_url(path):
      raise CorruptImageError(f'{path}: {NOT_A_FILE}')
    return super().__getitem__(index)
