"""The last stages: queries choose their pairs, and the pairs become shards.

See `balance` for the rule. For the hard cap, the numbers that decide are put in
partitions by their queries, so that a task has all of a query.
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int, UInt64

from clip_jax.data import storage
from clip_jax.data.curation import balance
from clip_jax.data.curation.arrays import (
  load_array,
  write_array,
  write_counts,
)
from clip_jax.data.curation.funnel import Funnel
from clip_jax.data.curation.hashing import draw, hash_texts
from clip_jax.data.curation.partitions import (
  read_partition,
  writing_partitions,
)
from clip_jax.data.curation.rows import (
  ID,
  MATCHED,
  MATCHED_QUERIES,
  QUERIES,
)

_NUMBERS = pa.schema([('query', pa.int32()), ('number', pa.uint64())])
_CHOSEN = '_chosen'


@dataclasses.dataclass(frozen=True)
class Choice:
  """The settings that all stages of choosing pairs share; it pickles.

  Attributes:
    schema: of the rows that are read.
    public: columns that the output has, besides the queries.
    text, image: columns that samples show.
    partitions: of the files of rows.
    seed: of the draws.
    per_query: pairs that a query may choose.
    queries: a Parquet file with the columns `query` and `words`, or None.
    limits: a .npy file of limits by query, or of those of the candidates.
    number_partitions: of the files of numbers.
  """

  schema: pa.Schema
  public: pa.Schema
  text: str
  image: str | None
  partitions: int
  seed: int
  per_query: int
  queries: str | None
  limits: str
  number_partitions: int = 1


@dataclasses.dataclass(frozen=True)
class ChoiceTask:
  """A partition of files, and the files that are written."""

  partition: int
  inputs: tuple[str, ...]
  out: str
  counts: str | None = None


def write_numbers(choice: Choice, task: ChoiceTask) -> dict[str, Any]:
  """Writes the draws of the pairs of frequent queries that may be chosen."""
  limits = load_array(choice.limits)
  hashes = _hashes_of_queries(choice)
  total = 0
  with writing_partitions(
    task.out, _NUMBERS, choice.number_partitions
  ) as writer:
    for batch in read_partition(
      task.inputs, task.partition, choice.partitions, [ID, MATCHED]
    ):
      rows, queries = _pairs(batch)
      wanted = limits[queries] > 0
      rows, queries = rows[wanted], queries[wanted]
      numbers = _draw(choice, batch, rows, queries, hashes)
      candidates = numbers < limits[queries]
      queries, numbers = queries[candidates], numbers[candidates]
      total += len(queries)
      writer.add(
        pa.record_batch([queries, numbers], schema=_NUMBERS),
        queries.astype(np.int64) % choice.number_partitions,
      )
  return {'candidates': total}


def find_limits(choice: Choice, task: ChoiceTask) -> dict[str, Any]:
  """Finds the limits of the queries of one partition of numbers."""
  queries: list[np.ndarray] = []
  numbers: list[np.ndarray] = []
  for batch in read_partition(
    task.inputs, task.partition, choice.number_partitions
  ):
    queries.append(batch.column(0).to_numpy())
    numbers.append(batch.column(1).to_numpy())
  if queries:
    names, limits = balance.cap_limits(
      np.concatenate(queries), np.concatenate(numbers), choice.per_query
    )
  else:
    names, limits = np.zeros(0, np.int32), np.zeros(0, np.uint64)
  result = np.array([names.astype(np.uint64), limits])
  write_array(result, task.out)
  return {'queries': len(names)}


def choose(choice: Choice, task: ChoiceTask) -> dict[str, Any]:
  """Keeps the pairs that one of their queries chooses; counts them by query."""
  limits = load_array(choice.limits)
  hashes = _hashes_of_queries(choice)
  counts = np.zeros((2, len(limits)), np.int64)
  funnel = Funnel(choice.text, choice.image)
  funnel.begin('balance')
  schema = choice.schema.append(pa.field(_CHOSEN, pa.list_(pa.int32())))
  with writing_partitions(task.out, schema, 1) as writer:
    for batch in read_partition(task.inputs, task.partition, choice.partitions):
      rows, queries = _pairs(batch)
      numbers = _draw(choice, batch, rows, queries, hashes)
      chosen = numbers < limits[queries]
      per_row = np.bincount(rows[chosen], minlength=batch.num_rows)
      ends = np.concatenate([[0], np.cumsum(per_row)]).astype(np.int32)
      lists = pa.ListArray.from_arrays(
        pa.array(ends), pa.array(queries[chosen])
      )
      batch = batch.append_column(_CHOSEN, lists)
      kept = funnel.keep('balance', batch, {'chosen by no query': per_row == 0})
      funnel.add_kept('balance', kept)
      for i, name in enumerate((MATCHED, _CHOSEN)):
        matches = kept.column(name).flatten().to_numpy()
        counts[i] += np.bincount(matches, minlength=len(limits))
      writer.add(kept, np.zeros(kept.num_rows, np.int64))
  assert task.counts is not None
  write_counts(counts, task.counts)
  return {**funnel.as_counts(), 'rows': _kept(funnel)}


def _kept(funnel: Funnel) -> int:
  counts = funnel.as_counts()['steps'].get('balance')
  return counts['in'] - sum(counts['dropped'].values()) if counts else 0


def _pairs(
  batch: pa.RecordBatch,
) -> tuple[Int[np.ndarray, ' M'], Int[np.ndarray, ' M']]:
  """Returns the row and the query of each match of a batch."""
  column = batch.column(MATCHED)
  lengths = column.value_lengths().to_numpy(zero_copy_only=False)
  rows = np.repeat(np.arange(batch.num_rows), lengths)
  return rows, column.flatten().to_numpy()


def _draw(
  choice: Choice,
  batch: pa.RecordBatch,
  rows: Int[np.ndarray, ' M'],
  queries: Int[np.ndarray, ' M'],
  hashes: UInt64[np.ndarray, ' Q'],
) -> UInt64[np.ndarray, ' M']:
  ids = batch.column(ID).to_numpy()
  return draw(choice.seed, ids[rows], hashes[queries])


def _hashes_of_queries(choice: Choice) -> UInt64[np.ndarray, ' Q']:
  assert choice.queries is not None
  return hash_texts(read_queries(choice.queries, 'words'))


def read_queries(path: str, column: str) -> Iterator[str]:
  """Yields a column of a file of queries."""
  with storage.open_file(path) as file:
    for batch in pq.ParquetFile(file).iter_batches(columns=[column]):
      yield from batch.column(column).to_pylist()


@dataclasses.dataclass(frozen=True)
class ShardTask:
  """Files of rows of which one output file is made.

  Attributes:
    out: a Parquet file.
    inputs: files of `choose`, or of `drop_copies` where nothing was chosen.
    partitions: for each, the number of its partition; and `count`: of how many.
  """

  out: str
  inputs: tuple[tuple[str, ...], ...]
  partitions: tuple[int, ...]
  count: int


def write_shard(choice: Choice, task: ShardTask) -> dict[str, Any]:
  """Writes a Parquet file of the collection; returns its number of pairs."""
  schema = choice.public
  names = None
  if choice.queries is not None:
    lists = pa.list_(pa.string())
    schema = schema.append(pa.field(MATCHED_QUERIES, lists))
    schema = schema.append(pa.field(QUERIES, lists))
    names = pa.array(read_queries(choice.queries, 'query'), pa.string())
  rows = 0
  with (
    storage.writing(task.out) as temporary,
    pq.ParquetWriter(
      os.fspath(temporary), schema, compression='zstd'
    ) as writer,
  ):
    for inputs, partition in zip(task.inputs, task.partitions, strict=True):
      for batch in read_partition(inputs, partition, task.count):
        columns = [batch.column(name) for name in choice.public.names]
        if names is not None:
          matched = batch.column(MATCHED)
          chosen = (
            batch.column(_CHOSEN) if _CHOSEN in batch.schema.names else matched
          )
          columns += [_spell(matched, names), _spell(chosen, names)]
        rows += batch.num_rows
        # Batches go into row groups together; tables would each be one.
        writer.write_batch(pa.record_batch(columns, schema=schema))
  return {'rows': rows}


def _spell(lists: pa.Array, names: pa.Array) -> pa.Array:
  """Returns lists of queries, of lists of their indices."""
  lengths = lists.value_lengths().fill_null(0).to_numpy()
  ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
  return pa.ListArray.from_arrays(pa.array(ends), names.take(lists.flatten()))
