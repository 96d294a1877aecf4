"""What lies near what: choices among features, in plain numpy."""

import difflib
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


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
