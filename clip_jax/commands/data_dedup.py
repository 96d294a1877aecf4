"""Finds the images that are copies of others.

usage:
  clip-jax data dedup SPEC|EMBEDDINGS [--model=REF] [--threshold=0.99]
      [--out=KEEP.txt] [--html=PAGE] [--json]

examples:
  clip-jax data dedup folder:images --out=keep.txt
  clip-jax data dedup folder:images --model=runs/emoji --html=copies.html
  clip-jax data dedup photos.npz --threshold=0.97 --json

Copies are files of the same bytes, and, with a --model or in what `clip-jax
embed` wrote, images whose embeddings have a cosine of at least --threshold. Of
each group the first in the data set's order is kept, and every copy is that
similar to it. --out lists the ids to keep, one a line. How near is near depends
on the model: look at the --html page, and try others (photographs with a
published model: 0.95 to 0.99).
"""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from clip_jax.commands import common_flags, model_flags, printing
from clip_jax.errors import FailureError, UsageError, one_line, print_notes
from clip_jax.files import typed_path
from clip_jax.progress import show_progress

if TYPE_CHECKING:
  from clip_jax.data.sources import Source
  from clip_jax.inference.dedup import ComparedItems, Copies

_GROUPS_PRINTED = 10
_GROUPS_ON_PAGE = 200
_MEMBERS_SHOWN = 12  # of a group, on the page and printed


def define_flags(values: flags.FlagValues) -> None:
  """Adds this action's flags."""
  model_flags.define_model(values)
  common_flags.define_path(values, 'out', 'the list of ids to keep')
  common_flags.define_path(values, 'html', 'a page of the groups')
  flags.DEFINE_float(
    'threshold', 0.99, 'cosine of near copies', flag_values=values
  )
  common_flags.define_captions(values)
  common_flags.define_encoding(values)
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Finds the copies, and prints and writes them."""
  if len(words) != 1:
    raise UsageError(
      'data dedup takes one SPEC, such as folder:images, or one file that '
      'clip-jax embed wrote.'
    )
  name = words[0]
  if not 0 < values.threshold <= 1:
    raise UsageError(f'--threshold={values.threshold}: use a cosine, 0 to 1.')
  page = common_flags.file_of(values.html, 'html')
  out = common_flags.file_of(values.out, 'out')
  table = _table_path(name)
  if table is None and not values.model and values['threshold'].present:
    raise UsageError(
      '--threshold is of embeddings: name a --model=REF, or a file that '
      'clip-jax embed wrote. Without them only exact copies are found.'
    )
  if table is None:
    items, source = _compare_source(values, name)
  else:
    items, source = _compare_table(values, table)
  if out is not None:
    _write_kept(out, items)
  if page is not None:
    _write_page(page, name, values, items, source)
  if values.json:
    printing.print_json(_as_json(name, items))
  else:
    printing.report_corrupt(items.corrupt)
    _print(items, values)


def _compare_source(
  values: flags.FlagValues, spec: str
) -> 'tuple[ComparedItems, Source]':
  """Returns the copies in a data set, near ones too if there is a --model."""
  from clip_jax.data.sources import open_source
  from clip_jax.inference.dedup import compare_files

  source = open_source(spec, captions=tuple(values.captions))
  print_notes(source.notices)
  if not values.model:
    return compare_files(source, values.max_corrupt, show_progress), source
  with _embedded(values, source) as (path, corrupt):
    items, _ = _compare_table(values, path)
    return items._replace(corrupt=corrupt), source


@contextlib.contextmanager
def _embedded(
  values: flags.FlagValues, source: 'Source'
) -> Iterator[tuple[Path, dict[str, str]]]:
  """Gives a temporary file of a source's embeddings, and what was corrupt."""
  from clip_jax.inference.embed import embed

  job = model_flags.embed_job(values, source)
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / 'embeddings.npz'
    summary = embed(
      job,
      path,
      progress=show_progress,
      say=lambda line: None,  # of a folder that will be gone
    )
    yield path, summary.corrupt


def _compare_table(
  values: flags.FlagValues, path: Path
) -> 'tuple[ComparedItems, Source | None]':
  """Returns the copies in a table, and for --html what it was embedded of."""
  from clip_jax.inference.dedup import compare_embeddings
  from clip_jax.inference.embeddings import open_embeddings

  with open_embeddings(path) as table:
    items = compare_embeddings(table, values.threshold, show_progress)
    if not values.html:
      return items, None
    try:
      return items, table.open_images()
    except (UsageError, FailureError) as error:
      print(f'the page has no images: {error}', file=sys.stderr)
      return items, None


