"""The best classes of each row, and how often the right one is among them."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

_CHUNK_BYTES = 64 * 2**20  # of scores held at once


def scores_of(
  features: Float[np.ndarray, 'N D'], weights: Float[np.ndarray, 'D C']
) -> Float[np.ndarray, 'N C']:
  """Linear scores, for all who compare or report them.

  Where two classes are level up to rounding, which of them is the best hangs on
  how the product is computed. Zero-shot has to be one number in every
  evaluation, so that all compute it here, and `top_classes` by the same parts.

  Args:
    features: float32, as the weights.
    weights: of a zero-shot classifier times the logit scale: see `scaled`.
  """
  return np.concatenate([*_parts(features, weights)])


def scaled(
  directions: Float[np.ndarray, 'E C'], logit_scale: float
) -> Float[np.ndarray, 'E C']:
  """The weights of a zero-shot classifier, whose scores are logits.

  Args:
    directions: unit-length columns.
    logit_scale: 1 / temperature of the softmax.
  """
  return np.float32(logit_scale) * directions


def _parts(
  features: Float[np.ndarray, 'N D'], weights: Float[np.ndarray, 'D C']
) -> Iterator[Float[np.ndarray, 'n C']]:
  """The scores of some rows after others; of no rows one empty part."""
  rows = max(1, _CHUNK_BYTES // (4 * weights.shape[1]))
  for start in range(0, max(1, len(features)), rows):
    yield features[start : start + rows] @ weights


def best_classes(
  scores: Float[np.ndarray, 'N C'], k: int
) -> Int[np.ndarray, 'N K']:
  """The best classes of each row, best first; of equals, the lower first.

  Args:
    scores: finite.
    k: K is the smaller of this and C.
  """
  left = scores.copy()
  best = np.empty((len(left), min(k, left.shape[1])), np.int64)
  for place in range(best.shape[1]):  # far cheaper than a partition
    best[:, place] = left.argmax(axis=1)
    np.put_along_axis(left, best[:, [place]], -np.inf, axis=1)
  return best


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
  indices, values = [], []
  for logits in _parts(features, scaled(weights, logit_scale)):
    best = best_classes(logits, k)
    top = np.take_along_axis(logits, best, axis=1)
    peak = top[:, :1]
    total = np.exp(logits - peak).sum(axis=1, keepdims=True)
    indices.append(best)
    values.append(np.exp(top - peak) / total)
  return np.concatenate(indices), np.concatenate(values)


def accuracies(
  best: Int[np.ndarray, 'N K'],
  labels: Int[np.ndarray, 'N'],
  ranks: Sequence[int] = (1, 5),
) -> dict[str, float]:
  """Fractions of rows whose label is among the first k: 'top1', 'top5'.

  Args:
    best: classes, best first.
    labels: the right class of each row.
    ranks: the k.
  """
  hits = best == labels[:, None]
  return {f'top{k}': float(hits[:, :k].any(axis=1).mean()) for k in ranks}
