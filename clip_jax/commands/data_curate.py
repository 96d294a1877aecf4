"""Makes a collection of image-text pairs as CLIP's was made.

usage:
  clip-jax data curate METADATA… --out=DIR [--queries=FILE] [--words=FILE] …

examples:
  clip-jax data curate laion/*.parquet --out=collection --words=words.txt \\
      --bigrams=bigrams.txt --titles=titles.tsv --synsets=WordNet-3.0/dict \\
      --languages=en --per_query=20000
  clip-jax data curate pairs.parquet --out=collection --queries=queries.txt \\
      --balance=sample --html=funnel.html
  clip-jax data curate datacomp/ --out=subset --ids=uids.npy --min_score=0.28
  clip-jax data curate images.parquet --out=unique --model=runs/emoji \\
      --near=0.95 --evaluation=folder:test

METADATA are Parquet files (or folders, or patterns) with a column of texts and,
as a rule, one of URLs, paths or images. The steps, each left out where nothing
asks for it:

  ids        keeps those of --ids: DataComp's .npy files, or texts with one a
             line
  size       --min_side and --max_aspect, by columns or of images that are read
  score      --min_score, by a column or by --model
  text       cleans: entities, tags, mojibake, control characters, blanks; and
             --min_characters, --max_characters, --min_words
  language   --languages=en,de,…, told by py3langid
  match      drops texts that have none of the queries, as whole words
  image      reads images that are at hand (--read_images, --model, …): files,
             and of metadata in a bucket those of its own folder; no other URLs
  evaluation drops images of --evaluation: the same file, a near hash, or with
             --evaluation_near a near embedding
  copies     drops the same image and text; with --copies=images also the same
             image's bytes; with --near images whose embeddings have that cosine
  balance    each query chooses at most --per_query of its pairs; a pair is
             kept if at least one of its queries chose it (--balance=cap exactly
             so many, --balance=sample by probability, as MetaCLIP)

Queries come from --queries (a list), --words (lines of a word and its count in
Wikipedia; from --min_count on), --bigrams (two words and a count; those of the
highest pointwise mutual information), --text (plain texts, whose words and
bi-grams are counted), --titles (a title and, after a tab, its
searches; from --min_title_count on), and --synsets (WordNet's files). The
output has Parquet files with the columns of the input and `matched_queries`,
all that a text has, and `queries`, those that chose the pair; queries.parquet
with the counts of each; curation.json with those of each step; and with --html
a page of it. A run that was stopped goes on when it is typed again, and is
refused where the model or the images of --evaluation are no longer the same.
Images of --evaluation that cannot be decoded are named, count to --max_corrupt,
and are found as the same file alone.
"""

import functools
from typing import TYPE_CHECKING, Any

from absl import flags

from clip_jax.commands import common_flags, model_flags, printing
from clip_jax.errors import UsageError, plural, print_warnings
from clip_jax.progress import show_progress

if TYPE_CHECKING:
  from clip_jax.data.curation.queries import QueryFiles
  from clip_jax.data.curation.requirements import Helpers
  from clip_jax.data.curation.settings import Settings

_COLUMNS = (
  'text', 'image', 'id', 'width', 'height', 'score', 'hash', 'embedding',
)  # fmt: skip


def define_flags(values: flags.FlagValues) -> None:
  """Adds this action's flags."""
  path = functools.partial(common_flags.define_path, values)
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  path('out', 'the folder of the collection')
  path('html', 'a page of what was kept and dropped')
  for name in _COLUMNS:
    text(
      f'{name}_column',
      None,
      f'the column of the {name}, if not told by its name',
    )
  path('queries', 'a list of queries', multiple=True)
  path('words', 'words and their counts', multiple=True)
  path('bigrams', 'pairs of words and their counts', multiple=True)
  path('text', 'a plain text, to count words and bi-grams', multiple=True)
  path('titles', 'titles, after a tab their searches', multiple=True)
  path('synsets', "WordNet's folder or files, or a list", multiple=True)
  _define_numbers(values)
  flags.DEFINE_list(
    'languages', ['all'], 'ISO 639-1 codes to keep', flag_values=values
  )
  path('ids', 'a list of ids to keep', multiple=True)
  flags.DEFINE_bool(
    'read_images', False, 'read local images', flag_values=values
  )
  flags.DEFINE_multi_string(
    'evaluation', [], 'a SPEC whose images are dropped', flag_values=values
  )
  text('copies', 'pairs', 'pairs or images: what no two may share')
  text('balance', 'cap', 'cap, sample or none')
  common_flags.define_engine(values)
  model_flags.define_model(values)
  common_flags.define_encoding(values)
  common_flags.define_json(values)


