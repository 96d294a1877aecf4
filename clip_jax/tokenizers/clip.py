"""CLIP's byte-pair encoding (paper, section 2.4), id for id the original's.

A text is repaired and lower-cased, then falls into words: contractions, runs
of letters, single digits, runs of other characters. A word is its UTF-8
bytes, each written as one printable character and the last with '</w>'; the
Rust library merges neighbours, best rank first, while the list has the pair.

Captions repeat words. So text is split at blanks, which no word crosses, and
the ids of every chunk are kept: a batch is mostly dictionary look-ups. That
is seven times faster than the Rust library on whole captions, and leaves it
to Python's `regex` what a letter is, as in the original.
"""

import functools
import gzip
import hashlib
import importlib.resources
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

import numpy as np
import regex
from jaxtyping import Int32
from tokenizers.models import BPE

from clip_jax.errors import FailureError
from clip_jax.tokenizers.base import Tokenizer
from clip_jax.tokenizers.cleaning import cleaner_named

VOCABULARY_FILE = 'bpe_simple_vocab_16e6.txt.gz'
VOCABULARY_SHA256 = (
  '924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a'
)
MERGES = 49_152 - 256 - 2  # the file has more; CLIP uses the first of them
SPECIALS = ('<start_of_text>', '<end_of_text>')
_WORDS = regex.compile(
  '|'.join(SPECIALS)
  + r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
  regex.IGNORECASE,
)
_KEPT_CHUNKS = 1 << 16  # about 10 MB
_KEPT_CHARACTERS = 32  # of a chunk; longer ones hardly come again


class CLIPTokenizer(Tokenizer):
  """The tokenizer of every model of the paper, and of most since."""

  kind = 'clip'

  def __init__(
    self, context_length: int | None = None, cleaning: str = 'lower'
  ):
    """`cleaning`: a name of `cleaning.WORDS`; models differ from 'lower'."""
    super().__init__(context_length)
    self.cleaning = cleaning
    self._words = cleaner_named(cleaning)
    self._pairs = _byte_pairs()
    self.vocab_size = len(self._pairs.symbols)
    self.bos_id = self.vocab_size - 2
    self.eos_id = self.vocab_size - 1
    self.pad_id = 0  # also the id of '!' inside a word
    self._bos = _pack([self.bos_id])
    self._eos = _pack([self.eos_id])

  def encode(self, text: str) -> list[int]:
    chunks = map(self._pairs.__getitem__, self._words(text))
    return np.frombuffer(b''.join(chunks), np.int32).tolist()

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Returns the cleaned text, up to an end token and without specials."""
    # After the end token comes padding, whose id is also that of '!'.
    before_end = itertools.takewhile(
      lambda i: i != self.eos_id, self._check_ids(ids)
    )
    words = self.decode_all(i for i in before_end if i != self.bos_id)
    return words.removesuffix(' ')

  def decode_all(self, ids: Iterable[SupportsIndex]) -> str:
    """Decodes every id as OpenAI's code does: a space follows each word."""
    symbols = [self._pairs.symbols[i] for i in self._check_ids(ids)]
    characters = bytes(_BYTES[c] for symbol in symbols for c in symbol)
    return characters.decode('utf-8', 'replace').replace('</w>', ' ')

  def describe(self) -> dict[str, Any]:
    return {
      'kind': self.kind,
      'context_length': self.context_length,
      'cleaning': self.cleaning,
    }

  @classmethod
  def from_description(cls, description: Mapping[str, Any]) -> 'CLIPTokenizer':
    return cls(
      description.get('context_length'), description.get('cleaning', 'lower')
    )

  def _tokenize(
    self, texts: list[str]
  ) -> tuple[Int32[np.ndarray, ' M'], Int32[np.ndarray, ' N']]:
    bos, eos = self._bos, self._eos
    words, ids_of = self._words, self._pairs.__getitem__
    rows = [b''.join((bos, *map(ids_of, words(text)), eos)) for text in texts]
    lengths = np.fromiter(map(len, rows), np.int32, len(rows)) // 4
    return np.frombuffer(b''.join(rows), np.int32), lengths


class _BytePairs(dict[str, bytes]):
  """Chunk without blanks, cleaned -> its int32 ids, computed on first use."""

  def __init__(self, merges: list[tuple[str, str]]):
    super().__init__()
    alphabet = list(_BYTES)
    self.symbols = [
      *alphabet,
      *(character + '</w>' for character in alphabet),
      *(left + right for left, right in merges),
      *SPECIALS,
    ]
    ids = {symbol: i for i, symbol in enumerate(self.symbols)}
    self._special_ids = {special: ids[special] for special in SPECIALS}
    self._model = BPE(vocab=ids, merges=merges, end_of_word_suffix='</w>')

  def __missing__(self, chunk: str) -> bytes:
    ids = []
    for word in _WORDS.findall(chunk):
      if word in self._special_ids:
        ids.append(self._special_ids[word])
      else:
        word = ''.join([_CHARACTERS[byte] for byte in word.encode()])
        ids.extend(token.id for token in self._model.tokenize(word))
    packed = _pack(ids)
    if len(chunk) <= _KEPT_CHARACTERS:
      if len(self) >= _KEPT_CHUNKS:
        self.clear()
      self[chunk] = packed
    return packed


def vocabulary() -> list[str]:
  """Returns the symbols, in the order of their ids; '</w>' ends a word."""
  return _byte_pairs().symbols


def read_merges() -> list[tuple[str, str]]:
  """Returns the pairs of symbols that become one, best first.

  Raises:
    FailureError: the packaged file is not the original's.
  """
  file = importlib.resources.files('clip_jax.tokenizers') / VOCABULARY_FILE
  data = file.read_bytes()
  if hashlib.sha256(data).hexdigest() != VOCABULARY_SHA256:
    raise FailureError(
      f'{file} is not the vocabulary of CLIP (its sha256 differs): '
      'install clip_jax again.'
    )
  lines = gzip.decompress(data).decode().split('\n')
  merges = [line.split(' ') for line in lines[1 : MERGES + 1]]
  return [(left, right) for left, right in merges]


@functools.cache
def _byte_pairs() -> _BytePairs:
  """Returns the vocabulary, which is read once a process."""
  return _BytePairs(read_merges())


def _byte_alphabet() -> dict[str, int]:
  """Returns the byte of each printable character, in the order of the ids.

  Printable bytes stand for themselves; the rest get U+0100 and on, in turn.
  """
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  alphabet = {chr(byte): byte for byte in printable}
  return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


def _pack(ids: list[int]) -> bytes:
  return np.array(ids, np.int32).tobytes()


_BYTES = _byte_alphabet()
_CHARACTERS = {byte: character for character, byte in _BYTES.items()}
