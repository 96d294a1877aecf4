"""Finds rows that are copies of others: of equal or nearly equal content.

Rows are taken in their order, and a row is kept unless it is a copy of one that
is kept already. So each copy is like the very row that stands for it: copies of
copies, which may be less and less like the first, form no chains.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64

from clip_jax.data.decoding import check_corrupt
from clip_jax.data.reading import none_readable, read_ahead
from clip_jax.data.sources import Source
from clip_jax.errors import FailureError, UsageError
from clip_jax.inference.embeddings_table import EmbeddingsTable
from clip_jax.inference.nearest import nearest_in_blocks
from clip_jax.progress import Progress, no_progress

_TILE = 2048  # rows compared with as many at once: 16 MB of similarities
# Equal images may be encoded in different batches, whose rounding takes at most
# this from their cosine.
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Copies:
  """For each of N items, the item that it is a copy of.

  Attributes:
    of: the item that each is a copy of; itself, of those that are kept.
    similarity: cosine with that item; 1 of exact copies.
    exact: whether it is of the very same content.
  """

  of: Int64[np.ndarray, ' N']
  similarity: Float[np.ndarray, ' N']
  exact: np.ndarray

  @property
  def kept(self) -> Int64[np.ndarray, ' K']:
    """The items that are copies of none, in order."""
    return np.flatnonzero(self.of == np.arange(len(self.of)))

  def groups(self) -> dict[int, list[int]]:
    """Returns, for each kept item that has copies, these copies, in order."""
    groups: dict[int, list[int]] = {}
    copies = np.flatnonzero(self.of != np.arange(len(self.of)))
    for copy in copies[np.argsort(self.of[copies], kind='stable')].tolist():
      groups.setdefault(int(self.of[copy]), []).append(copy)
    return groups


@runtime_checkable
class Vectors(Protocol):
  """Rows of vectors, such as an `EmbeddingsTable`."""

  def vectors(self, rows: Sequence[int]) -> Float[np.ndarray, 'n E']:
    """Returns some of the rows."""
    ...


class _ArrayOfVectors:
  def __init__(self, array: Float[np.ndarray, 'N E']):
    self._array = array

  def vectors(self, rows: Sequence[int]) -> Float[np.ndarray, 'n E']:
    return self._array[list(rows)]


class ComparedItems(NamedTuple):
  """Images or texts that were compared, and which of them are copies.

  Attributes:
    kind: 'image' or 'text'.
    ids, captions: of each item.
    rows: the index of each in the data set, or in the table of embeddings.
    copies: among the items.
    corrupt: id to reason, of images that cannot be read; those of a table were
      left out when it was made, and are not told again.
    threshold: of the cosine; None where only exact copies were looked for.
  """

  kind: str
  ids: list[str]
  captions: list[str]
  rows: list[int]
  copies: Copies
  corrupt: dict[str, str]
  threshold: float | None = None


def compare_files(
  source: Source, max_corrupt: int, progress: Progress = no_progress
) -> ComparedItems:
  """Finds the exact copies among the images of a data set, without a model.

  Args:
    source: the data set.
    max_corrupt: images that may be unreadable.
    progress: shows how many images were read.
  Raises:
    FailureError: too many images are corrupt, or none can be read.
  """
  rows, digests, corrupt = [], [], {}
  everything = range(len(source))
  records = read_ahead(source, everything, lambda digest: True)
  shown = progress(records, len(source), 'images')
  for row, record in zip(everything, shown, strict=True):
    if record.reason:
      corrupt[source.id(row)] = record.reason
      check_corrupt(corrupt, max_corrupt, source.spec)
    else:
      rows.append(row)
      digests.append(record.digest)
  if not rows:
    raise FailureError(none_readable(source.spec, corrupt))
  return ComparedItems(
    'image',
    [source.id(row) for row in rows],
    [(source.captions(row) or [''])[0] for row in rows],
    rows,
    exact_copies(digests),
    corrupt,
  )


def compare_embeddings(
  table: EmbeddingsTable,
  threshold: float,
  progress: Progress = no_progress,
) -> ComparedItems:
  """Finds the copies among a table's images, or its texts if it has no image.

  Args:
    table: what `clip-jax embed` wrote.
    threshold: the least cosine of a near copy.
    progress: shows how many rows were compared.
  Raises:
    UsageError: the table has no rows.
  """
  if not table.rows:
    raise UsageError(f'{table.path} has no rows.')
  kind = 'image' if 'image' in table.count_kinds() else 'text'
  rows, digests = _rows_and_digests(table, kind)
  entries = table.entries(rows)
  copies = near_copies(
    table,
    rows,
    exact_copies(digests),
    threshold,
    progress=progress,
  )
  return ComparedItems(
    kind,
    [entries[row].id for row in rows],
    [entries[row].caption for row in rows],
    rows,
    copies,
    {},
    threshold,
  )


def _rows_and_digests(
  table: EmbeddingsTable, kind: str
) -> tuple[list[int], list[bytes]]:
  """Returns the rows of a kind, and a digest of the content of each.

  Where the table has no digests, every row gets one of its own.
  """
  if not table.has_digests:
    rows = [row for chunk in table.chunks(kind) for row in chunk.rows.tolist()]
    return rows, [row.to_bytes(8, 'big') for row in rows]
  rows, digests, start = [], [], 0
  for part in table.contents():
    for i, row_kind in enumerate(part.kinds):
      if row_kind == kind:
        rows.append(start + i)
        digests.append(part.digests[i].tobytes())
    start += len(part.kinds)
  return rows, digests


def exact_copies(digests: Iterable[bytes]) -> Copies:
  """Finds the items whose content is that of an earlier one.

  Args:
    digests: of each; see `digest_of`.
  """
  first: dict[bytes, int] = {}
  of = np.array([first.setdefault(x, i) for i, x in enumerate(digests)], int)
  exact = of != np.arange(len(of))
  return Copies(of, np.ones(len(of)), exact)


def find_near_copies(
  vectors: Float[np.ndarray, 'N E'], threshold: float
) -> Int64[np.ndarray, ' N']:
  """Returns the row that each row of an array is a copy of; itself, of none."""
  rows = range(len(vectors))
  none = Copies(
    np.arange(len(rows)), np.ones(len(rows)), np.zeros(len(rows), bool)
  )
  return near_copies(_ArrayOfVectors(vectors), rows, none, threshold).of


def near_copies(
  table: Vectors,
  rows: Sequence[int],
  exact: Copies,
  threshold: float,
  *,
  progress: Progress = no_progress,
) -> Copies:
  """Finds, beside the exact copies, those of a cosine of at least `threshold`.

  Every row is compared with all that are kept, a tile at a time: memory grows
  with the number of rows, never with that of pairs.

  Args:
    table: has the vectors.
    rows: of the table, of one kind: the N items.
    exact: copies among these items.
    threshold: a cosine.
    progress: shows how many of the rows have been compared.
  """
  of, similarity = exact.of.copy(), exact.similarity.copy()
  items, least = exact.kept, threshold - _ROUNDING
  kept: list[int] = []
  tiles = np.split(items, range(_TILE, len(items), _TILE))
  for tile in progress(tiles, len(rows), 'rows', size=len):
    vectors = _unit_rows(table, rows, tile)
    best, nearest = np.full(len(tile), -1.0), tile.copy()
    if kept:
      blocks = _similarities(table, rows, vectors, kept)
      earlier = nearest_in_blocks(len(tile), blocks, k=1)
      best[:], nearest[:] = earlier.similarities[:, 0], earlier.rows[:, 0]
    within = vectors @ vectors.T
    kept_here: list[int] = []  # positions in the tile
    for i, item in enumerate(tile.tolist()):
      if kept_here:
        j = kept_here[int(within[i, kept_here].argmax())]
        if within[i, j] > best[i]:
          best[i], nearest[i] = within[i, j], tile[j]
      if best[i] >= least:
        of[item], similarity[item] = nearest[i], min(best[i], 1.0)
      else:
        kept_here.append(i)
    kept += tile[kept_here].tolist()
  # Exact copies go with what they are copies of.
  same = exact.exact & (of[exact.of] == exact.of)
  return Copies(of[of], np.minimum(similarity, similarity[exact.of]), same)


def fold(
  vectors: Float[np.ndarray, 'N E'],
  words: Sequence[str],
  threshold: float,
  *,
  top: int,
) -> list[list[int]]:
  """Puts rows that are nearly the same together, the first of them first.

  Memory grows with the number of rows, time with that of rows times groups.

  Args:
    vectors: unit length, the most important first.
    words: of each; rows whose words differ stay apart.
    threshold: a cosine, with the first of a group.
    top: groups at most.
  Returns:
    Lists of rows, in the order of their first.
  """
  numbers: dict[str, int] = {}
  word_numbers = np.array([numbers.setdefault(x, len(numbers)) for x in words])
  groups: list[list[int]] = []
  rest = np.arange(len(words))  # rows that are in no group yet
  while len(rest) and len(groups) < top:
    first = rest[0]
    similarities = (vectors @ vectors[first])[rest]
    alike = similarities >= threshold - _ROUNDING
    alike &= word_numbers[rest] == word_numbers[first]
    alike[0] = True  # to itself, whatever the rounding
    groups.append(rest[alike].tolist())
    rest = rest[~alike]
  return groups


def _similarities(
  table: Vectors,
  rows: Sequence[int],
  vectors: Float[np.ndarray, 'Q E'],
  items: Sequence[int],
) -> Iterator[tuple[Int64[np.ndarray, ' n'], Float[np.ndarray, 'Q n']]]:
  """Yields some of the items, and how similar the vectors are to them."""
  for start in range(0, len(items), _TILE):
    some = np.array(items[start : start + _TILE])
    yield some, vectors @ _unit_rows(table, rows, some).T


def _unit_rows(
  table: Vectors, rows: Sequence[int], items: np.ndarray
) -> Float[np.ndarray, 'n E']:
  vectors = table.vectors([rows[i] for i in items.tolist()])
  lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors / np.maximum(lengths, 1e-12)
