"""Builds the list of queries from files, by the rules of the paper.

Section 2.2 and its footnote: "all words occurring at least 100 times in the
English version of Wikipedia. This is augmented with bi-grams with high
pointwise mutual information as well as the names of all Wikipedia articles
above a certain search volume. Finally all WordNet synsets not already in the
query list are added." MetaCLIP (arXiv 2309.16671, table 1) rebuilds it so.
"""

import bz2
import contextlib
import dataclasses
import gzip
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clip_jax.data import storage
from clip_jax.data.curation.matching import normalise
from clip_jax.errors import FailureError, UsageError, plural
from clip_jax.files import parse_json

_MAX_LINE = 100_000  # characters
_MAX_QUERY = 200  # characters; longer ones are no query that anybody types
_MAX_LIST_BYTES = 2**30
_WORDNET = ('noun', 'verb', 'adj', 'adv')
ORIGINS = ('list', 'words', 'bigrams', 'titles', 'synsets')


@dataclasses.dataclass(frozen=True)
class QueryFiles:
  """Names the files that queries come from, and the rules for taking them.

  Attributes:
    lists: queries as they are: one a line, a JSON list (as MetaCLIP's
      metadata.json), or a Parquet file with a column `query`.
    words: lines of a word and its count.
    bigrams: lines of two words and a count.
    texts: plain texts, whose words and bi-grams are counted; see `counting`.
    titles: lines of a title and, after a tab, its count of searches or views.
    synsets: WordNet's files (index.noun, data.noun, …), a folder of them, or
      plain lists.
    min_count: the least count of a word, and of a bi-gram.
    min_pmi: the least pointwise mutual information of a bi-gram, in bits.
    max_bigrams: how many bi-grams are taken, those of the highest.
    min_title_count: the least count of a title that has one.
  """

  lists: tuple[str, ...] = ()
  words: tuple[str, ...] = ()
  bigrams: tuple[str, ...] = ()
  titles: tuple[str, ...] = ()
  synsets: tuple[str, ...] = ()
  texts: tuple[str, ...] = ()
  min_count: int = 100
  min_pmi: float = 0.0
  max_bigrams: int = 100_000
  min_title_count: int = 0

  def paths(self) -> list[str]:
    """Returns all files."""
    return [
      *self.lists, *self.words, *self.bigrams, *self.titles, *self.synsets,
      *self.texts,
    ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Query:
  """A query: as it was written, its words, its origin, and a count or None."""

  query: str
  words: str
  origin: str
  count: int | None = None


def build_queries(
  files: QueryFiles, counted: Iterable[tuple[str, int]] = (), total: int = 0
) -> tuple[list[Query], dict[str, int]]:
  """Reads the files and returns the queries, each different one once.

  The order is that of ORIGINS; in each, that of the files, and bi-grams by
  their mutual information. What is in the list already is not added again.

  Args:
    counted: words and pairs of words of `files.texts`, with their counts.
    total: how many words these texts have.
  Returns:
    The queries, and how many were left out, by reason.
  Raises:
    UsageError: bi-grams without counts of words, or nothing is left.
    FailureError: a file cannot be read, or a line has no count.
  """
  queries: dict[str, Query] = {}
  left_out: dict[str, int] = {}

  def skip(reason: str, number: int = 1) -> None:
    if number:
      left_out[reason] = left_out.get(reason, 0) + number

  def add(query: str, origin: str, count: int | None = None) -> None:
    words = normalise(query)
    if not words:
      skip('no letter or digit')
    elif len(words) > _MAX_QUERY:
      skip(f'over {_MAX_QUERY} characters')
    elif words in queries:
      skip('twice')
    else:
      queries[words] = Query(' '.join(query.split()), words, origin, count)

  for path in files.lists:
    for query in _read_list(path):
      add(query, 'list')
  counts, listed = _count_words(files.words)
  total += listed
  pairs: dict[str, int] = {}
  for words, count in counted:
    part = pairs if ' ' in words else counts
    part[words] = part.get(words, 0) + count
  for word, count in counts.items():
    if count >= files.min_count:
      add(word, 'words', count)
    else:
      skip('rare word')
  for pair, count in _select_bigrams(files, counts, pairs, total, skip):
    add(pair, 'bigrams', count)
  for path in files.titles:
    for line, _ in read_lines(path):
      title, count = _split_title(line)
      if count is not None and count < files.min_title_count:
        skip('rare title')
      else:
        add(title, 'titles', count)
  for path in files.synsets:
    for name in _read_synsets(path):
      add(name, 'synsets')
  if not queries:
    raise UsageError(
      f'no query is left of {plural(len(files.paths()), "file")}: is '
      f'--min_count={files.min_count} too high?'
    )
  return list(queries.values()), left_out


def write_queries(queries: Iterable[Query], path: str | os.PathLike) -> None:
  """Writes queries to Parquet: query, words, origin, count."""
  rows = list(queries)
  table = pa.table(
    {
      'query': [x.query for x in rows],
      'words': [x.words for x in rows],
      'origin': pa.array([x.origin for x in rows]).dictionary_encode(),
      'count': pa.array([x.count for x in rows], pa.int64()),
    }
  )
  with storage.writing(path) as temporary:
    pq.write_table(table, os.fspath(temporary))


def read_lines(path: str) -> Iterator[tuple[str, int]]:
  """Yields the lines of a UTF-8 text that are not blank, with their numbers.

  Files of gzip and bzip2 are told by their first bytes.

  Raises:
    FailureError: it is missing, damaged, not UTF-8, or has an endless line.
  """
  with contextlib.ExitStack() as stack:
    raw: Any = stack.enter_context(storage.open_file(path))
    opener = _decompressor(raw.peek(3)[:3])
    binary = stack.enter_context(opener(raw)) if opener else raw
    text = io.TextIOWrapper(binary, 'utf-8-sig')
    number = 0
    try:
      while line := text.readline(_MAX_LINE):
        number += 1
        if len(line) == _MAX_LINE:
          raise FailureError(
            f'{path}, line {number}: over {_MAX_LINE:,} characters.'
          )
        if line.strip():
          yield line.rstrip('\r\n'), number
    except (UnicodeDecodeError, EOFError, OSError) as error:
      raise FailureError(f'{path}, line {number + 1}: {error}') from error
    finally:
      text.detach()


def _decompressor(head: bytes) -> Callable[[Any], Any] | None:
  if head[:2] == b'\x1f\x8b':
    return lambda file: gzip.GzipFile(fileobj=file)
  return bz2.BZ2File if head == b'BZh' else None


def _read_list(path: str) -> Iterator[str]:
  with storage.open_file(path) as file:
    head = file.peek(64)[:64].lstrip()
  if head.startswith(b'PAR1'):
    yield from _read_query_column(path)
  elif head.startswith(b'['):
    content = parse_json(storage.read_all(path, _MAX_LIST_BYTES), path)
    if not all(isinstance(x, str) for x in content):
      raise FailureError(f'{path}: a JSON list of queries holds strings only.')
    yield from content
  else:
    yield from (line for line, _ in read_lines(path))


def _read_query_column(path: str) -> Iterator[str]:
  try:
    with storage.open_file(path) as file:
      for batch in pq.ParquetFile(file).iter_batches(columns=['query']):
        yield from (x for x in batch.column('query').to_pylist() if x)
  except (pa.ArrowException, KeyError, OSError) as error:
    raise FailureError(f'{path}: no column `query`: {error}') from error


def _count_words(paths: Iterable[str]) -> tuple[dict[str, int], int]:
  """Returns the count of each word in its normal form, and of all together."""
  counts: dict[str, int] = {}
  total = 0
  for path in paths:
    for line, number in read_lines(path):
      text, count = _split_count(line)
      if count is None or not text:
        raise FailureError(
          f'{path}, line {number}: {line[:60]!r} is no word and its count.'
        )
      total += count
      if word := normalise(text):
        counts[word] = counts.get(word, 0) + count
  return counts, total


def _split_count(line: str) -> tuple[str, int | None]:
  """Returns what stands before the number at the end of a line, and it."""
  head, _, last = line.replace('\t', ' ').rstrip().rpartition(' ')
  if not head and ',' in line:
    head, _, last = line.rpartition(',')
  last = last.strip()
  if last.isascii() and last.isdigit() and len(last) < 19:
    return head.strip(), int(last)
  return line, None


def _split_title(line: str) -> tuple[str, int | None]:
  """Returns a title and its count; Wikipedia writes '_' for a space.

  Only after a tab is a number a count: "Blade Runner 2049" is a title.
  """
  title, tab, last = line.rpartition('\t')
  last = last.strip()
  if tab and last.isascii() and last.isdigit() and len(last) < 19:
    return title.replace('_', ' '), int(last)
  return line.replace('_', ' '), None


def _select_bigrams(
  files: QueryFiles,
  counts: dict[str, int],
  pairs: dict[str, int],
  total: int,
  skip: Callable[..., None],
) -> list[tuple[str, int]]:
  """Returns the bi-grams with the highest pointwise mutual information.

  PMI(x, y) = log2(p(x, y) / (p(x) p(y))), in bits, where the probabilities are
  counts over the number of all words. Rare pairs have the highest PMI by
  chance, so that `min_count` is a rule for them, too.
  """
  if files.bigrams and not counts:
    raise UsageError(
      '--bigrams needs the counts of single words: name them by --words.'
    )
  for path in files.bigrams:
    for line, number in read_lines(path):
      text, count = _split_count(line)
      words = normalise(text).split()
      if count is None:
        raise FailureError(
          f'{path}, line {number}: {line[:60]!r} is no pair and its count.'
        )
      if len(words) == 2:
        pair = ' '.join(words)
        pairs[pair] = pairs.get(pair, 0) + count
      else:
        skip('not two words')
  scored: list[tuple[float, str]] = []
  for pair, count in pairs.items():
    one, other = (counts.get(word, 0) for word in pair.split())
    if count < files.min_count:
      skip('rare bi-gram')
    elif not one or not other:
      skip('bi-gram of unknown words')
    else:
      scored.append((math.log2(count * total / (one * other)), pair))
  best = sorted(
    (x for x in scored if x[0] >= files.min_pmi), key=lambda x: (-x[0], x[1])
  )
  skip('bi-gram of low mutual information', len(scored) - len(best))
  skip('beyond --max_bigrams', max(0, len(best) - files.max_bigrams))
  return [(pair, pairs[pair]) for _, pair in best[: files.max_bigrams]]


def _read_synsets(path: str) -> Iterator[str]:
  """Yields the words of WordNet's synsets; of a folder, of its files."""
  if storage.is_folder(path):
    names = set(storage.list_folder(path))
    parts = [x for x in _WORDNET if f'data.{x}' in names]
    kind = 'data' if parts else 'index'
    parts = parts or [x for x in _WORDNET if f'index.{x}' in names]
    if not parts:
      raise UsageError(
        f'{path} has no file of WordNet, such as data.noun or index.noun.'
      )
    for part in parts:
      yield from _read_synsets(storage.join(path, f'{kind}.{part}'))
    return
  base = os.path.basename(path)
  is_data = base.startswith('data.')
  is_index = base.startswith('index.')
  for line, number in read_lines(path):
    if line.startswith('  ') and (is_data or is_index):
      continue  # the licence, with numbers of lines
    if is_data:
      yield from _words_of_synset(line, f'{path}, line {number}')
    elif is_index:
      yield line.partition(' ')[0].replace('_', ' ')
    else:
      yield line.replace('_', ' ')


def _words_of_synset(line: str, where: str) -> list[str]:
  """Returns the words of a line of data.POS: see wndb(5WN).

  offset, number of the lexicographer's file, type, number of words in
  hexadecimal, then each word with its number, …; adjectives may end in a marker
  such as (a).
  """
  fields = line.split()
  try:
    count = int(fields[3], 16)
    words = fields[4 : 4 + 2 * count : 2]
  except (IndexError, ValueError) as error:
    raise FailureError(f'{where}: no line of WordNet.') from error
  if len(words) != count:
    raise FailureError(f'{where}: {len(words)} of {count} words.')
  return [word.partition('(')[0].replace('_', ' ') for word in words]
