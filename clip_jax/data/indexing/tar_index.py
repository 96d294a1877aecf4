"""The index of tar shards: any record of 10^9, without a list of them.

What is known of each shard is in memory, and the entries of its records are in
a file (see `manifest`). They are read one by one: pages of a file that is
mapped into memory would count as the process's own, until all of it is there.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from clip_jax.data import storage
from clip_jax.data.indexing.tar import (
  BLOCK,
  MAX_HEADER_BYTES,
  PROBLEMS,
  members,
  reader_of,
)
from clip_jax.data.indexing.tar_shard import (
  ENTRY,
  MAX_SHARD_BYTES,
  PROBLEM_KIND,
  UNKNOWN_KIND,
  Entries,
  Suffixes,
  scan,
)
from clip_jax.errors import FailureError, MissingFileError

# Remote shards whose versions are asked for when an index is opened: a request
# each, and a collection has ten thousands.
_REMOTE_CHECKS = 64
_REQUESTS = 32  # at a time


@dataclasses.dataclass(frozen=True)
class IndexedShard:
  """A shard as an index describes it.

  Attributes:
    name: its path, relative to the root of the index.
    size: in bytes.
    version: changes with the content; see `storage.version`.
    sha256: of the content, in hex; '' where only headers were read.
    counts: the number of its entries by their kind.
  """

  name: str
  size: int
  version: str
  sha256: str
  counts: Mapping[int, int]


class EntryFile:
  """The entries of a stored index; each process opens the file for itself."""

  def __init__(self, path: str):
    self.path = path
    self._descriptor: int | None = None

  def read(self, first: int, count: int) -> np.ndarray:
    """Returns entries [first, first + count), of dtype ENTRY.

    Raises:
      MissingFileError, FailureError: they cannot be read.
    """
    offset, length = first * ENTRY.itemsize, count * ENTRY.itemsize
    if storage.is_remote(self.path):
      data = storage.read_range(self.path, offset, length)
    else:
      if self._descriptor is None:
        with storage.open_file(self.path) as file:
          self._descriptor = os.dup(file.fileno())
      data = os.pread(self._descriptor, length, offset)
    if len(data) < length:
      raise FailureError(f'{self.path}: cut off; make the index again.')
    return np.frombuffer(data, ENTRY)

  def __getstate__(self) -> dict[str, Any]:
    return {'path': self.path, '_descriptor': None}

  def __del__(self):
    # At the end of the program, modules go before what uses them.
    if getattr(self, '_descriptor', None) is not None and os is not None:
      os.close(self._descriptor)  # pyright: ignore[reportArgumentType]


class EntryArray:
  """The entries of an index that is in memory."""

  def __init__(self, rows: np.ndarray):
    self._rows = rows

  def read(self, first: int, count: int) -> np.ndarray:
    """Returns entries [first, first + count), of dtype ENTRY."""
    return self._rows[first : first + count]


class TarIndex:
  """The index of tar shards: it says where each record lies.

  Attributes:
    root: the folder that names of shards are relative to.
    names: of the shards, in order.
    records: int64 [S], the entries of each shard, those of problems included.
    kinds: the suffixes that records of each kind have.
    shards: what is known of each.
  """

  def __init__(
    self,
    root: str,
    shards: Sequence[IndexedShard],
    kinds: Sequence[Suffixes],
    entries: EntryFile | EntryArray,
    first_rows: np.ndarray | None = None,
  ):
    """Holds the shards; first_rows (int64 [S]) where their entries begin."""
    self.root = root
    self.names = [shard.name for shard in shards]
    self.shards = shards
    self.kinds = list(kinds)
    self._entries = entries
    self.records = np.array([sum(x.counts.values()) for x in shards], np.int64)
    self._ends = np.cumsum(self.records)
    starts = self._ends - self.records
    self._first_rows = starts if first_rows is None else first_rows

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def entry(self, index: int) -> tuple[int, np.void]:
    """Returns the number of the shard of a record, and its entry."""
    shard, within = self.locate(index)
    row = int(self._first_rows[shard]) + within
    return shard, self._entries.read(row, 1)[0]

  def locate(self, index: int) -> tuple[int, int]:
    """Returns the number of the shard of a record, and its position there."""
    if not 0 <= index < len(self):
      raise IndexError(index)
    shard = int(np.searchsorted(self._ends, index, side='right'))
    return shard, index - int(self._ends[shard] - self.records[shard])

  def shard_entries(self, shard: int) -> np.ndarray:
    """Returns all entries of a shard, of dtype ENTRY."""
    count = int(self.records[shard])
    return self._entries.read(int(self._first_rows[shard]), count)

  def path(self, shard: int) -> str:
    """Returns the path or URL of a shard."""
    return storage.join(self.root, self.names[shard])

  def problem(self, index: int) -> str:
    """Returns what is wrong with a damaged member; '' of a record."""
    _, entry = self.entry(index)
    position = int(entry['kind']) - PROBLEM_KIND
    if position < 0:
      return ''
    return PROBLEMS[position] if position < len(PROBLEMS) else 'damaged'

  def id(self, index: int) -> str:
    """Returns SHARD:KEY, or SHARD:NAME@BYTE of a damaged member.

    A few blocks of the shard are read. The name is left out where they cannot
    be, or have none.
    """
    number, entry = self.entry(index)
    shard, start = self.names[number], int(entry['start']) * BLOCK
    length = int(entry['length']) * BLOCK
    for most in (4 * BLOCK, 2 * MAX_HEADER_BYTES):  # a long name needs more
      try:
        head = storage.read_range(self.path(number), start, min(most, length))
      except FailureError:
        break
      member = next(members(reader_of(head), len(head)), None)
      if member is not None and member.name:
        parts = member.key_and_suffix()
        if parts and entry['kind'] < PROBLEM_KIND:
          return f'{shard}:{parts[0]}'
        return f'{shard}:{member.name}@{start}'
    return f'{shard}@{start}'

  def counts(self, kinds: Iterable[int]) -> np.ndarray:
    """Returns the number of entries of some kinds, int64 [S]."""
    kinds = set(kinds)
    return np.array(
      [
        sum(n for kind, n in shard.counts.items() if kind in kinds)
        for shard in self.shards
      ],
      np.int64,
    )

  def totals(self) -> dict[int, int]:
    """Returns the number of all entries by their kind."""
    totals: dict[int, int] = {}
    for shard in self.shards:
      for kind, count in shard.counts.items():
        totals[kind] = totals.get(kind, 0) + count
    return totals

  def selected(self, names: Sequence[str]) -> 'TarIndex':
    """Returns the index of some of the shards, in another order.

    Raises:
      KeyError: there is no such shard.
    """
    if list(names) == self.names:
      return self
    numbers = {name: number for number, name in enumerate(self.names)}
    chosen = [numbers[name] for name in names]
    return TarIndex(
      self.root,
      [self.shards[number] for number in chosen],
      self.kinds,
      self._entries,
      self._first_rows[chosen],
    )

  def changed(self) -> tuple[list[str], list[str]]:
    """Returns the names of shards that are not as they were indexed.

    Of remote shards, no more than 64 are asked for, evenly spaced.

    Returns:
      Those that are missing or of another size, and those that are newer.
    """
    numbers = range(len(self.names))
    if storage.is_remote(self.root):
      numbers = numbers[:: max(1, -(-len(numbers) // _REMOTE_CHECKS))]
    paths = [self.path(number) for number in numbers]
    versions = versions_of(paths)
    other, newer = [], []
    for number, path, version in zip(numbers, paths, versions, strict=True):
      shard = self.shards[number]
      if version == shard.version:
        continue
      same_size = version and storage.size(path) == shard.size
      (newer if same_size else other).append(shard.name)
    return other, newer


def versions_of(paths: Sequence[str]) -> list[str]:
  """Returns the version of each shard; '' of a missing one.

  Raises:
    FailureError: one may not be read.
  """

  def version(path: str) -> str:
    try:
      return storage.version(path)
    except MissingFileError:
      return ''

  if not any(map(storage.is_remote, paths[:1])):
    return [version(path) for path in paths]
  with ThreadPoolExecutor(_REQUESTS) as pool:
    return list(pool.map(version, paths))


def scan_shard(path: str) -> Entries:
  """Reads the headers of a shard.

  Raises:
    MissingFileError, FailureError: it cannot be read, or has over 2 TiB.
  """
  with storage.open_file(path) as file:
    size = file.seek(0, os.SEEK_END)
    if size > MAX_SHARD_BYTES:
      raise FailureError(
        f'{path}: {size:,} bytes, over the limit of {MAX_SHARD_BYTES:,}.'
      )

    def read(offset: int, length: int) -> bytes:
      file.seek(offset)
      return file.read(length)

    return scan(read, size)


def index_in_memory(root: str, names: Sequence[str]) -> TarIndex:
  """Makes the index of a few shards, in order, and stores it nowhere.

  Raises:
    MissingFileError, FailureError: a shard cannot be read.
  """
  kinds = KindTable()
  shards, parts = [], []
  for name in names:
    path = storage.join(root, name)
    rows, counts = kinds.merge(scan_shard(path))
    parts.append(rows)
    size, version = storage.size(path), storage.version(path)
    shards.append(IndexedShard(name, size, version, '', counts))
  rows = np.concatenate([np.empty(0, ENTRY), *parts])
  return TarIndex(root, shards, kinds.kinds, EntryArray(rows))


class KindTable:
  """The kinds of records of several shards, numbered together."""

  def __init__(self, kinds: Sequence[Suffixes] = ()):
    """Begins with the kinds that have a number."""
    self.kinds = list(kinds)
    self._numbers = {suffixes: i for i, suffixes in enumerate(kinds)}

  def merge(self, entries: Entries) -> tuple[np.ndarray, dict[int, int]]:
    """Returns a shard's entries with the common numbers, and their counts."""
    numbers = np.arange(256, dtype=np.uint8)
    own_kinds, firsts = np.unique(entries.rows['kind'], return_index=True)
    # By their first records: an index that grew is one that was made at once.
    for own in own_kinds[np.argsort(firsts)].tolist():
      if own < len(entries.kinds):
        numbers[own] = self._number(entries.kinds[own])
    rows = entries.rows.copy()
    rows['kind'] = numbers[rows['kind']]
    counts = np.bincount(rows['kind'], minlength=1)
    return rows, {int(k): int(counts[k]) for k in np.flatnonzero(counts)}

  def _number(self, suffixes: Suffixes) -> int:
    if suffixes not in self._numbers:
      if len(self.kinds) == UNKNOWN_KIND:
        return UNKNOWN_KIND
      self._numbers[suffixes] = len(self.kinds)
      self.kinds.append(suffixes)
    return self._numbers[suffixes]
