"""Makes the index of shards, once, for random access to their records.

usage:
  clip-jax data index wds:PATTERN [--out=DIR] [--workers=N] [--max_corrupt=N]
      [--nochecksum] [--verify] [--json]
  clip-jax data index parquet:PATTERN [--json]

examples:
  clip-jax data index 'wds:shards/{00000..00999}.tar'
  clip-jax data index 'wds:gs://bucket/cc12m/*.tar' --out=indexes/cc12m
  clip-jax data index 'wds:shards/*.tar' --workers=16 --json
  clip-jax data index 'wds:shards/*.tar' --verify
  clip-jax data index 'parquet:s3://bucket/pairs/*.parquet'

It lies beside the shards, in clip_jax_index/, where wds:PATTERN finds it, also
for some of the shards; with --out=DIR it is there, and wds:DIR names the data.
It says of each record in which bytes of which shard it lies, and of each shard
its size, its time and the SHA-256 of its content (--nochecksum: only headers
are read).

A killed command goes on where it was; after shards were added or changed, it
reads only those. Damaged members are counted and named, and each is a corrupt
record; more than --max_corrupt of them stop the command. --verify reads all
shards again and compares: the exit code is 1 if any shard differs.

Of Parquet files the index has the numbers of rows, and lies beside them;
without it, opening reads the end of each file.
"""

import os
from typing import TYPE_CHECKING, Any

from absl import flags

from clip_jax.commands import common_flags, printing
from clip_jax.errors import FailureError, UsageError, plural, print_notes
from clip_jax.progress import byte_count, show_progress

if TYPE_CHECKING:
  from clip_jax.data.indexing.tar_index import TarIndex
  from clip_jax.data.sources import Spec

_NAMED_PROBLEMS = 20


def define_flags(values: flags.FlagValues) -> None:
  """Adds this action's flags."""
  common_flags.define_path(values, 'out', 'the folder of the index')
  flags.DEFINE_integer(
    'workers',
    None,
    'processes that read shards; by default one a core',
    1,
    flag_values=values,
  )
  flags.DEFINE_integer(
    'max_corrupt', 100, 'damaged members to accept', 0, flag_values=values
  )
  flags.DEFINE_bool(
    'checksum', True, 'read shards in full, for SHA-256', flag_values=values
  )
  flags.DEFINE_bool(
    'verify', False, 'compare all shards with the index', flag_values=values
  )
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Makes the index or compares it, and prints what it has."""
  if len(words) != 1:
    raise UsageError(
      "data index takes one SPEC, such as 'wds:shards/{00000..00999}.tar'."
    )
  from clip_jax.data.indexing.build import build_index, describe_problems
  from clip_jax.data.sources import parse_spec

  spec = parse_spec(words[0])
  if spec.scheme == 'parquet':
    _index_rows(values, spec)
    return
  if spec.scheme != 'wds':
    raise spec.error('only wds:PATTERN and parquet:PATTERN have an index')
  workers = values.workers or os.cpu_count() or 1
  if values.verify:
    _verify(values, words[0], workers)
    return
  summary = build_index(
    spec,
    values.out,
    workers=workers,
    checksum=values.checksum,
    max_corrupt=values.max_corrupt,
    progress=show_progress,
  )
  print_notes(summary.notices)
  result = {
    'data': words[0],
    'index': summary.folder,
    **_counts(summary.index),
    'shards_read': summary.read,
    'damaged': list(describe_problems(summary.index, _NAMED_PROBLEMS)),
  }
  if values.json:
    printing.print_json(result)
    return
  _print(result)


def _index_rows(values: flags.FlagValues, spec: 'Spec') -> None:
  """Makes the index of Parquet files, and prints what it has."""
  from clip_jax.data.sources.parquet_index import write_row_index

  if values.out or values.verify:
    raise UsageError(
      'the index of Parquet files lies beside them, and is compared when it is '
      'read: leave out --out and --verify.'
    )
  index = write_row_index(spec)
  print_notes(f'data {spec.text!r}: {line}' for line in index.notices)
  result = {
    'data': spec.text,
    'index': index.path,
    'files': len(index.rows),
    'row_groups': sum(map(len, index.rows.values())),
    'records': sum(map(sum, index.rows.values())),
    'files_read': index.read,
  }
  if values.json:
    printing.print_json(result)
    return
  print(
    f'{plural(result["records"], "record")} in '
    f'{plural(result["row_groups"], "row group")} of '
    f'{plural(result["files"], "file")} ({result["files_read"]:,} read); '
    f'index in {index.path}'
  )


def _verify(values: flags.FlagValues, text: str, workers: int) -> None:
  from clip_jax.data.indexing.build import existing_index, verify_index
  from clip_jax.data.sources import parse_spec

  folder, index = existing_index(parse_spec(text), values.out)
  differing = verify_index(index, workers=workers, progress=show_progress)
  if values.json:
    printing.print_json(
      {'index': folder, 'shards': len(index.names), 'differing': differing}
    )
  if differing:
    raise FailureError(
      f'{len(differing):,} of {plural(len(index.names), "shard")} differ from '
      f'their index in {folder}: {", ".join(differing[:3])}'
      f'{", …" if len(differing) > 3 else ""}; clip-jax data index reads them '
      'again.'
    )
  if not values.json:
    print(f'{plural(len(index.names), "shard")} as indexed in {folder}')


def _counts(index: 'TarIndex') -> dict[str, Any]:
  """Returns what an index has, as JSON has it."""
  from clip_jax.data.indexing.tar import PROBLEMS
  from clip_jax.data.indexing.tar_shard import PROBLEM_KIND

  totals = index.totals()
  members: dict[str, int] = {}
  for kind, suffixes in enumerate(index.kinds):
    for suffix in suffixes:
      members[suffix] = members.get(suffix, 0) + totals.get(kind, 0)
  problems = {
    PROBLEMS[kind - PROBLEM_KIND]: count
    for kind, count in sorted(totals.items())
    if kind >= PROBLEM_KIND
  }
  return {
    'shards': len(index.names),
    'bytes': sum(shard.size for shard in index.shards),
    'records': len(index) - sum(problems.values()),
    'members': members,
    'damaged_members': sum(problems.values()),
    'problems': problems,
  }


def _print(result: dict[str, Any]) -> None:
  members = ', '.join(f'{n:,} {x}' for x, n in result['members'].items())
  read = result['shards_read']
  how = 'as it was' if not read else f'{plural(read, "shard")} read'
  print(
    f'{plural(result["records"], "record")} ({members}) in '
    f'{plural(result["shards"], "shard")}, {byte_count(result["bytes"])}; '
    f'index in {result["index"]} ({how})'
  )
  for line in result['damaged']:
    print(f'  damaged: {line}')
  more = result['damaged_members'] - len(result['damaged'])
  if more > 0:
    print(f'  … and {more:,} more')
