"""Retrieval (paper, table 13): the texts of an image, the image of a text."""

import collections
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.features.extraction import (
  read_features,
  text_features,
)
from clip_jax.evaluation.prompts import warnings_of_prompts
from clip_jax.evaluation.types import Encoder, Evaluation, Options
from clip_jax.inference.classifier import check_templates, mean_directions
from clip_jax.inference.nearest import nearest_rows

RANKS = (1, 5, 10)
# Captions an image, by data set: some images of COCO have six or seven, and
# published recalls are with the first five, of 5,000 images 25,000.
CAPTIONS = {'coco_captions': 5, 'flickr30k': 5}
_TILE = (2048, 8192)  # images, texts: 64 MB of scores are held at once
# Cosine similarities this close are equal: about the rounding of a float32
# sum, so that two copies of one text tie whatever the order of summation.
_TIE = 1e-6


def evaluate(
  encoder: Encoder, dataset: Dataset, options: Options
) -> Evaluation:
  """Measures recall among all images and all texts of a split, both ways.

  An image may have several texts. One without a text is no query, and a wrong
  answer to all others. A text that several images share counts once for each
  of them. Of COCO and Flickr30k each image has its first five (`CAPTIONS`).

  Args:
    options: `templates` go around each text, by default the data set's (the
      paper's is 'a photo of {}'); `cache`, `max_corrupt_records`, `progress`.
  Returns:
    metrics: 'image_to_text_rK' and 'text_to_image_rK' for K of 1, 5, 10, and
      'examples' (images) and 'texts'. See `recalls`.
    chance: of each recall, that of a random order.
    records: for each image 'id', 'captions', and 'top': up to five
      [text, similarity], best first, each text once.
    tables: 'warnings': see `Evaluation`.
  Raises:
    UsageError: the data has no captions, or a template no slot.
    FailureError: too many images are corrupt, or features are not finite.
  """
  templates = options.templates_for(dataset)
  check_templates(templates)
  features = read_features(encoder, dataset.test.source, options)
  most = CAPTIONS.get(dataset.name)
  captions = [own[:most] for own in features.captions]
  texts = [text for own in captions for text in own]
  if not texts:
    raise UsageError(
      f'data {dataset.name!r} has no captions, which retrieval needs'
      f'{dataset.test.source.hint}.'
    )
  owners = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
  # Each text is encoded once, so that copies of one have equal features.
  different = list(dict.fromkeys(texts))
  row_of = {text: i for i, text in enumerate(different)}
  prompts = [[t.replace('{}', text) for t in templates] for text in different]
  unique = _prompted(encoder, prompts, options)
  rows = unique[np.array([row_of[text] for text in texts])]
  recall = recalls(features.embeddings, rows, owners)
  nearest, similarities = nearest_rows(features.embeddings, unique, k=5)
  return Evaluation(
    metrics={
      **recall,
      'examples': float(len(captions)),
      'texts': float(len(texts)),
    },
    chance=recalls_by_chance([len(own) for own in captions]),
    records=[
      {
        'id': key,
        'captions': own,
        'top': [[different[j], s] for j, s in zip(best, values, strict=True)],
      }
      for key, own, best, values in zip(
        features.ids,
        captions,
        nearest.tolist(),
        similarities.tolist(),
        strict=True,
      )
    ],
    corrupt=features.corrupt,
    tables={
      'warnings': warnings_of_prompts(
        encoder, dataset.name, prompts, different, 'texts'
      )
    },
  )


def _prompted(
  encoder: Encoder, prompts: Sequence[Sequence[str]], options: Options
) -> Float[np.ndarray, 'M E']:
  """Returns unit-length rows: the mean direction of each text's prompts."""
  templates = len(prompts[0])
  every = [prompt for own in prompts for prompt in own]
  rows = text_features(encoder, every, options)
  if templates == 1:
    return rows
  return mean_directions(rows, [templates] * len(prompts)).T