def _table_path(name: str) -> Path | None:
  """Returns the file of embeddings that a word names, or None."""
  path = typed_path(name)
  return path if path.is_file() else None


def _write_kept(out: Path, items: 'ComparedItems') -> None:
  from clip_jax.files import replacing

  kept = [items.ids[item] for item in items.copies.kept.tolist()]
  for key in kept:
    if '\n' in key or '\r' in key:
      raise FailureError(
        f'--out: the id {key!r} has more than one line: take the ids of --json.'
      )
  with replacing(out) as temporary:
    lines = ''.join(f'{key}\n' for key in kept)
    temporary.write_bytes(lines.encode('utf-8', 'surrogateescape'))


def _write_page(
  page: Path,
  name: str,
  values: flags.FlagValues,
  items: 'ComparedItems',
  source: 'Source | None',
) -> None:
  from clip_jax.errors import plural
  from clip_jax.inference.search import Match, QueryResult
  from clip_jax.report.search import write_page

  def make_match(rank: int, item: int) -> Match:
    return Match(
      rank,
      items.rows[item],
      items.ids[item],
      items.kind,
      items.captions[item],
      float(items.copies.similarity[item]),
    )

  groups = items.copies.groups()
  results = []
  for kept, copies in list(groups.items())[:_GROUPS_ON_PAGE]:
    members = [kept, *copies][:_MEMBERS_SHOWN]
    count = 'one copy' if len(copies) == 1 else f'{len(copies):,} copies'
    results.append(
      QueryResult(
        f'{count} of {items.ids[kept]}',
        False,
        [make_match(rank, item) for rank, item in enumerate(members, 1)],
      )
    )
  total = (
    f'{plural(len(groups), "group")} of copies among '
    f'{plural(len(items.ids), items.kind)}'
  )
  left_out = ''
  if len(groups) > _GROUPS_ON_PAGE:
    left_out = f' The page has the first {_GROUPS_ON_PAGE} groups; --json all.'
  write_page(
    page,
    results,
    source=source,
    title='clip-jax data dedup',
    heading=total,
    names=[name, *([values.model] if values.model else [])],
    note='The first of each group is kept; beside the others is the cosine '
    f'similarity with it.{left_out}',
  )
  print(f'wrote {page}', file=sys.stderr)


def _as_json(name: str, items: 'ComparedItems') -> dict[str, Any]:
  copies = items.copies
  return {
    'data': name,
    'kind': items.kind,
    'records': len(items.ids),
    'kept': len(copies.kept),
    **_counts(copies),
    'corrupt': items.corrupt,
    'groups': [
      {
        'kept': items.ids[kept],
        'copies': [
          {
            'id': items.ids[item],
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


def _print(items: 'ComparedItems', values: flags.FlagValues) -> None:
  from clip_jax.errors import plural

  groups, counts = items.copies.groups(), _counts(items.copies)
  copies = 'copy' if counts['exact_copies'] == 1 else 'copies'
  near = ' (with --model=REF, near ones too)'
  if items.threshold is not None:
    near = f' and {counts["near_copies"]:,} of a cosine from {items.threshold}'
  print(
    f'{plural(len(items.ids), items.kind)}: '
    f'{counts["exact_copies"]:,} exact {copies}{near}, in '
    f'{plural(len(groups), "group")}; {len(items.copies.kept):,} to keep'
  )
  for kept, members in list(groups.items())[:_GROUPS_PRINTED]:
    print(f'  {one_line(items.ids[kept])}')
    for item in members[:_MEMBERS_SHOWN]:
      similarity = f'{items.copies.similarity[item]:.4f}'
      how = 'exact ' if items.copies.exact[item] else similarity
      print(f'    {how}  {one_line(items.ids[item])}')
    if len(members) > _MEMBERS_SHOWN:
      print(f'    … and {len(members) - _MEMBERS_SHOWN:,} more')
  if len(groups) > _GROUPS_PRINTED:
    more = plural(len(groups) - _GROUPS_PRINTED, 'more group')
    print(f'  … and {more}: see --html=FILE, or --json for all')
  if values.out:
    print(f'ids to keep: {values.out}')
