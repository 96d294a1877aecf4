"""One self-contained page of what was found, with the pictures in it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_jax.data.images import CorruptImageError
from clip_jax.data.sources import Source
from clip_jax.data.thumbnails import data_uri
from clip_jax.files import replacing
from clip_jax.report.page import environment

_SIDE = 320  # pixels of a thumbnail: 160 on the page, at double density
_GAP = 1000  # records looked at beyond a row's own place; see `find_records`


@dataclasses.dataclass(frozen=True)
class Found:
  """One row that was found.

  Attributes:
    rank: from 1.
    row: its place in the table.
    id, kind, caption: see `embeddings`.
    similarity: cosine, with the query.
    copies: ids of rows that are nearly the same, and not shown.
  """

  rank: int
  row: int
  id: str
  kind: str
  caption: str
  similarity: float
  copies: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Answer:
  """A query and its rows, the most similar first.

  Attributes:
    query: the text, or the picture's path.
    is_picture: which of them.
  """

  query: str
  is_picture: bool
  found: list[Found]


def write_page(
  path: Path,
  answers: Sequence[Answer],
  *,
  source: Source | None,
  facts: Mapping[str, Any],
) -> int:
  """Writes the page, whole or not at all.

  Args:
    path: of the page.
    answers: with what was found.
    source: has the pictures; None, the page has ids and captions only.
    facts: `title`, `heading`, `names` (of files and the like) and `note`, a
      sentence, of the page; `quoted`, whether queries are in quotes.
  Returns:
    How many rows of pictures have none on the page, since the source does not
    have them or they cannot be read.
  """
  wanted = {
    found.row: found.id
    for answer in answers
    for found in answer.found
    if found.kind == 'image'
  }
  pictures = {}
  if source is not None:
    for row, index in find_records(source, wanted).items():
      uri = _picture(source, index)
      if uri:
        pictures[row] = uri
  template = environment().get_template('search.html')
  page = template.render(
    answers=answers,
    asked=[
      data_uri(answer.query, _SIDE) if answer.is_picture else None
      for answer in answers
    ],
    pictures=pictures,
    facts=facts,
  )
  with replacing(path) as temporary:
    temporary.write_text(page, encoding='utf-8', errors='replace')
  return len(wanted) - len(pictures)


def find_records(source: Source, wanted: Mapping[int, str]) -> dict[int, int]:
  """Where a source has the records of some rows.

  The rows of a table are in the order of its source, without the records that
  could not be read: a row's record stands at the row's own place or soon after
  it. Only what is not there is looked for in the whole source.

  Args:
    wanted: row to id.
  Returns:
    Row to index, of those that the source has.
  """
  found = {}
  for row, key in wanted.items():
    for index in range(row, min(len(source), row + _GAP)):
      if source.id(index) == key:
        found[row] = index
        break
  missing: dict[str, list[int]] = {}
  for row, key in wanted.items():
    if row not in found:
      missing.setdefault(key, []).append(row)
  for index in range(len(source) if missing else 0):
    found.update(dict.fromkeys(missing.pop(source.id(index), ()), index))
    if not missing:
      break
  return found


def _picture(source: Source, index: int) -> str:
  """A thumbnail's URI, or '' where the picture cannot be read any more."""
  try:
    return data_uri(source[index]['image'], _SIDE)
  except CorruptImageError:
    return ''
