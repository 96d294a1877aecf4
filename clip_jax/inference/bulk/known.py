"""What a finished file already has, so that only the rest is encoded.

A row serves again where the same content would go through the same model in
the same way: its vector is taken, and its id and caption are made anew.
"""

import collections
import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8, UInt64

from clip_jax.errors import UsageError
from clip_jax.inference.bulk.identity import differences
from clip_jax.inference.embeddings_reader import (
  EmbeddingsTable,
  open_embeddings,
)

# What the vectors of each kind depend on beside the content.
_DEPENDS = {
  'image': ('model', 'preprocessing', 'dtype'),
  'text': ('model', 'tokenizer', 'dtype'),
}


class Update(NamedTuple):
  """What became of the rows of an earlier file, and of those that are new."""

  kept: int = 0  # of the same content as a row that was there
  new: int = 0
  changed: int = 0  # pictures whose id was there with other content
  dropped: int = 0  # rows whose id and content are both gone

  def __add__(self, other: tuple) -> 'Update':
    return Update(*(x + y for x, y in zip(self, other, strict=True)))


class Rows:
  """The rows of one kind in a table: 32 bytes of memory a row."""

  def __init__(
    self,
    rows: Sequence[int] = (),
    digests: UInt8[np.ndarray, 'N 16'] | None = None,
    ids: UInt64[np.ndarray, ' N'] | None = None,
  ):
    """Sorts the rows by digest.

    Args:
      rows: their places in the table.
      digests: of their contents.
      ids: hashes of their ids; see `_hashes`.
    """
    halves = _halves(
      np.empty((0, 16), np.uint8) if digests is None else digests
    )
    order = np.argsort(halves[:, 0], kind='stable')
    self.ids = np.empty(0, np.uint64) if ids is None else ids[order]
    self._rows = np.asarray(rows, np.int64)[order]
    self.digests, self._rest = halves[order].T

  def find(self, digest: bytes) -> int:
    """The row of the content that has this digest, or -1."""
    first, rest = np.frombuffer(digest, np.uint64)
    place = int(np.searchsorted(self.digests, first))
    # That two contents share half of their digests will not happen; if it
    # does, one of them is encoded again.
    found = place < len(self._rows) and self.digests[place] == first
    return int(self._rows[place]) if found and self._rest[place] == rest else -1


class Known:
  """The rows of an earlier table that need not be encoded.

  Attributes:
    serves: whether there is any such table.
  """

  def __init__(
    self, table: EmbeddingsTable | None = None, kinds: Iterable[str] = ()
  ):
    """Reads ids and digests, and no vector.

    Args:
      table: it stays open for as long as this is used.
      kinds: whose rows serve; those of others are known as gone only.
    """
    self.serves = table is not None
    self._table, self._kinds = table, set(kinds)
    self._of: dict[str, Rows] = {} if table is None else _read(table)

  def of(self, kind: str) -> Rows:
    """Returns the rows of a kind whose vectors may be taken."""
    return self._of.get(kind, Rows()) if kind in self._kinds else Rows()

  def vectors(self, rows: Sequence[int]) -> Float[np.ndarray, 'n E']:
    """The vectors of rows that `Rows.find` found."""
    assert self._table is not None
    return self._table.vectors(rows)

  def compare(
    self,
    kind: str,
    now: Iterable[tuple[list[str], UInt8[np.ndarray, 'n 16']]],
  ) -> Update:
    """Counts the rows of a kind that are kept, new, changed or gone.

    Args:
      now: ids and digests of all that are there now, some at a time.
    """
    hashes = [(_hashes(ids), _halves(digests)[:, 0]) for ids, digests in now]
    none = np.empty(0, np.uint64)
    names = np.concatenate([none, *(x for x, _ in hashes)])
    contents = np.concatenate([none, *(x for _, x in hashes)])
    old, serving = self._of.get(kind, Rows()), self.of(kind)
    kept = np.isin(contents, serving.digests)
    gone = ~np.isin(old.digests, contents)
    changed = np.zeros(len(names), bool)
    # A text's id is the number of its line: another line there is another text.
    if kind == 'image':
      changed = ~kept & np.isin(names, old.ids)
      gone &= ~np.isin(old.ids, names)
    counts = kept, ~kept & ~changed, changed, gone
    return Update(*(int(x.sum()) for x in counts))


@contextlib.contextmanager
def known_rows(
  out: Path, identity: Mapping[str, Any], say: Callable[[str], None]
) -> Iterator[Known]:
  """Opens what is there of an earlier call, as far as it serves a job.

  Args:
    out: the job's output.
    identity: the job's.
    say: takes a line: why a file that is there does not serve.
  """
  with contextlib.ExitStack() as stack:
    table = None
    if out.exists():
      try:
        table = stack.enter_context(open_embeddings(out))
      except UsageError as error:
        say(f'{str(error).rstrip(".")}: it will be replaced.')
    kinds = []
    if table is not None:
      for kind, reasons in _reasons(table, identity).items():
        if reasons:
          say(f'all {kind}s of {out} are encoded anew: {"; ".join(reasons)}.')
        else:
          kinds.append(kind)
    yield Known(table, kinds) if kinds else Known()


def _reasons(
  table: EmbeddingsTable, identity: Mapping[str, Any]
) -> dict[str, list[str]]:
  """Why the rows of each kind, of those that a job has, do not serve."""
  found = {}
  for kind in table.count_kinds():
    if kind not in _DEPENDS or not identity[f'{kind}s']:
      continue
    found[kind] = ['it does not say what its rows were made of']
    if table.has_digests and 'model' in table.about:
      fields = _DEPENDS[kind]
      found[kind] = differences(dict(identity), table.about, fields)
  return found


def _read(table: EmbeddingsTable) -> dict[str, Rows]:
  rows: dict[str, list[np.ndarray]] = collections.defaultdict(list)
  digests: dict[str, list[np.ndarray]] = collections.defaultdict(list)
  ids: dict[str, list[np.ndarray]] = collections.defaultdict(list)
  start = 0
  for part in table.contents():
    kinds, names = np.array(part.kinds), _hashes(part.ids)
    for kind in np.unique(kinds).tolist():
      places = np.flatnonzero(kinds == kind)
      rows[kind].append(start + places)
      digests[kind].append(part.digests[places])
      ids[kind].append(names[places])
    start += len(kinds)
  return {
    kind: Rows(
      np.concatenate(rows[kind]).tolist(),
      np.concatenate(digests[kind]),
      np.concatenate(ids[kind]),
    )
    for kind in rows
  }


def _halves(digests: UInt8[np.ndarray, 'N 16']) -> UInt64[np.ndarray, 'N 2']:
  return np.ascontiguousarray(digests).view(np.uint64).reshape(-1, 2)


def _hashes(ids: Iterable[str]) -> UInt64[np.ndarray, ' N']:
  """Eight bytes for each id, as tables of both formats have it."""
  encoded = (x.encode('utf-8', 'backslashreplace') for x in ids)
  found = [hashlib.blake2b(x, digest_size=8).digest() for x in encoded]
  return np.frombuffer(b''.join(found), np.uint64)
