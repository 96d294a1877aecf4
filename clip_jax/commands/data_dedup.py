"""`data dedup`: which images are copies of others, and which to keep."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from clip_jax.commands import find_copies, printing
from clip_jax.commands.find_copies import Items
from clip_jax.errors import FailureError, UsageError, one_line
from clip_jax.files import typed_path

if TYPE_CHECKING:
  from clip_jax.inference.dedup import Copies

_GROUPS_PRINTED = 10
_GROUPS_ON_PAGE = 200
_OF_A_GROUP = 12  # on the page, and printed


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Finds the copies, and prints and writes what was found."""
  if len(words) != 1:
    raise UsageError(
      'data dedup takes one SPEC, such as folder:images, or one file that '
      'clip-jax embed wrote.'
    )
  name = words[0]
  if not 0 < values.threshold <= 1:
    raise UsageError(f'--threshold={values.threshold}: use a cosine, 0 to 1.')
  page = printing.file_of(values.html, 'html')
  out = printing.file_of(values.out, 'out')
  table = _table_path(name)
  if table is None and not values.model and values['threshold'].present:
    raise UsageError(
      '--threshold is of embeddings: name a --model=REF, or a file that '
      'clip-jax embed wrote. Without them only exact copies are found.'
    )
  if table is None:
    found = find_copies.in_source(values, name)
  else:
    found = find_copies.in_table(values, table, {})
  if out is not None:
    _write_kept(out, found)
  if page is not None:
    _write_page(page, name, values, found)
  if values.json:
    printing.print_json(_as_json(name, found))
  else:
    printing.report_corrupt(found.corrupt)
    _print(found, values)


def _table_path(name: str) -> Path | None:
  """The file of embeddings that a word names, if it names a file at all."""
  path = typed_path(name)
  return path if path.is_file() else None


def _write_kept(out: Path, found: Items) -> None:
  from clip_jax.files import replacing

  kept = [found.ids[item] for item in found.copies.kept.tolist()]
  for key in kept:
    if '\n' in key or '\r' in key:
      raise FailureError(
        f'--out: the id {key!r} is of several lines: take the ids of --json.'
      )
  with replacing(out) as temporary:
    lines = ''.join(f'{key}\n' for key in kept)
    temporary.write_bytes(lines.encode('utf-8', 'surrogateescape'))


def _write_page(
  page: Path, name: str, values: flags.FlagValues, found: Items
) -> None:
  from clip_jax.data.sources.base import plural
  from clip_jax.report.search import Match, QueryResult, write_page

  def shown(rank: int, item: int) -> Match:
    return Match(
      rank,
      found.rows[item],
      found.ids[item],
      found.kind,
      found.captions[item],
      float(found.copies.similarity[item]),
    )

  groups = found.copies.groups()
  results = []
  for kept, copies in list(groups.items())[:_GROUPS_ON_PAGE]:
    members = [kept, *copies][:_OF_A_GROUP]
    count = 'one copy' if len(copies) == 1 else f'{len(copies):,} copies'
    results.append(
      QueryResult(
        f'{count} of {found.ids[kept]}',
        False,
        [shown(rank, item) for rank, item in enumerate(members, 1)],
      )
    )
  total = (
    f'{plural(len(groups), "group")} of copies among '
    f'{plural(len(found.ids), found.kind)}'
  )
  left_out = ''
  if len(groups) > _GROUPS_ON_PAGE:
    left_out = f' The page has the first {_GROUPS_ON_PAGE} groups; --json all.'
  write_page(
    page,
    results,
    source=found.source,
    title='clip-jax data dedup',
    heading=total,
    names=[name, *([values.model] if values.model else [])],
    note='The first of each group is kept; beside the others is the cosine '
    f'similarity with it.{left_out}',
  )
  print(f'wrote {page}', file=sys.stderr)


def _as_json(name: str, found: Items) -> dict[str, Any]:
  copies = found.copies
  return {
    'data': name,
    'kind': found.kind,
    'records': len(found.ids),
    'kept': len(copies.kept),
    **_counts(copies),
    'corrupt': found.corrupt,
    'groups': [
      {
        'kept': found.ids[kept],
        'copies': [
          {
            'id': found.ids[item],
            'exact': bool(copies.exact[item]),
            'similarity': float(copies.similarity[item]),
          }
          for item in members
        ],
      }
      for kept, members in copies.groups().items()
    ],
  }


def _counts(copies: 'Copies') -> dict[str, int]:
  exact = int(copies.exact.sum())
  return {
    'exact_copies': exact,
    'near_copies': len(copies.of) - len(copies.kept) - exact,
  }


def _print(found: Items, values: flags.FlagValues) -> None:
  from clip_jax.data.sources.base import plural

  groups, counts = found.copies.groups(), _counts(found.copies)
  copies = 'copy' if counts['exact_copies'] == 1 else 'copies'
  near = ' (with --model=REF, near ones too)'
  if found.threshold is not None:
    near = f' and {counts["near_copies"]:,} of a cosine from {found.threshold}'
  print(
    f'{plural(len(found.ids), found.kind)}: '
    f'{counts["exact_copies"]:,} exact {copies}{near}, in '
    f'{plural(len(groups), "group")}; {len(found.copies.kept):,} to keep'
  )
  for kept, members in list(groups.items())[:_GROUPS_PRINTED]:
    print(f'  {one_line(found.ids[kept])}')
    for item in members[:_OF_A_GROUP]:
      similarity = f'{found.copies.similarity[item]:.4f}'
      how = 'exact ' if found.copies.exact[item] else similarity
      print(f'    {how}  {one_line(found.ids[item])}')
    if len(members) > _OF_A_GROUP:
      print(f'    … and {len(members) - _OF_A_GROUP:,} more')
  if len(groups) > _GROUPS_PRINTED:
    more = plural(len(groups) - _GROUPS_PRINTED, 'more group')
    print(f'  … and {more}: see --html=FILE, or --json for all')
  if values.out:
    print(f'ids to keep: {values.out}')
