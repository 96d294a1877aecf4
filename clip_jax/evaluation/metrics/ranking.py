"""Scores of classes, and how often the right one is among the best."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from clip_jax.errors import UsageError
from clip_jax.inference.nearest import top_k

# With this number of classes or fewer, five of them are half or more of all,
# and top-5 accuracy means little.
FEW_CLASSES = 10
_CHUNK_BYTES = 64 * 2**20  # of scores held at once


def scores_of(
  features: Float[np.ndarray, 'N D'], weights: Float[np.ndarray, 'D C']
) -> Float[np.ndarray, 'N C']:
  """Returns the scores of a linear classifier.

  Where two classes are equal up to rounding, which of them is the best depends
  on how the product is computed. Every evaluation computes it here, and
  `top_classes` by the same parts, so that all have the same accuracy.

  Args:
    features: float32, as the weights.
    weights: of a zero-shot classifier times the logit scale: see `scaled`.
  """
  return np.concatenate([*_parts(features, weights)])


def scaled(
  directions: Float[np.ndarray, 'E C'], logit_scale: float
) -> Float[np.ndarray, 'E C']:
  """Returns the weights of a zero-shot classifier, whose scores are logits.

  Args:
    directions: unit-length columns.
    logit_scale: 1 / temperature of the softmax.
  """
  return np.float32(logit_scale) * directions


def _parts(
  features: Float[np.ndarray, 'N D'], weights: Float[np.ndarray, 'D C']
) -> Iterator[Float[np.ndarray, 'n C']]:
  """Yields the scores of consecutive rows; one empty part if there are none."""
  rows = max(1, _CHUNK_BYTES // (4 * weights.shape[1]))
  for start in range(0, max(1, len(features)), rows):
    yield features[start : start + rows] @ weights


def top_classes(
  features: Float[np.ndarray, 'N E'],
  weights: Float[np.ndarray, 'E C'],
  *,
  k: int,
  logit_scale: float,
) -> tuple[Int[np.ndarray, 'N K'], Float[np.ndarray, 'N K']]:
  """Returns the best classes of each row, and their probabilities among all C.

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
    best = top_k(logits, k)
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
  """Returns the fractions of rows whose label is among the first k.

  Args:
    best: classes, best first.
    labels: the right class of each row.
    ranks: the k.
  """
  hits = best == labels[:, None]
  return {f'top{k}': float(hits[:, :k].any(axis=1).mean()) for k in ranks}


def check_in_range(labels: Int[np.ndarray, 'N'], classes: int) -> None:
  """Refuses labels that name no class.

  Args:
    labels: the class of each row.
    classes: C, how many there are.
  Raises:
    UsageError: there are no labels, or one is not in 0..C-1.
  """
  if not len(labels):
    raise UsageError('no labels: there is nothing to evaluate.')
  outside = np.flatnonzero((labels < 0) | (labels >= classes))
  if len(outside):
    raise UsageError(
      f'label {labels[outside[0]]} of row {outside[0]:,} is outside the range '
      f'of {classes:,} classes, 0 to {classes - 1:,} ({len(outside):,} of '
      f'{len(labels):,} rows are).'
    )


def count_each(
  labels: Int[np.ndarray, 'N'], classes: int, names: Sequence[str] = ()
) -> Int[np.ndarray, 'C']:
  """Returns how many rows each class has, where each must have some.

  Args:
    labels: the class of each row.
    classes: C, how many there are.
    names: of the classes, for messages; () calls them by their numbers.
  Raises:
    UsageError: see `check_in_range`; or a class has no rows.
  """
  check_in_range(labels, classes)
  counts = np.bincount(labels, minlength=classes)
  empty = np.flatnonzero(counts == 0)
  if len(empty):
    shown = ', '.join(
      repr(names[c]) if names else str(c) for c in empty[:5].tolist()
    )
    more = ', …' if len(empty) > 5 else ''
    raise UsageError(
      f'{len(empty):,} of {classes:,} classes have no examples: {shown}{more}; '
      'give each some.'
    )
  return counts


def ranks_of(classes: int) -> tuple[int, ...]:
  """Returns the k of the top-k accuracies that are reported."""
  return (1, 5) if classes > FEW_CLASSES else (1,)


def chance_levels(
  names: Iterable[str], classes: int, metric: str | None = None
) -> dict[str, float]:
  """Returns what answers drawn evenly among all classes would give.

  Args:
    names: of the numbers of an evaluation.
    classes: how many there are to choose from.
    metric: by which all of them are measured, as `metrics.METRICS` names it;
      None takes each for the name of its own.
  Returns:
    Fractions, of those numbers that guessing has a level for: none of a mean
    average precision, which depends on the images.
  """
  top1, top5 = 1 / classes, min(1.0, 5 / classes)
  levels = {
    'accuracy': top1,
    'top1': top1,
    'top5': top5,
    'mean_top1_top5': (top1 + top5) / 2,
    'mean_per_class': top1,
    'roc_auc': 0.5,
  }
  return {
    name: levels[metric or name] for name in names if (metric or name) in levels
  }