def recalls(
  image_features: Float[np.ndarray, 'N E'],
  text_features: Float[np.ndarray, 'M E'],
  owners: Int[np.ndarray, 'M'],
  ranks: tuple[int, ...] = RANKS,
) -> dict[str, float]:
  """Returns recall at each rank, both ways, in memory that grows as N + M.

  image_to_text_rK: the fraction of images (that have texts) with at least one
  of their texts among the K nearest of all texts. text_to_image_rK: the
  fraction of texts whose image is among the K nearest of all images. Others
  that are exactly as near count as if drawn in a random order, so that a
  model with one feature for everything has the recall of chance.

  Args:
    image_features, text_features: unit-length rows.
    owners: the row of `image_features` that each text belongs to.
    ranks: the K.
  Returns:
    Fractions, 0 to 1.
  """
  own = np.concatenate(
    [
      np.einsum('me,me->m', image_features[owners[part]], text_features[part])
      for _, part in _tiles(1, len(owners))
    ]
  )
  best = np.full(len(image_features), -np.inf, np.float32)
  np.maximum.at(best, owners, own)
  by_image, by_text = _RankCounts(best), _RankCounts(own)
  for rows, columns in _tiles(len(image_features), len(text_features)):
    scores = image_features[rows] @ text_features[columns].T
    owner = owners[columns] - rows.start
    matched = np.flatnonzero((owner >= 0) & (owner < len(scores)))
    scores[owner[matched], matched] = -np.inf  # only wrong answers are counted
    by_image.count(rows, scores)
    by_text.count(columns, scores.T)
  asking = np.unique(owners)
  return {
    f'{way}_r{k}': float(rate)
    for way, rates in (
      ('image_to_text', by_image.hits(ranks)[:, asking].mean(axis=1)),
      ('text_to_image', by_text.hits(ranks).mean(axis=1)),
    )
    for k, rate in zip(ranks, rates, strict=True)
  }


def recalls_by_chance(
  texts: Sequence[int], ranks: tuple[int, ...] = RANKS
) -> dict[str, float]:
  """Returns what `recalls` would be, on average, if all orders were random.

  Args:
    texts: how many each image has.
    ranks: the K.
  """
  total = sum(texts)
  own = collections.Counter(n for n in texts if n)

  def hit(n: int, k: int) -> float:
    """Returns the chance that one of n texts is among k drawn of all."""
    missed = 1.0
    for i in range(min(k, total)):
      missed *= max(0.0, 1 - n / (total - i))
    return 1 - missed

  asking = sum(own.values())
  levels = {}
  for k in ranks:
    rates = sum(times * hit(n, k) for n, times in own.items())
    levels[f'image_to_text_r{k}'] = rates / asking
  for k in ranks:
    levels[f'text_to_image_r{k}'] = min(1.0, k / len(texts))
  return levels


class _RankCounts:
  """Counts how many wrong answers come before each of Q right answers."""

  def __init__(self, right: Float[np.ndarray, ' Q']):
    """Begins with nothing counted.

    Args:
      right: the similarity of each query to its right answer.
    """
    self._right = right
    self._ahead = np.zeros(len(right), np.int64)
    self._near = np.zeros(len(right), np.int64)  # ahead, or as near

  def count(self, queries: slice, others: Float[np.ndarray, 'q O']) -> None:
    """Counts in the similarities of some queries to some wrong answers."""
    right = self._right[queries, None]
    self._ahead[queries] += np.count_nonzero(others > right + _TIE, axis=1)
    self._near[queries] += np.count_nonzero(others >= right - _TIE, axis=1)

  def hits(self, ranks: Sequence[int]) -> Float[np.ndarray, 'K Q']:
    """Returns the probability that each query's answer is among the first k.

    Ties are in a random order.
    """
    ties = self._near - self._ahead
    chances = (np.array(ranks)[:, None] - self._ahead) / (ties + 1)
    return np.clip(chances, 0, 1)


def _tiles(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
  """Yields the tiles of a matrix of this size, row by row."""
  height, width = _TILE
  for i in range(0, rows, height):
    for j in range(0, columns, width):
      yield slice(i, min(i + height, rows)), slice(j, min(j + width, columns))
