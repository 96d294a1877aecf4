"""What lies near what: choices among features, in plain numpy."""

import collections
import difflib
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

_LONGEST_RUN = 4
# Of a run, over those of its parts: words that meet by chance are no phrase.
_COHESION = 0.2
# A phrase that begins or ends with one of these is cut off in the middle.
_SMALL_WORDS = {
  *('a', 'an', 'and', 'as', 'at', 'by', 'for', 'from', 'in', 'into', 'is'),
  *('it', 'its', 'of', 'on', 'or', 'that', 'the', 'to', 'with'),
}


def spread(
  features: Float[np.ndarray, 'N E'], count: int, seed: int
) -> list[int]:
  """Indices of examples unlike each other: each next is the farthest.

  Args:
    features: unit length.
    seed: draws the first.
  """
  if not len(features):
    return []
  chosen = [int(np.random.default_rng(seed).integers(len(features)))]
  nearest = features @ features[chosen[0]]
  while len(chosen) < min(count, len(features)):
    nearest[chosen] = np.inf
    chosen.append(int(nearest.argmin()))
    nearest = np.maximum(nearest, features @ features[chosen[-1]])
  return chosen


def nearest(
  features: Float[np.ndarray, 'N E'],
  query: Float[np.ndarray, ' E'],
  count: int,
  *,
  without: Sequence[int] = (),
) -> list[tuple[int, float]]:
  """Indices and cosine similarities, the most similar first."""
  similarity = features @ query
  order = np.argsort(-similarity, kind='stable')
  kept = [int(i) for i in order if i not in without][:count]
  return [(i, float(similarity[i])) for i in kept]


def phrases(texts: Sequence[str], count: int, seed: int) -> list[str]:
  """Queries that ask for what several of the texts say.

  Runs of up to four words that at least three and at most a third of the
  texts share, and that no longer run stands for; drawn by seed, with no word
  twice. Whole texts fill up.
  """
  shared: collections.Counter[tuple[str, ...]] = collections.Counter()
  for text in texts:
    shared.update(_runs(words(text)))
  covered = {
    part
    for run, n in shared.items()
    for part in (run[1:], run[:-1])
    if shared[part] == n
  }
  several = sorted(
    run
    for run, n in shared.items()
    if 3 <= n <= max(3, len(texts) // 3)
    and run not in covered
    and not {run[0], run[-1]} & _SMALL_WORDS
    and n >= _COHESION * max(shared[run[1:]], shared[run[:-1]])
  )
  rng = np.random.default_rng(seed)
  drawn, used = [], set()
  for i in rng.permutation(len(several)):
    if not used & set(several[i]):
      drawn.append(' '.join(several[i]))
      used |= set(several[i])
  whole = sorted({text for text in texts if text})
  drawn += [whole[i] for i in rng.permutation(len(whole))]
  return list(dict.fromkeys(drawn))[:count]


def _runs(said: Sequence[str]) -> set[tuple[str, ...]]:
  return {
    tuple(said[i : i + n])
    for n in range(1, _LONGEST_RUN + 1)
    for i in range(len(said) - n + 1)
  }


def says(text: str, phrase: str) -> bool:
  """Whether all words of the phrase are in the text."""
  return set(words(phrase)) <= set(words(text))


def words(text: str) -> list[str]:
  """Lower-case words; a hyphen joins."""
  return re.findall(r"[\w'-]+", text.lower())


def changed_words(text: str, other: str) -> list[tuple[str, bool]]:
  """Pieces of `text`, each with whether it departs from `other` there."""
  pieces = re.findall(r"[\w'-]+|[^\w'-]+", text)
  places = [i for i, piece in enumerate(pieces) if words(piece)]
  ours, theirs = [pieces[i].lower() for i in places], words(other)
  if len(ours) == len(theirs):
    kept = [i for i, word in enumerate(ours) if word == theirs[i]]
  else:
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    blocks = matcher.get_matching_blocks()
    kept = [block.a + i for block in blocks for i in range(block.size)]
  same = {places[i] for i in kept}
  return [
    (piece, i in places and i not in same) for i, piece in enumerate(pieces)
  ]
