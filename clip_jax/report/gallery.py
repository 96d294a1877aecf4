"""The held-out examples in a training report, chosen to be looked at.

They are cards with predictions, a similarity matrix, nearest images and
confused names.
"""

import difflib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.evaluation import Encoder
from clip_jax.evaluation.tasks.zero_shot import most_frequent_confusions
from clip_jax.inference.nearest import nearest_rows
from clip_jax.report.examples import ShownExamples, some_right_some_wrong
from clip_jax.report.images import data_uri

CARDS = 12
MATRIX = 8
TEXT_QUERIES, IMAGE_QUERIES, NEAREST = 4, 2, 8
CONFUSIONS = 10


def cards(examples: ShownExamples, seed: int) -> list[dict[str, Any]]:
  """Returns images with the first five names and their probabilities."""
  predictions = examples.predictions or []
  return [
    {
      'image': data_uri(examples.images[i]),
      'name': predictions[i].right,
      'right': predictions[i].answers,
      'rank': predictions[i].rank,
      'answers': predictions[i].top,
    }
    for i in some_right_some_wrong(predictions, CARDS, seed)
  ]


def similarity_matrix(
  model: Encoder, examples: ShownExamples, seed: int
) -> dict[str, Any] | None:
  """Returns cosine similarities; texts are rows, and images columns.

  None stands for fewer than two different texts.
  """
  chosen = _unlike(examples, MATRIX, seed)
  if len(chosen) < 2:
    return None
  texts = [examples.texts[i] for i in chosen]
  cosine = model.encode_text(texts) @ examples.features[chosen].T
  low, high = float(cosine.min()), float(cosine.max())
  # The power keeps the many low similarities pale.
  shade = ((cosine - low) / max(high - low, 1e-9)) ** 1.4
  own = range(len(texts))
  return {
    'images': [
      (data_uri(examples.images[i]), examples.texts[i]) for i in chosen
    ],
    'rows': [
      (text, list(zip(values.tolist(), shades.tolist(), strict=True)))
      for text, values, shades in zip(texts, cosine, shade, strict=True)
    ],
    'best_of_row': int((cosine.argmax(1) == own).sum()),
    'best_of_column': int((cosine.argmax(0) == own).sum()),
  }


def text_queries(
  model: Encoder, examples: ShownExamples, queries: Sequence[str], seed: int
) -> list[dict[str, Any]]:
  """Returns texts with the images nearest to them.

  Args:
    model: encodes the texts.
    examples: have the images.
    queries: the texts; where there are none, captions of unlike examples.
    seed: chooses these.
  """
  queries = list(queries) or [
    examples.texts[i] for i in _unlike(examples, TEXT_QUERIES, seed + 2)
  ]
  if not queries or not len(examples):
    return []
  features = model.encode_text(queries)
  rows, similarities = nearest_rows(features, examples.features, k=NEAREST)
  return [
    {
      'text': query,
      'nearest': [
        (
          data_uri(examples.images[i]),
          examples.texts[i],
          similarity,
          set(_words(query)) <= set(_words(examples.texts[i])),
        )
        for i, similarity in zip(best, values, strict=True)
      ],
    }
    for query, best, values in zip(
      queries, rows.tolist(), similarities.tolist(), strict=True
    )
  ]


def image_queries(examples: ShownExamples, seed: int) -> list[dict[str, Any]]:
  """Returns images with the other images nearest to them."""
  if len(examples) < 2:
    return []
  queries = farthest_first(examples.features, IMAGE_QUERIES, seed + 1)
  rows, similarities = nearest_rows(
    examples.features[queries], examples.features, k=NEAREST + 1
  )
  results = []
  for i, best, values in zip(
    queries, rows.tolist(), similarities.tolist(), strict=True
  ):
    others = [x for x in zip(best, values, strict=True) if x[0] != i]
    results.append(
      {
        'image': data_uri(examples.images[i]),
        'text': examples.texts[i],
        'nearest': [
          (data_uri(examples.images[j]), examples.texts[j], similarity)
          for j, similarity in others[:NEAREST]
        ],
      }
    )
  return results


def confused_names(examples: ShownExamples) -> list[dict[str, Any]]:
  """Returns names that were given in place of others, with their images."""
  predictions = examples.predictions or []
  example_of: dict[str, int] = {}
  for i, prediction in enumerate(predictions):
    for answer in prediction.answers:
      example_of.setdefault(answer, i)
  mistakes = (
    (i, prediction.right, *prediction.top[0])
    for i, prediction in enumerate(predictions)
    if prediction.rank != 0
  )
  return [
    {
      'image': data_uri(examples.images[pair.examples[0]]),
      'right': changed_words(pair.right, pair.given),
      'given': changed_words(pair.given, pair.right),
      'other': data_uri(examples.images[example_of[pair.given]])
      if pair.given in example_of
      else None,
      'times': pair.times,
      'probability': pair.probability,
    }
    for pair in most_frequent_confusions(mistakes, CONFUSIONS)
  ]


def farthest_first(
  features: Float[np.ndarray, 'N E'], count: int, seed: int
) -> list[int]:
  """Returns indices of examples unlike each other: each next is the farthest.

  Args:
    features: unit length.
    count: how many are chosen, where there are as many.
    seed: draws the first.
  """
  if not len(features):
    return []
  chosen = [int(np.random.default_rng(seed).integers(len(features)))]
  similarity = features @ features[chosen[0]]  # with the nearest chosen one
  while len(chosen) < min(count, len(features)):
    similarity[chosen] = np.inf
    chosen.append(int(similarity.argmin()))
    similarity = np.maximum(similarity, features @ features[chosen[-1]])
  return chosen


def changed_words(text: str, other: str) -> list[tuple[str, bool]]:
  """Returns the pieces of a text, and whether each differs from the other."""
  pieces = re.findall(r"[\w'-]+|[^\w'-]+", text)
  indices = [i for i, piece in enumerate(pieces) if _words(piece)]
  words, other_words = [pieces[i].lower() for i in indices], _words(other)
  if len(words) == len(other_words):
    common = [i for i, word in enumerate(words) if word == other_words[i]]
  else:
    matcher = difflib.SequenceMatcher(None, words, other_words, autojunk=False)
    blocks = matcher.get_matching_blocks()
    common = [block.a + i for block in blocks for i in range(block.size)]
  same = {indices[i] for i in common}
  return [
    (piece, i in indices and i not in same) for i, piece in enumerate(pieces)
  ]


def _unlike(examples: ShownExamples, count: int, seed: int) -> list[int]:
  """Returns examples unlike each other, no two with the same text."""
  chosen: dict[str, int] = {}
  for i in farthest_first(examples.features, 4 * count, seed):
    if examples.texts[i]:
      chosen.setdefault(examples.texts[i], i)
  return list(chosen.values())[:count]


def _words(text: str) -> list[str]:
  """Returns the words in lower case; a hyphen joins."""
  return re.findall(r"[\w'-]+", text.lower())
