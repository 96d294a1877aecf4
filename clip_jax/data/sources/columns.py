"""Captions and labels of records that have columns, in tables and data sets."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NotRequired, TypedDict

from clip_jax.data.sources import Spec
from clip_jax.data.sources.base import DEFAULT_CAPTIONS

# Why an image that a table names by its URL is a corrupt record.
NOT_A_FILE = 'a URL, not a file: clip-jax data fetch downloads images'


class Captions(TypedDict):
  """The captions of a `Record`."""

  caption: list[str]
  columns: NotRequired[list[int]]


def require_columns(
  spec: Spec, wanted: Iterable[str], available: Collection[str]
) -> None:
  """Refuses data that lack a column.

  Raises:
    UsageError: it names the column, and those that the data have.
  """
  for name in wanted:
    if name not in available:
      known = ', '.join(sorted(available)) or 'none'
      remedy = _remedy(name, available)
      raise spec.error(f'no column {name!r}; it has {known}{remedy}')


def _remedy(missing: str, available: Collection[str]) -> str:
  """Returns what gives data a column that they lack, to follow the error."""
  if missing == 'image' and 'url' in map(str.lower, available):
    return ': clip-jax data fetch downloads images of URLs'
  if missing == 'image' and available:
    return ': rename the column of images'
  if (missing,) == DEFAULT_CAPTIONS and available:
    return ': --captions=NAME (in a config data.captions) takes others'
  return ''


def caption_columns(
  spec: Spec,
  wanted: tuple[str, ...],
  available: Collection[str],
  *,
  labelled: bool,
) -> list[str]:
  """Returns the columns to read captions from.

  Labelled data may lack the default column: the names of labels are captions
  then.

  Raises:
    UsageError: a column is missing.
  """
  if wanted != DEFAULT_CAPTIONS or not labelled:
    require_columns(spec, wanted, available)
  return [name for name in wanted if name in available]


def texts_of(cells: Iterable[Any]) -> list[str]:
  """Returns the captions of a record, whose cells hold a text or a list each.

  Raises:
    UnicodeDecodeError: bytes in a cell are not UTF-8.
  """
  texts: list[str] = []
  for cell in cells:
    values = [cell] if isinstance(cell, bytes | str) else cell
    texts += [x.decode() if isinstance(x, bytes) else x for x in values]
  return texts


def captions_of(texts: Iterable[tuple[int, str]], asked: int) -> Captions:
  """Returns the captions of a record, with the number of each one's column.

  Args:
    texts: the number of a column, and a text in it.
    asked: how many columns were asked for; of one, no numbers are returned.
  """
  pairs = list(texts)
  captions: Captions = {'caption': [text for _, text in pairs]}
  if asked > 1:
    captions['columns'] = [number for number, _ in pairs]
  return captions


def numbered_texts(cells: Iterable[Any]) -> Iterator[tuple[int, str]]:
  """Yields the texts of a record's cells, with the number of the cell of each.

  Args:
    cells: of columns; see `texts_of`.
  """
  for number, cell in enumerate(cells):
    for text in texts_of([cell]):
      yield number, text


def number_labels(
  labels: Sequence[str],
) -> tuple[list[int], tuple[str, ...] | None]:
  """Returns labels as numbers, and the name of each number.

  Where all labels are whole numbers, they stay, and have no names (None).
  Otherwise they are numbered by their sorted names. '' is no label: -1.
  """
  names = {label for label in labels if label}
  if all(re.fullmatch(r'[+-]?[0-9]{1,9}', name) for name in names):
    return [int(label or -1) for label in labels], None
  label_names = tuple(sorted(names))
  number = {name: i for i, name in enumerate(label_names)}
  return [number.get(label, -1) for label in labels], label_names


def label_captions(
  label_names: Sequence[str], labels: Iterable[int]
) -> list[str]:
  """Returns the names of a record's labels, as its captions."""
  return [words(label_names[label]) for label in labels if label >= 0]


def words(class_name: str) -> str:
  """Returns the name of a class in words: 'red_apple' is 'red apple'."""
  return class_name.replace('_', ' ')
