"""Counts the words and the bi-grams of texts, such as Wikipedia's.

A task counts a block of a file, and puts its counts in partitions by a hash of
the words; a task of the next stage adds those of a partition up. So memory
holds a block's words, however many the text has.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa

from clip_jax.data import storage
from clip_jax.data.curation.hashing import hash_texts
from clip_jax.data.curation.matching import normalise
from clip_jax.data.curation.partitions import (
  partition_of,
  read_partition,
  writing_partitions,
)
from clip_jax.errors import FailureError

_BLOCK_BYTES = 2**23
_PARTITION_BYTES = 2**26  # of text, whose counts are in one partition
_MAX_PARTITIONS = 2048
# Bytes in which a line ends; of longer ones, a block ends after a word.
_MAX_LINE = 2**20
_SCHEMA = pa.schema([('words', pa.string()), ('count', pa.int64())])


@dataclasses.dataclass(frozen=True)
class BlockTask:
  """Lines to count: those that begin in bytes [start, end) of a file.

  A line that does not end for long, as where a whole text is one, is divided
  between two words.
  """

  path: str
  version: str
  start: int
  end: int
  partitions: int
  out: str


@dataclasses.dataclass(frozen=True)
class SumTask:
  """A partition of the counts, and the least count that is kept."""

  partition: int
  partitions: int
  inputs: tuple[str, ...]
  min_count: int
  out: str


def block_tasks(paths: Sequence[str], folder: str) -> list[BlockTask]:
  """Returns the tasks that count texts, which write into a folder.

  Raises:
    MissingFileError, FailureError: a file is missing, or is compressed.
  """
  sizes = [storage.size(path) for path in paths]
  partitions = max(1, min(-(-sum(sizes) // _PARTITION_BYTES), _MAX_PARTITIONS))
  tasks: list[BlockTask] = []
  for path, size in zip(paths, sizes, strict=True):
    if storage.read_range(path, 0, 3)[:2] in (b'\x1f\x8b', b'BZ'):
      raise FailureError(f'{path} is compressed: uncompress it, to be counted.')
    version = storage.version(path)
    for start in range(0, size, _BLOCK_BYTES):
      end = min(size, start + _BLOCK_BYTES)
      out = storage.join(folder, f'{len(tasks):07}.arrow')
      tasks.append(BlockTask(path, version, start, end, partitions, out))
  return tasks


def count_block(task: BlockTask) -> dict[str, Any]:
  """Counts the words and the pairs of neighbours in the lines of a block."""
  counts: collections.Counter[str] = collections.Counter()
  total = 0
  for line in _lines(task):
    words = normalise(line).split()
    total += len(words)
    counts.update(words)
    counts.update(map(' '.join, itertools.pairwise(words)))
  names = list(counts)
  batch = pa.record_batch([names, list(counts.values())], schema=_SCHEMA)
  with writing_partitions(task.out, _SCHEMA, task.partitions) as writer:
    writer.add(batch, partition_of(hash_texts(names), task.partitions))
  return {'words': total}


def _lines(task: BlockTask) -> Iterator[str]:
  with storage.open_file(task.path) as file:
    start, end = _line_start(file, task.start), _line_start(file, task.end)
    file.seek(start)
    content = file.read(end - start)
  yield from content.decode('utf-8', 'replace').split('\n')


def _line_start(file: IO[bytes], position: int) -> int:
  """Returns where the first line begins from a position on; or else a word."""
  if position == 0:
    return 0
  file.seek(position - 1)
  content = file.read(_MAX_LINE)
  end = content.find(b'\n')
  if end < 0 and len(content) == _MAX_LINE:
    end = content.find(b' ')
  return position + (end if end >= 0 else len(content) - 1)


def add_up(task: SumTask) -> dict[str, Any]:
  """Adds up the counts of a partition, and keeps the frequent ones."""
  sums: collections.Counter[str] = collections.Counter()
  for batch in read_partition(task.inputs, task.partition, task.partitions):
    names, counts = (column.to_pylist() for column in batch.columns)
    for name, count in zip(names, counts, strict=True):
      sums[name] += count
  rows = sorted(x for x in sums.items() if x[1] >= task.min_count)
  batch = pa.record_batch(
    [[x for x, _ in rows], [x for _, x in rows]], schema=_SCHEMA
  )
  with writing_partitions(task.out, _SCHEMA, 1) as writer:
    writer.add(batch, np.zeros(len(rows), np.int64))
  return {'kept': len(rows)}


def read_counts(paths: Sequence[str]) -> Iterator[tuple[str, int]]:
  """Yields words, or two with a space between, and their counts."""
  for batch in read_partition(paths, 0, 1):
    names, counts = (column.to_pylist() for column in batch.columns)
    yield from zip(names, counts, strict=True)
