"""CLIP's tokenizer in plain Python, slow and from its description alone.

As in shared/data/clip_bpe/README.md: nothing here is taken from the package
but the vocabulary's file.
"""

import functools
import gzip
import html
import itertools
import pathlib

import ftfy
import regex

import clip_jax.tokenizers

FILE = (
  pathlib.Path(clip_jax.tokenizers.__file__).parent
  / 'bpe_simple_vocab_16e6.txt.gz'
)
START, END = 49_406, 49_407


@functools.cache
def tables() -> tuple[dict[int, str], dict[str, int], dict[tuple, int]]:
  """Byte to character, symbol to id, pair to rank."""
  own = [b for b in range(256) if 33 <= b <= 126 or 160 < b != 173]
  rest = [b for b in range(256) if b not in own]
  characters = {b: chr(b) for b in own}
  characters |= {b: chr(256 + i) for i, b in enumerate(rest)}
  symbols = [characters[b] for b in own + rest]
  symbols += [s + '</w>' for s in symbols]
  ranks = {}
  with gzip.open(FILE, 'rt', encoding='utf-8') as lines:
    next(lines)
    for rank in range(48_894):
      left, right = next(lines).rstrip('\n').split(' ')
      ranks[left, right] = rank
      symbols.append(left + right)
  return characters, {s: i for i, s in enumerate(symbols)}, ranks


def _word_ids(word: str) -> list[int]:
  characters, ids, ranks = tables()
  symbols = [characters[b] for b in word.encode('utf-8')]
  symbols[-1] += '</w>'
  while len(symbols) > 1:
    pairs = list(itertools.pairwise(symbols))
    best = min(pairs, key=lambda pair: ranks.get(pair, 10**9))
    if best not in ranks:
      break
    merged = []
    while symbols:
      if tuple(symbols[:2]) == best:
        merged.append(best[0] + best[1])
        del symbols[:2]
      else:
        merged.append(symbols.pop(0))
    symbols = merged
  return [ids[s] for s in symbols]


def clean(text: str) -> str:
  text = html.unescape(html.unescape(ftfy.fix_text(text)))
  return ' '.join(text.strip().split()).strip().lower()


def encode(text: str) -> list[int]:
  words = regex.findall(
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d"
    r'|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+',
    clean(text),
    regex.IGNORECASE,
  )
  special = {'<start_of_text>': [START], '<end_of_text>': [END]}
  return [i for word in words for i in special.get(word) or _word_ids(word)]
