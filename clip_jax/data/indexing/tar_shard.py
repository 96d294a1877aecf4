"""Finds the records of a tar shard, and reads one of them.

A record is a run of members with one key, as WebDataset has it. Its entry in an
index says where it lies and which members it has, in nine bytes: of 10^9
records that is 9 GB on a disk, none of which is read before it is asked for.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.indexing.tar import (
  BLOCK,
  MAX_MEMBER_BYTES,
  PROBLEMS,
  SECOND_MEMBER,
  SECOND_RECORD,
  TOO_LARGE,
  Member,
  Read,
  members,
)

# In blocks of 512 bytes: where a record begins, and how long it is. `kind` is
# the number of a set of suffixes, or, from PROBLEM_KIND on, of a problem.
ENTRY = np.dtype([('start', '<u4'), ('length', '<u4'), ('kind', 'u1')])
PROBLEM_KIND = 200
# The kind of a record whose set of suffixes came after PROBLEM_KIND - 1 others.
UNKNOWN_KIND = PROBLEM_KIND - 1
# The most members of one record, so that a run of them fits in memory.
_MAX_MEMBERS = 1000
MAX_SHARD_BYTES = BLOCK * (2**32 - 1)

assert PROBLEM_KIND + len(PROBLEMS) <= 256

# The suffixes of a record's members, sorted; empty members are left out.
Suffixes = tuple[str, ...]


class Entries(NamedTuple):
  """The entries of some records, in their order.

  Attributes:
    rows: of dtype ENTRY [N].
    kinds: the suffixes that each kind of record has.
  """

  rows: np.ndarray
  kinds: list[Suffixes]


class TarRecord(NamedTuple):
  """The members of a record.

  Attributes:
    key: its path without a suffix.
    members: by suffix, in the archive's order.
    read: reads what they hold.
  """

  key: str
  members: dict[str, Member]
  read: Read

  def content(self, suffix: str) -> bytes:
    """Returns what a member holds.

    Raises:
      CorruptImageError: the shard ends before it does.
    """
    member = self.members[suffix]
    content = self.read(member.data, member.size)
    if len(content) < member.size:
      raise CorruptImageError('its shard is shorter than when it was indexed')
    return content


def scan(read: Read, size: int) -> Entries:
  """Returns the entries of all records of a shard, and of its problems.

  Args:
    size: of the shard, in bytes; at most MAX_SHARD_BYTES.
  """
  rows: list[tuple[int, int, int]] = []
  kinds: dict[Suffixes, int] = {}
  keys: set[int] = set()  # hashes: a shard may have millions
  for run in _runs(read, size):
    start, end = run[0].start, run[-1].end
    if run[0].problem is not None:
      kind = PROBLEM_KIND + run[0].problem
    elif (key := hash(_parts(run[0])[0])) in keys:
      kind = PROBLEM_KIND + SECOND_RECORD
    elif end - start > 2 * MAX_MEMBER_BYTES:
      kind = PROBLEM_KIND + TOO_LARGE
    else:
      keys.add(key)
      suffixes = tuple(sorted(_parts(x)[1] for x in run if x.size))
      kind = kinds.get(suffixes, UNKNOWN_KIND)
      if len(kinds) < UNKNOWN_KIND and sum(map(len, suffixes)) < 1000:
        kind = kinds.setdefault(suffixes, len(kinds))
    rows.append((start // BLOCK, -(-(end - start) // BLOCK), kind))
  return Entries(np.array(rows, ENTRY), list(kinds))


def read_record(read: Read, size: int) -> TarRecord:
  """Returns the record in the bytes that its entry names.

  It has no members where none is sound.

  Args:
    read: reads these bytes.
    size: their number.
  """
  for run in _runs(read, size):
    if run[0].problem is None:
      members_by_suffix = {_parts(member)[1]: member for member in run}
      return TarRecord(_parts(run[0])[0], members_by_suffix, read)
  return TarRecord('', {}, read)


def _runs(read: Read, size: int) -> Iterator[list[Member]]:
  """Yields the sound members of each record, and each problem alone."""
  run: list[Member] = []
  key, suffixes = '', set[str]()
  for member in members(read, size):
    if member.problem is not None:
      yield [member]
      continue
    parts = member.key_and_suffix()
    if parts is None:
      continue
    if run and (parts[0] != key or len(run) == _MAX_MEMBERS):
      yield run
      run, suffixes = [], set()
    key = parts[0]
    if parts[1] in suffixes:
      yield [member._replace(problem=SECOND_MEMBER)]
      continue
    suffixes.add(parts[1])
    run.append(member)
  if run:
    yield run


def _parts(member: Member) -> tuple[str, str]:
  """Returns the key and the suffix of a member that has them."""
  parts = member.key_and_suffix()
  assert parts is not None
  return parts
