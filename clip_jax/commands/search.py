"""Finds the images or texts that are most similar to a text or an image.

usage:
  clip-jax search --model=REF --index=FILE QUERY…

examples:
  clip-jax search --model=runs/emoji --index=emoji.npz "red heart" "blue bird"
  clip-jax search --model=runs/emoji --index=emoji.npz photo.jpg --top=20
  clip-jax search --model=REF --index=photos.parquet --html=dogs.html "a dog"
  clip-jax search --model=REF --index=FILE --queries=names.txt --json
  cat names.txt | clip-jax search --model=REF --index=FILE -

FILE is what `clip-jax embed` wrote, with the same model. A QUERY is a text, or,
where there is a file of this name, an image, whatever its suffix. --text and
--image say which it is, and each line of --queries, or of the standard input
for -, is a text. Images are searched where the file has some, unless --kind
says otherwise.

Of rows that are nearly the same (a cosine of --fold_above, and one caption) the
first is shown, with the ids of the others; --nofold shows them all.

The search is exact. For millions of rows, --approximate builds an index once,
in FILE.usearch, and uses it from then on: much faster, and a few of the nearest
may be missed. --html writes a page of images; they come from the data set
that was embedded, or from --images.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from clip_jax.commands import common_flags, model_flags, printing, query_flags
from clip_jax.errors import UsageError, one_line
from clip_jax.progress import show_progress

if TYPE_CHECKING:
  import numpy as np

  from clip_jax.data.sources import Source
  from clip_jax.inference.embeddings_table import EmbeddingsTable
  from clip_jax.inference.model import Model
  from clip_jax.inference.nearest import Nearest
  from clip_jax.inference.search import Query, QueryResult

_MANY_ROWS = 1_000_000  # from here on the index is worth building


def define_flags(values: flags.FlagValues) -> None:
  """Adds this verb's flags."""
  model_flags.define_model(values)
  common_flags.define_path(values, 'index', 'what clip-jax embed wrote')
  query_flags.define_flags(values)
  flags.DEFINE_integer('top', 10, 'rows to show of each', flag_values=values)
  flags.DEFINE_enum(
    'kind',
    None,
    ['image', 'text', 'all'],
    'the rows to search; unless given, images where there are some',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'fold',
    True,
    'show rows that are nearly the same once',
    flag_values=values,
  )
  flags.DEFINE_float(
    'fold_above', 0.999, 'cosine of such rows', flag_values=values
  )
  flags.DEFINE_bool(
    'approximate', False, 'search through an index', flag_values=values
  )
  common_flags.define_path(values, 'html', 'a page to write')
  flags.DEFINE_string(
    'images',
    None,
    "the page's images, SCHEME:LOCATION[#SPLIT]",
    flag_values=values,
  )
  common_flags.define_images(values)
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Prints, for each query, what is most similar to it."""
  reference = model_flags.reference_of(values)
  index = common_flags.require(
    values.index, 'index', 'name a file that clip-jax embed wrote'
  )
  if values.top < 1:
    raise UsageError(f'--top={values.top} must be at least 1.')
  if not 0 < values.fold_above <= 1:
    raise UsageError(f'--fold_above={values.fold_above}: use a cosine, 0 to 1.')
  queries = query_flags.parse_queries(values, words)
  page = common_flags.file_of(values.html, 'html')

  from clip_jax.inference.embeddings import open_embeddings
  from clip_jax.inference.search import check_model, find_matches

  with open_embeddings(index) as table:
    kind, rows = _kind_of(table, values.kind)
    source = _source_of(table, values.images) if page else None

    model = model_flags.load_model(values)
    check_model(model, table)
    vectors = _encode(model, queries)
    results = find_matches(
      table,
      queries,
      _nearest_finder(values, table, vectors, kind, rows),
      rows=rows,
      top=values.top,
      fold_above=values.fold_above if values.fold else None,
    )
  if page is not None:
    count = '1 query' if len(queries) == 1 else f'{len(queries):,} queries'
    title = f'{queries[0].value} · clip-jax search'
    heading = f'{count} among {rows:,} embeddings'
    _write(page, results, source, title, heading, [index, reference])
  if values.json:
    printing.print_json([_as_json(result) for result in results])
  else:
    _print(results)


def _kind_of(
  table: 'EmbeddingsTable', requested: str | None
) -> tuple[str | None, int]:
  """Returns which rows are searched (None: all), and how many they are."""
  counts = table.count_kinds()
  if not table.rows:
    raise UsageError(f'{table.path} has no rows.')
  kind = requested or ('image' if 'image' in counts else 'all')
  if kind == 'all':
    return None, table.rows
  if kind not in counts:
    there = ', '.join(f'{n:,} of kind {name}' for name, n in counts.items())
    raise UsageError(f'--kind={kind}: {table.path} has {there}.')
  return kind, counts[kind]


def _source_of(table: 'EmbeddingsTable', images: str | None) -> 'Source | None':
  """Returns where the page's images are: --images, or what was embedded."""
  if images:
    from clip_jax.data.sources import open_source

    return open_source(images)
  try:
    return table.open_images()
  except UsageError as error:
    raise UsageError(
      f"--html: the index's images are not there any more ({error}): say "
      'where with --images=SPEC.'
    ) from error


