"""`data dedup`: which pictures are copies of others, and which to keep."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from clip_jax.commands import common_flags, printing
from clip_jax.errors import FailureError, UsageError, one_line
from clip_jax.files import typed_path

if TYPE_CHECKING:
  from clip_jax.data.sources import Source
  from clip_jax.inference.dedup import Copies
  from clip_jax.inference.embeddings_reader import EmbeddingsTable

_GROUPS_PRINTED = 10
_GROUPS_ON_PAGE = 200
_OF_A_GROUP = 12  # on the page, and printed


class _Items(NamedTuple):
  """What was compared.

  Attributes:
    kind: 'image' or 'text'.
    ids, captions: of each item.
    rows: of the source, or of the table that was embedded of it.
    copies: among them.
    corrupt: id to reason, of pictures that cannot be read.
    source: has the pictures; None where it is not at hand.
    threshold: of the cosine; None where only exact copies were looked for.
  """

  kind: str
  ids: list[str]
  captions: list[str]
  rows: list[int]
  copies: 'Copies'
  corrupt: dict[str, str]
  source: 'Source | None'
  threshold: float | None = None


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Finds the copies, and prints and writes what was found."""
  if len(words) != 1:
    raise UsageError(
      'data dedup takes one SPEC, such as folder:pictures, or one file that '
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
    found = _of_source(values, name)
  else:
    found = _of_table(values, table, {})
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


def _of_source(values: flags.FlagValues, spec: str) -> _Items:
  from clip_jax.data.sources import open_source

  source = open_source(spec, captions=tuple(values.captions))
  printing.report_notices(source.notices)
  if not values.model:
    return _exact_of_source(values, source)
  with _embedded(values, source) as (path, corrupt):
    return _of_table(values, path, corrupt)


def _exact_of_source(values: flags.FlagValues, source: 'Source') -> _Items:
  from clip_jax.data.reading import none_readable, read_ahead
  from clip_jax.inference.bulk.records import refuse_corrupt
  from clip_jax.inference.dedup import exact_copies

  rows, digests, corrupt = [], [], {}
  everything = range(len(source))
  reads = read_ahead(source, everything, lambda digest: True)
  watched = printing.watch(reads, len(source), 'images')
  for row, read in zip(everything, watched, strict=True):
    if read.reason:
      corrupt[source.id(row)] = read.reason
      refuse_corrupt(source, corrupt, values.max_corrupt)
    else:
      rows.append(row)
      digests.append(read.digest)
  if not rows:
    raise FailureError(none_readable(source.spec, corrupt))
  return _Items(
    'image',
    [source.id(row) for row in rows],
    [(source.captions(row) or [''])[0] for row in rows],
    rows,
    exact_copies(digests),
    corrupt,
    source,
  )


@contextlib.contextmanager
def _embedded(
  values: flags.FlagValues, source: 'Source'
) -> Iterator[tuple[Path, dict[str, str]]]:
  """A source's embeddings in a file that is there as long as it is needed."""
  from clip_jax.inference import bulk

  model = common_flags.load_model(
    values, dtype=values.dtype, batch_size=values.batch_size
  )
  job = bulk.Job(
    model=model,
    dtype=values.dtype,
    source=source,
    captions=values.captions,
    texts=None,
    texts_name='',
    max_corrupt=values.max_corrupt,
    part_rows=-(-1024 // values.batch_size) * values.batch_size,
  )
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / 'embeddings.npz'
    summary = bulk.embed(
      job,
      path,
      watch=lambda items, done, total, unit: printing.watch(
        items, total, unit, done=done
      ),
      say=lambda line: None,  # of a folder that will be gone
    )
    yield path, summary.corrupt


def _of_table(
  values: flags.FlagValues, path: Path, corrupt: dict[str, str]
) -> _Items:
  """Compares the pictures of a table, or its texts where it has none."""
  from clip_jax.inference.dedup import exact_copies, near_copies
  from clip_jax.inference.embeddings_reader import open_embeddings

  with open_embeddings(path) as table:
    if not table.rows:
      raise UsageError(f'{path} has no rows.')
    kind = 'image' if 'image' in table.count_kinds() else 'text'
    rows, digests = _rows_of(table, kind)
    entries = table.entries(rows)
    copies = near_copies(
      table,
      rows,
      exact_copies(digests),
      values.threshold,
      watch=lambda tiles: printing.watch(tiles, len(rows), 'rows', size=len),
    )
    return _Items(
      kind,
      [entries[row].id for row in rows],
      [entries[row].caption for row in rows],
      rows,
      copies,
      corrupt,
      _source_of(table) if values.html else None,
      values.threshold,
    )


def _rows_of(
  table: 'EmbeddingsTable', kind: str
) -> tuple[list[int], list[bytes]]:
  """The rows of a kind, and a digest of each that tells their contents."""
  if not table.has_digests:
    rows = [row for chunk in table.chunks(kind) for row in chunk.rows.tolist()]
    return rows, [row.to_bytes(8, 'big') for row in rows]
  rows, digests, start = [], [], 0
  for part in table.contents():
    for i, of_kind in enumerate(part.kinds):
      if of_kind == kind:
        rows.append(start + i)
        digests.append(part.digests[i].tobytes())
    start += len(part.kinds)
  return rows, digests


def _source_of(table: 'EmbeddingsTable') -> 'Source | None':
  """The pictures that were embedded, where they still are."""
  from clip_jax.data.sources import open_source

  spec = table.about.get('images')
  if not spec:
    return None
  try:
    return open_source(spec, captions=tuple(table.about['captions']))
  except (UsageError, FailureError) as error:
    print(f'the page has no pictures: {error}', file=sys.stderr)
    return None


def _write_kept(out: Path, found: _Items) -> None:
  from clip_jax.interop.replacing import replacing

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
  page: Path, name: str, values: flags.FlagValues, found: _Items
) -> None:
  from clip_jax.data.sources.base import plural
  from clip_jax.inference.search_page import Answer, Found, write_page

  def shown(rank: int, item: int) -> Found:
    return Found(
      rank,
      found.rows[item],
      found.ids[item],
      found.kind,
      found.captions[item],
      float(found.copies.similarity[item]),
    )

  groups = found.copies.groups()
  answers = []
  for kept, copies in list(groups.items())[:_GROUPS_ON_PAGE]:
    members = [kept, *copies][:_OF_A_GROUP]
    count = 'one copy' if len(copies) == 1 else f'{len(copies):,} copies'
    answers.append(
      Answer(
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
  facts = {
    'title': 'clip-jax data dedup',
    'heading': total,
    'names': [name, *([values.model] if values.model else [])],
    'note': 'The first of each group is kept; beside the others is the cosine '
    f'similarity with it.{left_out}',
    'quoted': False,
  }
  write_page(page, answers, source=found.source, facts=facts)
  print(f'wrote {page}', file=sys.stderr)


def _as_json(name: str, found: _Items) -> dict[str, Any]:
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


def _print(found: _Items, values: flags.FlagValues) -> None:
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
