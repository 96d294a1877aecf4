"""Searches a table of embeddings: exactly, or through an index.

The index is a graph (HNSW) built once, in a file: that of TABLE is
TABLE.usearch, or TABLE.KIND.usearch where it holds one kind of row alone. A
JSON file beside it says of which table it is, and what its SHA-256 is. usearch
reads the graph from disk as it searches, and follows what stands there wherever
that leads, so that a damaged file must never come to it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.errors import FailureError, UsageError
from clip_jax.files import read_json, replacing, to_bytes, write_bytes
from clip_jax.inference.artifact import file_sha256
from clip_jax.inference.embeddings_table import EmbeddingsTable, VectorChunk
from clip_jax.inference.nearest import (
  Nearest,
  join_nearest,
  nearest_in_blocks,
  split_queries,
)
from clip_jax.progress import Progress, no_progress

_QUERIES = 256  # compared with a chunk of the table at once
_CONNECTIVITY = 16
_EXPANSION_ADD = 128
# The least width of a search; it grows with the rows that are asked for. Texts
# lie far from all images, and such queries need a wide search: among 10,000
# rows of 512 dimensions the recall@10 of queries far from every cluster is 0.94
# with 128 and 1.0 with 512 (among 30,000: 0.98).
_EXPANSION_SEARCH = 512


def search_table(
  table: EmbeddingsTable,
  queries: Float[np.ndarray, 'Q E'],
  *,
  kind: str | None = None,
  top: int = 10,
) -> Nearest:
  """Compares every row with every query.

  Memory does not grow with the table: a few megabytes of it are read at a
  time, and `top` rows a query are kept.

  Args:
    table: rows of unit length.
    queries: of unit length, from the model that made the table.
    kind: 'image' or 'text' compares rows of that kind only.
    top: rows a query at most; K is less where the table has fewer.
  Returns:
    Equal similarities are in the order of the table; those of equal rows
    may differ in the last bit.
  """

  def blocks(queries):
    for chunk in table.chunks(kind):
      similarities = queries @ chunk.vectors.T
      if not np.isfinite(similarities).all():
        _check_finite(table, chunk)
        raise FailureError('a query has a feature that is not a finite number.')
      yield chunk.rows, similarities

  return join_nearest(
    [
      nearest_in_blocks(len(some), blocks(some), k=top)
      for some in split_queries(queries, _QUERIES)
    ]
  )


class ApproximateIndex:
  """An index of a table's rows of one kind, built if it is not there.

  Attributes:
    path: its file.
    rows: how many it has.
  """

  def __init__(
    self,
    table: EmbeddingsTable,
    kind: str | None,
    *,
    say: Callable[[str], None],
    progress: Progress = no_progress,
  ):
    """Opens the index, or builds it.

    Args:
      table: rows of unit length; it stays open for as long as this is used.
      kind: only rows of this kind; None, all.
      say: takes a line: that it is built, and why.
      progress: shows how many rows the new index has.
    Raises:
      UsageError: usearch is not installed.
      FailureError: the index cannot be written.
    """
    restore = _usearch().restore  # before anything is said to be built
    self._table, self._kind = table, kind
    counts = table.count_kinds()
    self.rows = table.rows if kind is None else counts.get(kind, 0)
    part = f'.{kind}' if self.rows < table.rows else ''
    self.path = table.path.with_name(f'{table.path.name}{part}.usearch')
    self._about = self.path.with_name(f'{self.path.name}.json')
    identity = _identity(table, kind if part else None, self.rows)
    reason = self._stale(identity)
    if reason:
      say(f'building {self.path} of {self.rows:,} rows: {reason}')
      self._build(table, kind, identity, progress)
    index = restore(self.path, view=True)
    if index is None:
      raise FailureError(f'{self.path} cannot be read: remove it.')
    self._index = index

  def search(
    self, queries: Float[np.ndarray, 'Q E'], *, top: int = 10
  ) -> Nearest:
    """Does what `search_table` does; may miss some of the nearest rows.

    A query for which the graph leads to fewer rows than it has to, as among
    many equal ones, is searched exactly.
    """
    keep = min(top, self.rows)
    self._index.expansion_search = max(_EXPANSION_SEARCH, 2 * keep)
    matches = self._index.search(queries, keep)
    rows = np.reshape(matches.keys, (len(queries), -1)).astype(np.int64)
    distances = np.reshape(matches.distances, (len(queries), -1))
    # A row of matches is filled up after those that were found, with values
    # that may be NaN. The answer to a single query is not filled up.
    counts = np.asarray(getattr(matches, 'counts', [rows.shape[1]]))
    short = counts < keep
    distances = np.where(short[:, None], 0, distances)
    similarities = (1 - distances).astype(np.float32)
    if short.any():
      exact = search_table(
        self._table, queries[short], kind=self._kind, top=keep
      )
      if short.all():
        return exact
      rows[short], similarities[short] = exact
    return Nearest(rows, similarities)

  def _stale(self, identity: dict[str, Any]) -> str:
    """Returns why the index must be built; '' where it serves."""
    if not self.path.exists() or not self._about.exists():
      return 'there is none yet'
    try:
      about = read_json(self._about)
    except FailureError:
      about = None
    if not isinstance(about, dict):
      return 'the description of the old one is damaged'
    if about.get('table') != identity:
      return 'the table has changed since the old one'
    if 'sha256' not in about:
      return 'the old one has no checksum'
    if about.get('bytes') != self.path.stat().st_size:
      return 'the old one is damaged'
    try:
      whole = about['sha256'] == file_sha256(self.path)
    except FailureError:  # no file
      whole = False
    return '' if whole else 'the old one is damaged'

  def _build(
    self,
    table: EmbeddingsTable,
    kind: str | None,
    identity: dict[str, Any],
    progress: Progress,
  ) -> None:
    index = _usearch()(
      ndim=table.dims,
      metric='ip',
      dtype='f32',
      connectivity=_CONNECTIVITY,
      expansion_add=_EXPANSION_ADD,
    )
    chunks = table.chunks(kind)
    for chunk in progress(chunks, self.rows, 'rows', size=_size):
      _check_finite(table, chunk)
      index.add(chunk.rows.astype(np.uint64), chunk.vectors)
    # A kill between these leaves an index without a description, which is
    # built again; never a description of another index.
    try:
      with replacing(self.path) as temporary:
        index.save(temporary)
        self._about.unlink(missing_ok=True)
    except RuntimeError as error:  # usearch's, as of a full disk
      if isinstance(error, FailureError):
        raise
      raise FailureError(
        f'{self.path} could not be written: {str(error).lower()}.'
      ) from error
    about = {
      'table': identity,
      'bytes': self.path.stat().st_size,
      'sha256': file_sha256(self.path),
    }
    write_bytes(self._about, to_bytes(about))


def _size(chunk: VectorChunk) -> int:
  return len(chunk.rows)


def _identity(
  table: EmbeddingsTable, kind: str | None, rows: int
) -> dict[str, Any]:
  """Returns what an index must have been built of."""
  status = Path(table.path).stat()
  return {
    'kind': kind,
    'rows': rows,
    'dims': table.dims,
    'bytes': status.st_size,
    'modified_ns': status.st_mtime_ns,
  }


def _check_finite(table: EmbeddingsTable, chunk: VectorChunk) -> None:
  """Refuses rows that no similarity can be computed of.

  Raises:
    FailureError: one has a feature that is no number, or vastly large.
  """
  # Larger numbers overflow float32 when they are squared.
  wrong = ~(np.abs(chunk.vectors) < 1e18).all(axis=1)
  if wrong.any():
    row = int(chunk.rows[wrong.argmax()])
    name = table.entries([row])[row].id
    raise FailureError(
      f'{table.path}, row {row:,} ({name}): a feature is not a finite number; '
      'embed again.'
    )


def _usearch():
  """Returns the index class of usearch, an optional dependency."""
  try:
    from usearch.index import Index
  except ImportError as error:
    raise UsageError(
      '--approximate needs usearch: pip install ".[search]", or leave '
      'it out for an exact search.'
    ) from error
  return Index
