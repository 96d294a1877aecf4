"""Retrieval (paper, table 13): the texts of an image, the image of a text."""

import numpy as np
from jaxtyping import Float, Int

from clip_jax.data.sources import Source
from clip_jax.errors import UsageError
from clip_jax.evaluation.encoder import Encoder, Evaluation, Options
from clip_jax.evaluation.pictures import Pictures
from clip_jax.inference.classifier import check_finite

RANKS = (1, 5, 10)
_CHUNK_BYTES = 64 * 2**20  # of scores held at once
# Cosine similarities this close are equal: about the rounding of a float32
# sum, so that two copies of one text tie whatever the order of summation.
_TIE = 1e-6


def evaluate(encoder: Encoder, source: Source, options: Options) -> Evaluation:
  """Recall among all pictures and all texts of a source, both ways.

  A picture may have several texts; one without any is something to confuse
  the others with, and asks for nothing itself. A text that several pictures
  share counts once for each, and as theirs only.

  Returns:
    metrics: 'image_to_text_rK' and 'text_to_image_rK' for K of 1, 5, 10, and
      'examples' (pictures) and 'texts'. See `recalls`.
    records: for each picture 'id', 'captions', and 'top': up to five
      [text, similarity], best first, each text once.
  Raises:
    UsageError: the source has no captions.
    FailureError: too many pictures are corrupt, or features are not finite.
  """
  pictures = Pictures(source, options.max_corrupt_records)
  image_features = encoder.encode_image(
    options.watch(pictures, len(source), 'images')
  )
  check_finite(image_features, 'image')
  captions = [record['caption'] for record in pictures.records]
  texts = [text for own in captions for text in own]
  if not texts:
    raise UsageError(
      f'data {source.spec!r} has no captions, which retrieval needs.'
    )
  owners = np.repeat(np.arange(len(captions)), [len(own) for own in captions])
  # Each text is encoded once, so that copies of one have equal features.
  different = list(dict.fromkeys(texts))
  places = {text: i for i, text in enumerate(different)}
  unique = encoder.encode_text(
    options.watch(different, len(different), 'texts')
  )
  check_finite(unique, 'text')
  text_features = unique[[places[text] for text in texts]]
  found = recalls(image_features, text_features, owners)
  nearest, similarities = _nearest(image_features, unique, k=5)
  return Evaluation(
    metrics={
      **found,
      'examples': float(len(captions)),
      'texts': float(len(texts)),
    },
    records=[
      {
        'id': record['id'],
        'captions': record['caption'],
        'top': [
          [different[j], s]
          for j, s in zip(
            nearest[i].tolist(), similarities[i].tolist(), strict=True
          )
        ],
      }
      for i, record in enumerate(pictures.records)
    ],
    corrupt=pictures.corrupt,
  )


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
