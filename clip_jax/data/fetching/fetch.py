"""Turns lists of URLs into WebDataset shards, and goes on where it was killed.

One stage cuts the lists into rows of one shard each (OUT/.rows), the next one
fetches the shards; see `clip_jax.data.prepare.engine`.
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clip_jax.data import storage
from clip_jax.data.fetching.client import Limits
from clip_jax.data.fetching.resize import Resizing
from clip_jax.data.fetching.shard import ListShard, fetch_shard
from clip_jax.data.fetching.url_list import (
  ListColumns,
  has_several_captions,
  join_batches,
  read_batches,
)
from clip_jax.data.prepare.engine import Engine, run_stage
from clip_jax.errors import UsageError, plural
from clip_jax.progress import Progress, byte_count, no_progress

_ROWS = '.rows'
_HOSTS_NAMED = 3
_TOTALS = (
  'urls', 'successes', 'failed_to_download', 'failed_to_resize', 'bytes',
)  # fmt: skip
_ONE_PROCESS = Engine(workers=1)


@dataclasses.dataclass(frozen=True)
class Fetch:
  """The settings by which lists of URLs become shards.

  Attributes:
    columns: of the lists.
    shard_size: rows of a shard.
    resizing: what is done to images.
    limits: of the network; other ones may be tried the next time.
  """

  columns: ListColumns = dataclasses.field(default_factory=ListColumns)
  shard_size: int = 10_000
  resizing: Resizing = dataclasses.field(default_factory=Resizing)
  limits: Limits = dataclasses.field(default_factory=Limits)


@dataclasses.dataclass(frozen=True)
class _List:
  """A list of URLs; `version` changes with its content."""

  path: str
  version: str
  number: int


_DEFAULTS = Fetch()


def fetch_lists(
  patterns: Sequence[str],
  out: str,
  fetch: Fetch = _DEFAULTS,
  *,
  retry_failed: bool = False,
  engine: Engine = _ONE_PROCESS,
  progress: Progress = no_progress,
) -> dict[str, Any]:
  """Fetches the images of lists of URLs into WebDataset shards.

  Args:
    patterns: paths of lists, with braces and globs; see `storage.expand`.
    out: the folder of the shards, local or remote.
    retry_failed: whether the URLs that failed are asked for again in shards
      that are complete; their images stay.
    engine: its workers are processes, which share the limits of hosts.
    progress: shows the URLs of each shard (one worker), or the shards.
  Returns:
    A summary that can be written as JSON: 'shards', 'urls', 'successes',
    'failed_to_download', 'failed_to_resize', 'bytes', 'reasons' (why and how
    often, the most frequent first), 'hosts' (of failures), 'data' (the SPEC).
  Raises:
    UsageError: a list is missing or is none, or `out` was begun with other
      lists or settings.
    FailureError: a file cannot be read or written.
  """
  _check_folder(out)
  expanded = [path for pattern in patterns for path in storage.expand(pattern)]
  paths = list(dict.fromkeys(expanded))
  for path in paths:  # a wrong list is refused before the work begins
    next(read_batches(path, fetch.columns), None)
  lists = [
    _List(_absolute(path), storage.version(path), number)
    for number, path in enumerate(paths)
  ]
  cut = run_stage(
    'rows',
    lists,
    functools.partial(_cut, out=out, fetch=fetch),
    out,
    engine=engine,
    settings={'columns': fetch.columns, 'shard_size': fetch.shard_size},
  )
  shards: list[ListShard] = []
  for index, counts in enumerate(cut):
    for part, rows in enumerate(counts['shards']):
      name = _rows_name(index, part)
      shards.append(ListShard(len(shards), name, rows))
  if not shards:
    raise UsageError(f'no URLs in {", ".join(patterns)}.')
  workers = engine.worker_count()
  in_process = engine.name == 'local' and workers == 1
  function = functools.partial(
    fetch_shard,
    out=out,
    shard_size=fetch.shard_size,
    with_text=not any(counts.get('several_captions') for counts in cut),
    resizing=fetch.resizing,
    limits=_divide(fetch.limits, min(workers, len(shards))),
    progress=progress if in_process else no_progress,
  )
  counts = run_stage(
    'fetch',
    shards,
    function,
    out,
    engine=engine,
    settings={'resizing': fetch.resizing},
    outputs=lambda shard: [
      shard.path(out, ending) for ending in ('.tar', '.parquet', '_stats.json')
    ],
    redo=lambda own: retry_failed and own['successes'] < own['urls'],
    progress=progress if len(shards) > 1 else no_progress,
    unit='shards',
  )
  summary = _summary(counts, out)
  if not summary['successes']:
    # Nothing came, perhaps for lack of a network: the next run tries all again.
    for shard in shards:
      storage.remove(shard.path(out, '_stats.json'))
  return summary


def _check_folder(out: str) -> None:
  """Refuses a folder of shards that somebody else wrote.

  Raises:
    UsageError: it is one.
  """
  if storage.exists(storage.join(out, '.stages')) or not storage.exists(out):
    return
  if any(name.endswith('.tar') for name in storage.list_folder(out)):
    raise UsageError(
      f'{out} has shards that data fetch did not write: name another folder.'
    )


def _absolute(path: str) -> str:
  return path if storage.is_remote(path) else os.path.abspath(path)


def _divide(limits: Limits, workers: int) -> Limits:
  """Returns the limits of one of several processes that work at a time."""
  return dataclasses.replace(
    limits,
    concurrency=max(1, limits.concurrency // workers),
    host_concurrency=max(1, limits.host_concurrency // workers),
    host_rate=limits.host_rate / workers,
  )


def _rows_name(index: int, part: int) -> str:
  return f'{_ROWS}/{index:05}-{part:05}.parquet'


def _cut(url_list: _List, *, out: str, fetch: Fetch) -> dict[str, Any]:
  """Writes the rows of a list, a file for each shard.

  Returns:
    The numbers of rows, and whether a row has several captions.
  """
  sizes: list[int] = []
  several = False
  waiting: list[pa.Table] = []

  def write(rows: pa.Table) -> None:
    path = storage.join(out, _rows_name(url_list.number, len(sizes)))
    with storage.writing(path) as temporary:
      pq.write_table(rows, temporary)
    sizes.append(rows.num_rows)

  for batch in read_batches(url_list.path, fetch.columns):
    several = several or has_several_captions(batch)
    waiting.append(batch)
    if sum(x.num_rows for x in waiting) < fetch.shard_size:
      continue
    rows = join_batches(waiting)
    while rows.num_rows >= fetch.shard_size:
      write(rows.slice(0, fetch.shard_size))
      rows = rows.slice(fetch.shard_size)
    waiting = [rows]
  rest = join_batches(waiting)
  if rest.num_rows:
    write(rest)
  return {'shards': sizes, 'several_captions': several}


def _summary(counts: Sequence[dict[str, Any]], out: str) -> dict[str, Any]:
  reasons: collections.Counter[str] = collections.Counter()
  hosts: collections.Counter[str] = collections.Counter()
  for each in counts:
    reasons.update(each['reasons'])
    hosts.update(each['hosts'])
  totals = {name: sum(each[name] for each in counts) for name in _TOTALS}
  return {
    'data': f'wds:{storage.join(out, "*.tar")}',
    'shards': len(counts),
    **totals,
    'reasons': dict(reasons.most_common()),
    'hosts': dict(hosts.most_common()),
  }


def describe(summary: dict[str, Any]) -> str:
  """Returns a summary as lines for people."""
  urls, taken = summary['urls'], summary['successes']
  lines = [
    f'{plural(taken, "image")} of {plural(urls, "URL")} '
    f'({100 * taken / urls:.1f} %, {byte_count(summary["bytes"])}) in '
    f'{plural(summary["shards"], "shard")}: {summary["data"]}'
  ]
  lines += [f'  {n:>9,}  {x}' for x, n in summary['reasons'].items()]
  if summary['reasons']:
    lines.append(what_failed_most(summary))
    again = 'with --retry_failed ' if taken else ''
    lines.append(f'the same command {again}asks for these URLs again')
  return '\n'.join(lines)


def what_failed_most(summary: dict[str, Any]) -> str:
  """Returns a line about the most frequent reason and the hosts of failures."""
  reason, times = next(iter(summary['reasons'].items()))
  failed = summary['urls'] - summary['successes']
  hosts = [
    f'{host or "(none)"} {count:,}'
    for host, count in list(summary['hosts'].items())[:_HOSTS_NAMED]
  ]
  hint = ''
  if reason == 'not a public address':
    hint = ' (--allow_private permits them)'
  return (
    f'failed most: {reason}{hint}, {times:,} of {failed:,}; hosts with the '
    f'most failures: {", ".join(hosts)}'
  )
