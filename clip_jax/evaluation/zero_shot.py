"""Zero-shot classification (paper, section 3.1): the right name among all."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from clip_jax.data.sources import Source
from clip_jax.errors import UsageError
from clip_jax.evaluation.encoder import Encoder, Evaluation, Options
from clip_jax.evaluation.pictures import Pictures
from clip_jax.inference.classifier import (
  check_finite,
  check_templates,
  zero_shot_weights,
)

_CHUNK_BYTES = 64 * 2**20  # of scores held at once


def evaluate(encoder: Encoder, source: Source, options: Options) -> Evaluation:
  """Classifies each picture of a source among all its label names.

  Returns:
    metrics: 'top1' and 'top5', fractions of the pictures whose label is the
      first, or among the first five; 'examples', pictures classified.
    records: for each picture 'id', 'label' (the name), 'top': up to five
      [name, probability], best first, and 'rank' (of the label among `top`,
      from 0, or None).
  Raises:
    UsageError: the source has no label names, or a template no slot.
    FailureError: too many pictures are corrupt, or features are not finite.
  """
  names = source.label_names
  if not names:
    raise UsageError(
      f'data {source.spec!r} has no label names, which zero_shot needs: use '
      'a folder of classes, a csv with a column label of names, or a labelled '
      'tfds data set.'
    )
  check_templates(options.templates)
  pictures = Pictures(source, options.max_corrupt_records)
  features = encoder.encode_image(
    options.watch(pictures, len(source), 'images')
  )
  check_finite(features, 'image')
  weights = zero_shot_weights(
    lambda texts: encoder.encode_text(
      options.watch(texts, len(names) * len(options.templates), 'texts')
    ),
    names,
    options.templates,
  )
  labels = np.array([_label(record, source) for record in pictures.records])
  best, probabilities = top_classes(
    features, weights, k=5, logit_scale=encoder.logit_scale
  )
  return Evaluation(
    metrics={**accuracies(best, labels), 'examples': float(len(labels))},
    records=[
      _describe(pictures.records[i]['id'], int(labels[i]), *top, names)
      for i, top in enumerate(
        zip(best.tolist(), probabilities.tolist(), strict=True)
      )
    ],
    corrupt=pictures.corrupt,
  )


def top_classes(
  features: Float[np.ndarray, 'N E'],
  weights: Float[np.ndarray, 'E C'],
  *,
  k: int,
  logit_scale: float,
) -> tuple[Int[np.ndarray, 'N K'], Float[np.ndarray, 'N K']]:
  """The best classes of each row, and their probabilities among all C.

  Args:
    features: unit-length rows.
    weights: unit-length columns.
    k: K is the smaller of this and C.
    logit_scale: 1 / temperature of the softmax.
  Returns:
    Indices, best first (of equals, the lower index first), and the
    probabilities of these.
  """
  k = min(k, weights.shape[1])
  indices, values = [], []
  rows = max(1, _CHUNK_BYTES // (4 * weights.shape[1]))
  for start in range(0, len(features), rows):
    logits = logit_scale * (features[start : start + rows] @ weights)
    best = np.argpartition(-logits, k - 1, axis=1)[:, :k]
    best = np.sort(best, axis=1)
    top = np.take_along_axis(logits, best, axis=1)
    order = np.argsort(-top, axis=1, kind='stable')
    best = np.take_along_axis(best, order, axis=1)
    top = np.take_along_axis(top, order, axis=1)
    peak = top[:, :1]
    total = np.exp(logits - peak).sum(axis=1, keepdims=True)
    indices.append(best)
    values.append(np.exp(top - peak) / total)
  return np.concatenate(indices), np.concatenate(values)


def accuracies(
  best: Int[np.ndarray, 'N K'], labels: Int[np.ndarray, 'N']
) -> dict[str, float]:
  """Fractions of rows whose label is in the first 1, and in the first 5.

  Args:
    best: classes, best first.
    labels: the right class of each row.
  """
  hits = best == labels[:, None]
  return {f'top{k}': float(hits[:, :k].any(axis=1).mean()) for k in (1, 5)}


def _label(record: Any, source: Source) -> int:
  if 'label' not in record:
    raise UsageError(
      f'data {source.spec!r}: record {record["id"]} has no label.'
    )
  return int(record['label'])


def _describe(
  key: str,
  label: int,
  best: list[int],
  probabilities: list[float],
  names: tuple[str, ...],
) -> dict[str, Any]:
  return {
    'id': key,
    'label': names[label],
    'rank': best.index(label) if label in best else None,
    'top': [[names[c], p] for c, p in zip(best, probabilities, strict=True)],
  }
