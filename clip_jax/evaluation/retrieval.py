"""Retrieval (paper, table 13): the texts of an image, the image of a text."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.encoder import Encoder, Evaluation, Options
from clip_jax.evaluation.features import read_features
from clip_jax.evaluation.prompts import mean_directions, text_features
from clip_jax.inference.classifier import check_templates

RANKS = (1, 5, 10)
# Captions a picture, by data set: some pictures of COCO have six or seven, and
# published recalls are with the first five, of 5,000 pictures 25,000.
CAPTIONS = {'coco_captions': 5, 'flickr30k': 5}
_CHUNK_BYTES = 64 * 2**20  # of scores held at once
# Cosine similarities this close are equal: about the rounding of a float32
# sum, so that two copies of one text tie whatever the order of summation.
_TIE = 1e-6


def evaluate(
  encoder: Encoder, dataset: Dataset, options: Options
) -> Evaluation:
  """Recall among all pictures and all texts of a split, both ways.

  A picture may have several texts; one without any is something to confuse
  the others with, and asks for nothing itself. A text that several pictures
  share counts once for each, and as theirs only. Of COCO and Flickr30k each
  picture has its first five (`CAPTIONS`).

  Args:
    options: `templates` go around each text, by default the data set's (the
      paper's is 'a photo of {}'); `cache`, `max_corrupt_records`, `watch`.
  Returns:
    metrics: 'image_to_text_rK' and 'text_to_image_rK' for K of 1, 5, 10, and
      'examples' (pictures) and 'texts'. See `recalls`.
    records: for each picture 'id', 'captions', and 'top': up to five
      [text, similarity], best first, each text once.
  Raises:
    UsageError: the data has no captions, or a template no slot.
    FailureError: too many pictures are corrupt, or features are not finite.
  """
  templates = options.templates_for(dataset)
  check_templates(templates)
  features = read_features(encoder, dataset.test, options)
  most = CAPTIONS.get(dataset.name)
  captions = [own[:most] for own in features.captions]
  texts = [text for own in captions for text in own]
  if not texts:
    raise UsageError(
      f'data {dataset.name!r} has no captions, which retrieval needs.'
    )
  owners = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
  # Each text is encoded once, so that copies of one have equal features.
  different = list(dict.fromkeys(texts))
  places = {text: i for i, text in enumerate(different)}
  unique = _prompted(encoder, different, templates, options)
  rows = unique[np.array([places[text] for text in texts])]
  found = recalls(features.vectors, rows, owners)
  nearest, similarities = _nearest(features.vectors, unique, k=5)
  return Evaluation(
    metrics={
      **found,
      'examples': float(len(captions)),
      'texts': float(len(texts)),
    },
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
  )


def _prompted(
  encoder: Encoder,
  texts: Sequence[str],
  templates: Sequence[str],
  options: Options,
) -> Float[np.ndarray, 'M E']:
  """Unit-length rows; of several templates a text's mean direction."""
  prompts = [t.replace('{}', text) for text in texts for t in templates]
  rows = text_features(encoder, prompts, options)
  if len(templates) == 1:
    return rows
  return mean_directions(rows, [1] * len(texts), len(templates)).T


def recalls(
  image_features: Float[np.ndarray, 'N E'],
  text_features: Float[np.ndarray, 'M E'],
  owners: Int[np.ndarray, 'M'],
  ranks: tuple[int, ...] = RANKS,
) -> dict[str, float]:
  """Recall at each rank, both ways, in memory that does not grow as N x M.

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
  hits = {
    'image_to_text': _image_to_text(
      image_features, text_features, owners, ranks
    ),
    'text_to_image': _text_to_image(
      image_features, text_features, owners, ranks
    ),
  }
  return {
    f'{way}_r{k}': float(rate)
    for way, rates in hits.items()
    for k, rate in zip(ranks, rates, strict=True)
  }


def _image_to_text(images, texts, owners, ranks) -> np.ndarray:
  asking = np.unique(owners)
  total = np.zeros(len(ranks))
  for rows in _chunks(asking, len(texts)):
    scores = images[rows] @ texts.T  # n M
    own = owners[None, :] == rows[:, None]
    best = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
    others = np.where(own, -np.inf, scores)
    total += _chances(others, best, ranks)
  return total / len(asking)


def _text_to_image(images, texts, owners, ranks) -> np.ndarray:
  total = np.zeros(len(ranks))
  for rows in _chunks(np.arange(len(texts)), len(images)):
    scores = texts[rows] @ images.T  # n N
    place = np.arange(len(rows)), owners[rows]
    own = scores[place][:, None]
    scores[place] = -np.inf
    total += _chances(scores, own, ranks)
  return total / len(texts)


def _chances(others, own, ranks) -> np.ndarray:
  """Expected hits at each rank, summed over rows, ties in random order."""
  ahead = (others > own + _TIE).sum(axis=1)
  level = (np.abs(others - own) <= _TIE).sum(axis=1)
  places = (np.array(ranks)[:, None] - ahead) / (level + 1)
  return np.clip(places, 0, 1).sum(axis=1)


def _nearest(
  queries: Float[np.ndarray, 'N E'],
  rows: Float[np.ndarray, 'M E'],
  *,
  k: int,
) -> tuple[Int[np.ndarray, 'N K'], Float[np.ndarray, 'N K']]:
  """The `k` rows nearest to each query, and their similarities."""
  k = min(k, len(rows))
  indices, values = [], []
  for chunk in _chunks(np.arange(len(queries)), len(rows)):
    scores = queries[chunk] @ rows.T
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    top = np.take_along_axis(scores, best, axis=1)
    order = np.argsort(-top, axis=1, kind='stable')
    indices.append(np.take_along_axis(best, order, axis=1))
    values.append(np.take_along_axis(top, order, axis=1))
  return np.concatenate(indices), np.concatenate(values)


def _chunks(rows: np.ndarray, columns: int) -> list[np.ndarray]:
  """`rows` in parts whose scores against `columns` fit the limit."""
  size = max(1, _CHUNK_BYTES // (4 * columns))
  return [rows[i : i + size] for i in range(0, len(rows), size)]
