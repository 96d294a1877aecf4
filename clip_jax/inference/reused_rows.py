"""Finds the rows that a finished file has, so that only the rest is encoded.

A row serves again where the same content would go through the same model in
the same way: its vector is taken, and its id and caption are made anew.
"""

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64, UInt8, UInt64

from clip_jax.errors import UsageError
from clip_jax.inference.embed_folder import differences
from clip_jax.inference.embeddings import open_embeddings
from clip_jax.inference.embeddings_table import EmbeddingsTable
from clip_jax.inference.identity import hash_each

# The fields that the vectors of each kind depend on, beside the content.
_DEPENDS = {
  'image': ('model', 'batch_stats', 'config', 'preprocessing', 'dtype'),
  'text': ('model', 'config', 'tokenizer', 'dtype'),
}


class Update(NamedTuple):
  """Counts of the rows that were kept, dropped and added."""

  kept: int = 0  # of the same content as a row that was there
  new: int = 0
  changed: int = 0  # images whose id was there with other content
  dropped: int = 0  # rows whose id and content are both gone

  def __add__(self, other: tuple) -> 'Update':
    return Update(*(x + y for x, y in zip(self, other, strict=True)))


class EarlierRows:
  """The rows of one kind in an earlier table: 32 bytes of memory a row."""

  def __init__(
    self,
    rows: Int64[np.ndarray, ' N'] | None = None,
    digests: UInt8[np.ndarray, 'N 16'] | None = None,
    ids: UInt64[np.ndarray, ' N'] | None = None,
    *,
    serve: bool = True,
  ):
    """Sorts the rows by digest.

    Args:
      rows: their numbers in the table.
      digests: of their contents.
      ids: hashes of their ids.
      serve: whether their vectors may be taken; else they are known as gone.
    """
    halves = _halves(
      np.empty((0, 16), np.uint8) if digests is None else digests
    )
    order = np.argsort(halves[:, 0], kind='stable')
    self.serve = serve
    self._ids = np.empty(0, np.uint64) if ids is None else ids[order]
    self._rows = np.empty(0, np.int64) if rows is None else rows[order]
    self._digests, self._rest = halves[order].T

  def find(self, digest: bytes) -> int:
    """Returns the row that serves for the content of a digest, or -1."""
    first, rest = np.frombuffer(digest, np.uint64)
    index = int(np.searchsorted(self._digests, first))
    # Two contents whose digests have the same first half are most unlikely; one
    # of them would be encoded again.
    same = (
      self.serve
      and index < len(self._rows)
      and self._digests[index] == first
      and self._rest[index] == rest
    )
    return int(self._rows[index]) if same else -1

  def compare(
    self,
    kind: str,
    rows_now: Iterable[tuple[list[str], UInt8[np.ndarray, 'n 16']]],
  ) -> Update:
    """Counts the rows that are kept, new, changed or gone.

    Args:
      kind: of the rows.
      rows_now: ids and digests of all that are there now, some at a time.
    """
    hashes = [
      (hash_each(ids), _halves(digests)[:, 0]) for ids, digests in rows_now
    ]
    none = np.empty(0, np.uint64)
    ids = np.concatenate([none, *(x for x, _ in hashes)])
    digests = np.concatenate([none, *(x for _, x in hashes)])
    kept = np.isin(digests, self._digests) & self.serve
    gone = ~np.isin(self._digests, digests)
    changed = np.zeros(len(ids), bool)
    # A text's id is its line number: a changed line counts as another text.
    if kind == 'image':
      changed = ~kept & np.isin(ids, self._ids)
      gone &= ~np.isin(self._ids, ids)
    counts = kept, ~kept & ~changed, changed, gone
    return Update(*(int(x.sum()) for x in counts))


class EarlierTable:
  """The rows of an earlier file, without their vectors.

  Attributes:
    serves: whether the vectors of any of its rows may be taken.
  """

  def __init__(
    self, table: EmbeddingsTable | None = None, serving: Iterable[str] = ()
  ):
    """Reads ids and digests.

    Args:
      table: it stays open for as long as this is used.
      serving: the kinds whose vectors may be taken.
    """
    serving = set(serving)
    self.serves = table is not None and bool(serving)
    self._table = table
    self._rows: dict[str, EarlierRows] = {}
    if table is not None and serving:
      self._rows = _read(table, serving)

  def rows(self, kind: str) -> EarlierRows:
    """Returns the rows of a kind."""
    return self._rows.get(kind, EarlierRows())

  def vectors(self, rows: Sequence[int]) -> Float[np.ndarray, 'n E']:
    """Reads the vectors of rows that `EarlierRows.find` returned."""
    assert self._table is not None
    return self._table.vectors(rows)


@contextlib.contextmanager
def open_earlier_table(
  out: Path, identity: Mapping[str, Any], say: Callable[[str], None]
) -> Iterator[EarlierTable]:
  """Opens the output of an earlier call, as far as it serves a job.

  Args:
    out: the job's output.
    identity: the job's.
    say: takes a line: why a file that is there does not serve.
  """
  with contextlib.ExitStack() as stack:
    table, serving = None, []
    if out.exists():
      try:
        table = stack.enter_context(open_embeddings(out))
      except UsageError as error:
        say(f'{str(error).rstrip(".")}: it will be replaced.')
    if table is not None:
      for kind, reasons in _reasons(table, identity).items():
        if reasons:
          say(f'all {kind}s of {out} are encoded anew: {"; ".join(reasons)}.')
        else:
          serving.append(kind)
    yield EarlierTable(table, serving)


def _reasons(
  table: EmbeddingsTable, identity: Mapping[str, Any]
) -> dict[str, list[str]]:
  """Returns why the rows of each kind cannot be used again."""
  reasons = {}
  for kind in table.count_kinds():
    if kind not in _DEPENDS or not identity[f'{kind}s']:
      continue
    reasons[kind] = ['it does not say what its rows were made of']
    # Tables of earlier versions do not say which activation their model had.
    if table.has_digests and {'model', 'config'} <= table.about.keys():
      fields = _DEPENDS[kind]
      reasons[kind] = differences(dict(identity), table.about, fields)
  return reasons


def _read(table: EmbeddingsTable, serving: set[str]) -> dict[str, EarlierRows]:
  columns: dict[str, list[tuple]] = collections.defaultdict(list)
  start = 0
  for block in table.contents():
    kinds, ids = np.array(block.kinds), hash_each(block.ids)
    for kind in np.unique(kinds).tolist():
      rows = np.flatnonzero(kinds == kind)
      columns[kind].append((start + rows, block.digests[rows], ids[rows]))
    start += len(kinds)
  return {
    kind: EarlierRows(
      *map(np.concatenate, zip(*blocks, strict=True)), serve=kind in serving
    )
    for kind, blocks in columns.items()
  }


def _halves(digests: UInt8[np.ndarray, 'N 16']) -> UInt64[np.ndarray, 'N 2']:
  return np.ascontiguousarray(digests).view(np.uint64).reshape(-1, 2)
