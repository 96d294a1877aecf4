"""Files of rows in partitions: what one stage writes and the next one reads.

Rows are put in a partition by a hash of what groups them, so that a task of the
next stage has all of a group and no more than its partition. Each task writes
one file, an Arrow file whose batches go through the partitions in turn: of P
partitions, batch i has rows of partition i % P.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Int, UInt64

from clip_jax.data import storage
from clip_jax.errors import FailureError

_BUFFER_BYTES = 2**25  # rows that wait to be written, in memory
_OPTIONS = pa.ipc.IpcWriteOptions(compression='lz4')


class PartitionWriter:
  """Writes rows, each to its partition; see `writing_partitions`."""

  def __init__(
    self, writer: pa.ipc.RecordBatchFileWriter, schema: pa.Schema, count: int
  ):
    """Begins with no rows; `count` is P, the number of partitions."""
    self._writer, self._schema, self._count = writer, schema, count
    self._batches: list[pa.RecordBatch] = []
    self._numbers: list[np.ndarray] = []
    self._bytes = 0

  def add(
    self, batch: pa.RecordBatch, partitions: Int[np.ndarray, ' N']
  ) -> None:
    """Adds rows, each with the number of its partition."""
    if not batch.num_rows:
      return
    self._batches.append(batch)
    self._numbers.append(partitions)
    self._bytes += batch.nbytes
    if self._bytes >= _BUFFER_BYTES:
      self.flush()

  def flush(self) -> None:
    """Writes what waits in memory."""
    if not self._batches:
      return
    table = pa.Table.from_batches(self._batches, self._schema)
    numbers = np.concatenate(self._numbers)
    self._batches, self._numbers, self._bytes = [], [], 0
    order = np.argsort(numbers, kind='stable')
    ends = np.searchsorted(numbers[order], np.arange(self._count + 1))
    batch = table.take(order).combine_chunks().to_batches()[0]
    for start, end in itertools.pairwise(ends.tolist()):
      self._writer.write_batch(batch.slice(start, end - start))


@contextlib.contextmanager
def writing_partitions(
  path: str | os.PathLike, schema: pa.Schema, count: int
) -> Iterator[PartitionWriter]:
  """Gives a writer of one file, which is there once the block has ended well.

  Args:
    schema: of all batches.
    count: of the partitions, which are numbered from 0.
  """
  with (
    storage.writing(path) as temporary,
    pa.ipc.new_file(os.fspath(temporary), schema, options=_OPTIONS) as writer,
  ):
    partition_writer = PartitionWriter(writer, schema, count)
    yield partition_writer
    partition_writer.flush()


def read_partition(
  paths: Sequence[str],
  partition: int,
  partitions: int,
  columns: Sequence[str] | None = None,
) -> Iterator[pa.RecordBatch]:
  """Yields the rows of a partition, from one file after the other.

  Args:
    paths: of files that `PartitionWriter` wrote.
    partition, partitions: its number, and how many there are.
    columns: those that are wanted; None is all of them.
  Raises:
    FailureError: a file is missing or damaged.
  """
  for path in paths:
    with storage.open_file(path) as file:
      try:
        reader = pa.ipc.open_file(file)
        for index in range(partition, reader.num_record_batches, partitions):
          batch = reader.get_batch(index)
          if batch.num_rows:
            yield batch if columns is None else batch.select(list(columns))
      except (pa.ArrowInvalid, OSError) as error:
        raise FailureError(f'{path} is damaged: {error}') from error


def partition_of(
  hashes: UInt64[np.ndarray, ' N'], partitions: int
) -> Int[np.ndarray, ' N']:
  """Returns the partitions of hashes: equal ranges of their upper 32 bits."""
  upper = hashes >> np.uint64(32)
  return ((upper * np.uint64(partitions)) >> np.uint64(32)).astype(np.int64)
