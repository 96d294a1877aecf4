"""Finds in each text every query that it has, in one pass (Aho-Corasick).

Queries are matched as whole words, without regard to case or punctuation, as
"art" in "party" would say nothing about an image: texts and queries become
small letters and digits with single spaces, and each query is looked for with a
space on both sides. MetaCLIP (arXiv 2309.16671, appendix) puts spaces around
words and seven marks to the same end. Scripts without spaces between words,
such as Chinese, Japanese and Thai, have no such ends: a query in one of these
is matched wherever it stands.
"""

import functools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import regex
from jaxtyping import Int

from clip_jax.data import storage
from clip_jax.errors import UsageError

_UNSPACED = regex.compile(
  r'[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}'
  r'\p{Tibetan}\u30fc]+'
)
# The first character of such a script; all before are spaced.
_FIRST_UNSPACED = '\u0e00'


class _Letters(dict):
  """Maps characters other than letters, marks and digits to a space."""

  def __missing__(self, code: int) -> str:
    character = chr(code)
    kind = unicodedata.category(character)[0]
    self[code] = character if kind in 'LMN' else ' '
    return self[code]


_LETTERS = _Letters()


def normalise(text: str) -> str:
  """Returns the words of a text as they are matched: 'St. Mary' is 'st mary'.

  Small letters and digits, in NFKC, with single spaces between words, and
  between scripts with spaces and those without.
  """
  if text.isascii():
    return ' '.join(text.lower().translate(_LETTERS).split())
  text = unicodedata.normalize('NFKC', text).casefold()
  text = text.translate(_LETTERS)
  if text and max(text) >= _FIRST_UNSPACED:
    text = _UNSPACED.sub(r' \g<0> ', text)
  return ' '.join(text.split())


def _pattern(query: str) -> str:
  """Returns what is looked for: the query, with spaces at ends of words."""
  before = '' if _UNSPACED.match(query[0]) else ' '
  after = '' if _UNSPACED.match(query[-1]) else ' '
  return f'{before}{query}{after}'


class Matcher:
  """Finds queries in texts.

  Half a million queries of 18 characters take 160 MB in each process.
  """

  def __init__(self, queries: Iterable[str]):
    """Builds the automaton: two seconds for half a million queries.

    Args:
      queries: see `normalise`; not empty, and each once.
    Raises:
      UsageError: pyahocorasick is not installed.
    """
    try:
      import ahocorasick
    except ImportError as error:
      raise UsageError(
        'queries need an extra: pip install ".[curate]"'
      ) from error
    self._automaton: Any = ahocorasick.Automaton(ahocorasick.STORE_INTS)
    for index, query in enumerate(queries):
      self._automaton.add_word(_pattern(query), index)
    self._automaton.make_automaton()

  def match(
    self, texts: Sequence[str]
  ) -> tuple[Int[np.ndarray, ' M'], Int[np.ndarray, ' N1']]:
    """Finds the queries of N texts.

    Returns:
      The indices of the queries, those of one text after another, each once in
      its text and in order, int32; and where those of each text begin, with the
      end, int32 [N + 1].
    """
    indices: list[int] = []
    ends = [0]
    iterate = self._automaton.iter
    for text in texts:
      matches = {index for _, index in iterate(f' {normalise(text)} ')}
      indices += sorted(matches)
      ends.append(len(indices))
    return np.array(indices, np.int32), np.array(ends, np.int32)


@functools.lru_cache(maxsize=1)
def load_matcher(path: str, version: str) -> Matcher:
  """Returns the matcher of a file of queries; once in each process.

  Args:
    path: a Parquet file with a column `words`; see `queries`.
    version: of the file.
  """
  del version  # a key of the cache
  return Matcher(_read_words(path))


def _read_words(path: str) -> Iterator[str]:
  with storage.open_file(path) as file:
    for batch in pq.ParquetFile(file).iter_batches(columns=['words']):
      yield from batch.column('words').to_pylist()