def _encode(model: 'Model', queries: 'list[Query]') -> 'np.ndarray':
  """Returns rows of unit length, and says how many texts were truncated."""
  from clip_jax.inference.search import encode_queries

  texts = sum(not query.is_image for query in queries)
  before = model.tokenizer.truncated if texts else 0
  vectors = encode_queries(model, queries)
  truncated = model.tokenizer.truncated - before if texts else 0
  if truncated:
    print(
      f'{truncated:,} of {texts:,} queries were truncated to '
      f'{model.tokenizer.context_length} tokens.',
      file=sys.stderr,
    )
  return vectors


def _nearest_finder(
  values: flags.FlagValues,
  table: 'EmbeddingsTable',
  vectors: 'np.ndarray',
  kind: str | None,
  rows: int,
) -> 'Callable[[int], Nearest]':
  """Returns the function that finds, for each query, so many nearest rows."""
  if values.approximate:
    from clip_jax.inference.nearest_in_table import ApproximateIndex

    index = ApproximateIndex(
      table,
      kind,
      say=printing.say,
      progress=show_progress,
    )
    return lambda top: index.search(vectors, top=top)
  if rows > _MANY_ROWS:
    print(
      f'{rows:,} rows: --approximate would search an index of them, which is '
      'built once.',
      file=sys.stderr,
    )

  from clip_jax.inference.nearest_in_table import search_table

  return lambda top: search_table(table, vectors, kind=kind, top=top)


def _write(
  page: Path,
  results: 'list[QueryResult]',
  source: 'Source | None',
  title: str,
  heading: str,
  names: list[str],
) -> None:
  from clip_jax.report.search import write_page

  absent = write_page(
    page,
    results,
    source=source,
    title=title,
    heading=heading,
    names=names,
    note='The most similar first, with the cosine similarity; the bars of a '
    'query are relative to its best.',
    quoted=True,
  )
  if absent:
    where = 'unknown: say where with --images=SPEC'
    if source is not None:
      where = f'not in {source.spec}, or cannot be read'
    print(f'{absent:,} images are {where}.', file=sys.stderr)
  print(f'wrote {page}', file=sys.stderr)


def _as_json(result: 'QueryResult') -> dict[str, Any]:
  return {
    'query': result.query,
    'results': [
      {
        'rank': match.rank,
        'id': match.id,
        'caption': match.caption,
        'kind': match.kind,
        'similarity': match.similarity,
        'copies': list(match.copies),
      }
      for match in result.matches
    ],
  }


def _print(results: 'list[QueryResult]') -> None:
  for result in results:
    print(one_line(result.query))
    width = max(len(one_line(match.id)) for match in result.matches)
    for match in result.matches:
      caption = one_line(match.caption)
      if len(caption) > 80:
        caption = f'{caption[:79]}…'
      print(
        f'  {match.similarity:6.3f}  {one_line(match.id):<{min(width, 60)}}  '
        f'{caption}'.rstrip()
      )
      if match.copies:
        some = one_line(', '.join(match.copies[:3]))
        more = ', …' if len(match.copies) > 3 else ''
        print(f'          +{len(match.copies)} nearly the same: {some}{more}')