def _define_numbers(values: flags.FlagValues) -> None:
  whole = functools.partial(flags.DEFINE_integer, flag_values=values)
  real = functools.partial(flags.DEFINE_float, flag_values=values)
  whole('min_count', 100, 'of a word, and of a bi-gram', 0)
  real('min_pmi', 0.0, 'mutual information of a bi-gram, in bits')
  whole('max_bigrams', 100_000, 'bi-grams to take, the best', 0)
  whole('min_title_count', 0, 'searches of a title that has a count', 0)
  whole('min_characters', 0, 'of a text', 0)
  whole('max_characters', 0, 'of a text; 0: any', 0)
  whole('min_words', 0, 'of a text', 0)
  whole('min_side', 0, 'pixels of the shorter side', 0)
  real('max_aspect', 0.0, 'the longer side over the shorter; 0: any', 0.0)
  real('min_score', None, 'CLIP score, a cosine')
  real('near', None, 'cosine of near copies')
  real('evaluation_near', None, 'cosine of near copies of --evaluation')
  whole(
    'evaluation_bits',
    4,
    'bits of 64 that hashes of copies may differ in',
    0,
    63,
  )
  whole('per_query', 20_000, 'pairs that a query may choose', 1)
  whole('seed', 0, 'of all choices')
  whole('shard_rows', 100_000, 'pairs in a file of the output, about', 1)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Curates, and prints what each step kept."""
  if not words:
    raise UsageError(
      'data curate takes the metadata: Parquet files, folders or patterns.'
    )
  out = common_flags.out_folder(values, 'name the folder to make')
  page = common_flags.file_of(values.html, 'html')

  from clip_jax.data.curation.pipeline import curate

  settings = _settings(values, words)
  result = curate(
    settings,
    out,
    engine=common_flags.engine_of(values),
    helpers=_helpers(values, settings),
    progress=show_progress,
  )
  if page is not None:
    from clip_jax.report.curation import write_page

    write_page(page, result, out)
  print_warnings(
    f'left out {name}: {reason}' for name, reason in result['corrupt'].items()
  )
  if values.json:
    printing.print_json(result)
  else:
    _print(result, out)


def _settings(values: flags.FlagValues, words: list[str]) -> 'Settings':
  from clip_jax.data.curation.cleaning import check_languages
  from clip_jax.data.curation.settings import Settings

  languages = [x for x in values.languages if x != 'all']
  if len(languages) < len(values.languages):
    languages = []
  check_languages(languages)
  hashes = bool(values.evaluation) and _reads_images(values)
  return Settings(
    inputs=tuple(words),
    columns={
      name: value
      for name in _COLUMNS
      if (value := values[f'{name}_column'].value)
    },
    queries=_query_files(values),
    languages=tuple(sorted(languages)),
    min_characters=values.min_characters,
    max_characters=values.max_characters,
    min_words=values.min_words,
    min_side=values.min_side,
    max_aspect=values.max_aspect,
    min_score=values.min_score,
    ids=tuple(values.ids),
    read_images=_reads_images(values),
    copies=values.copies,
    near=values.near,
    evaluation=tuple(values.evaluation),
    evaluation_near=values.evaluation_near,
    evaluation_bits=values.evaluation_bits if hashes else None,
    balance=values.balance,
    per_query=values.per_query,
    seed=values.seed,
    shard_rows=values.shard_rows,
    max_corrupt=values.max_corrupt,
  )


def _reads_images(values: flags.FlagValues) -> bool:
  return values.read_images or bool(values.model)


def _query_files(values: flags.FlagValues) -> 'QueryFiles':
  from clip_jax.data.curation.queries import QueryFiles

  return QueryFiles(
    tuple(values.queries),
    tuple(values.words),
    tuple(values.bigrams),
    tuple(values.titles),
    tuple(values.synsets),
    tuple(values.text),
    min_count=values.min_count,
    min_pmi=values.min_pmi,
    max_bigrams=values.max_bigrams,
    min_title_count=values.min_title_count,
  )


def _helpers(values: flags.FlagValues, settings: 'Settings') -> 'Helpers':
  """Returns what models and evaluations do for the curation.

  Raises:
    UsageError: something needs a model, and there is none.
  """
  if settings.evaluation_near and not settings.evaluation:
    raise UsageError('--evaluation_near needs --evaluation=SPEC.')
  if settings.evaluation_near and not values.model:
    raise UsageError(
      '--evaluation_near needs --model=REF, which embeds the images of '
      '--evaluation.'
    )

  from clip_jax.data.curation.requirements import Helpers

  if not (values.model or settings.evaluation or settings.near):
    return Helpers()  # texts alone need no JAX

  from clip_jax.evaluation.near_duplicates.curation import curation_helpers
  from clip_jax.inference.scores import PairScorer

  scorer = None
  if values.model:
    scorer = PairScorer(values.model, _load_options(values))
  return curation_helpers(settings, scorer)


def _load_options(values: flags.FlagValues) -> tuple[tuple[str, Any], ...]:
  names = (
    'preset', 'activation', 'weights', 'tokenizer', 'image_size',
    'as_displayed', 'dtype', 'batch_size',
  )  # fmt: skip
  return tuple((name, values[name].value) for name in names)


def _print(result: dict[str, Any], out: str) -> None:
  for step in result['steps']:
    print(f'{step["step"]:14} {step["in"]:>14,} -> {step["out"]:>14,}')
    dropped = sorted(step['dropped'].items(), key=lambda x: -x[1])
    for reason, count in dropped[:10]:
      if count:
        print(f'  {count:>12,} {reason}')
    if len(dropped) > 10:
      rest = sum(count for _, count in dropped[10:])
      print(f'  {rest:>12,} for {len(dropped) - 10} other reasons')
  queries = result['queries']
  if queries.get('total'):
    print(
      f'{queries["matched"]:,} of {queries["total"]:,} queries match, '
      f'{queries["frequent"]:,} of them over {queries["per_query"]:,} pairs'
    )
  print(
    f'{plural(result["rows_out"], "pair")} in '
    f'{plural(len(result["files"]), "file")}: {out}'
  )
