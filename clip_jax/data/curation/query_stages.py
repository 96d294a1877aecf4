"""The stages that make the list of queries, of words that are counted first."""

import dataclasses
from typing import Any, NamedTuple

from clip_jax.data.curation import counting
from clip_jax.data.curation.queries import (
  QueryFiles,
  build_queries,
  write_queries,
)
from clip_jax.data.curation.stages import Stages


class QueryList(NamedTuple):
  """The queries of a curation.

  Attributes:
    path: a Parquet file; see `queries.write_queries`.
    count: how many there are.
    left_out: how many were left out, by the reason.
  """

  path: str
  count: int
  left_out: dict[str, int]


@dataclasses.dataclass(frozen=True)
class _Task:
  """The files that queries come from.

  Attributes:
    out: the list that is written.
    counted: files of the counts of words.
    total: how many words these are of.
  """

  out: str
  files: QueryFiles
  counted: tuple[str, ...]
  total: int


def make_queries(stages: Stages, files: QueryFiles) -> QueryList | None:
  """Writes the list of queries; returns None where no file has some."""
  if not files.paths():
    return None
  counted, total = _count_words(stages, files)
  task = _Task(stages.path('queries.parquet'), files, counted, total)
  counts = stages.run('queries', [task], _write)[0]
  return QueryList(task.out, counts['queries'], counts['left_out'])


def _count_words(
  stages: Stages, files: QueryFiles
) -> tuple[tuple[str, ...], int]:
  """Counts the words of texts; returns files of counts, and their sum."""
  if not files.texts:
    return (), 0
  blocks = counting.block_tasks(files.texts, stages.path('count'))
  counts = stages.run('count', blocks, counting.count_block, 'blocks')
  partitions = blocks[0].partitions if blocks else 0
  sums = [
    counting.SumTask(
      partition,
      partitions,
      tuple(task.out for task in blocks),
      files.min_count,
      stages.path(f'sums/{partition:07}.arrow'),
    )
    for partition in range(partitions)
  ]
  stages.run('sums', sums, counting.add_up, 'partitions')
  return tuple(task.out for task in sums), sum(x['words'] for x in counts)


def _write(task: _Task) -> dict[str, Any]:
  queries, left_out = build_queries(
    task.files, counting.read_counts(task.counted), task.total
  )
  write_queries(queries, task.out)
  return {'queries': len(queries), 'left_out': left_out}
