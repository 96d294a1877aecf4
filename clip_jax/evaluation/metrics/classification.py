"""The metrics of the paper's data sets (appendix A, table 9), by name.

Each is a function of scores [N, C], higher is likelier, and of the truth, and
returns a fraction, 0 to 1. Only the order of a row's scores counts (for
`map_11_point` and `roc_auc` also the order between rows), so similarities,
logits and probabilities serve alike.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.metrics import roc_auc_score

from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation.metrics.ranking import (
  accuracies,
  check_in_range,
)
from clip_jax.inference.nearest import top_k

_TENTHS = np.arange(11)  # recalls 0, 0.1 … 1 of the VOC2007 rule
Metric = Callable[[Float[np.ndarray, 'N C'], Any], float]


def accuracy(
  scores: Float[np.ndarray, 'N C'], labels: Int[np.ndarray, 'N']
) -> float:
  """Returns the fraction of rows whose label has the highest score.

  Of equal scores the lower class counts as the prediction, here and below.

  Raises:
    UsageError: there are no rows, or a label is outside 0..C-1.
    FailureError: a score is NaN.
  """
  return _top_accuracies(scores, labels)['top1']


def mean_top1_top5(
  scores: Float[np.ndarray, 'N C'], labels: Int[np.ndarray, 'N']
) -> float:
  """Returns the mean of top-1 and top-5 accuracy: Kinetics700's metric.

  Raises:
    UsageError, FailureError: see `accuracy`.
  """
  top = _top_accuracies(scores, labels)
  return (top['top1'] + top['top5']) / 2


def mean_per_class(
  scores: Float[np.ndarray, 'N C'], labels: Int[np.ndarray, 'N']
) -> float:
  """Returns the mean of the classes' recalls, whatever their sizes.

  That of Caltech-101, Oxford Pets, FGVC Aircraft and Flowers102. Classes of
  which no row is have no recall and are left out of the mean.

  Raises:
    UsageError, FailureError: see `accuracy`.
  """
  _check(scores, labels)
  hits = scores.argmax(axis=1) == labels
  totals = np.bincount(labels)
  right = np.bincount(labels, weights=hits)
  occurs = totals > 0
  return float((right[occurs] / totals[occurs]).mean())


def map_11_point(
  scores: Float[np.ndarray, 'N C'],
  truth: Bool[np.ndarray, 'N C'],
  difficult: Bool[np.ndarray, 'N C'] | None = None,
) -> float:
  """Returns the mean 11-point average precision of classes, VOC2007's metric.

  A class's average precision is the mean, over recalls r = 0, 0.1 … 1, of the
  highest precision at any recall of r or more. Rows with equal scores come
  in together, so that their order does not matter.

  Args:
    scores: of each class, by itself.
    truth: whether the class is in the image.
    difficult: where the data set asks for neither answer: left out of that
      class.
  Raises:
    UsageError: there are no rows, or a class is in none of the images.
    FailureError: a score is NaN.
  """
  _check_scores(scores)
  counted = np.ones_like(truth) if difficult is None else ~difficult
  return float(
    np.mean(
      [
        _average_precision(scores[rows, c], truth[rows, c], c)
        for c, rows in enumerate(counted.T)
      ]
    )
  )


def roc_auc(
  scores: Float[np.ndarray, 'N C'], labels: Int[np.ndarray, 'N']
) -> float:
  """Returns the area under the ROC curve of class 1: Hateful Memes' metric.

  The chance that a row of class 1 has the greater margin, `scores[:, 1] -
  scores[:, 0]`, than one of class 0; ties count a half.

  Raises:
    UsageError: there are not two classes, a label is neither 0 nor 1, or all
      rows are of one class.
    FailureError: a score is NaN.
  """
  if scores.shape[1] != 2:
    raise UsageError(
      f'roc_auc is of two classes, and there are scores of {scores.shape[1]}.'
    )
  _check(scores, labels)
  if len(np.unique(labels)) < 2:
    raise UsageError(
      f'roc_auc needs rows of both classes, and all have label {labels[0]}.'
    )
  return float(roc_auc_score(labels, scores[:, 1] - scores[:, 0]))


METRICS: dict[str, Metric] = {  # as the rows of data sets name them
  'accuracy': accuracy,
  'mean_per_class': mean_per_class,
  'map_11_point': map_11_point,  # the truth is bool [N, C]
  'roc_auc': roc_auc,
  'mean_top1_top5': mean_top1_top5,
}


def _top_accuracies(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
  _check(scores, labels)
  return accuracies(top_k(scores, 5), labels)


def _average_precision(
  scores: np.ndarray, truth: np.ndarray, name: int
) -> float:
  """Returns the average precision of one class, by its 11 points."""
  positives = int(truth.sum())
  if not positives:
    raise UsageError(f'class {name} is in none of the {len(truth):,} images.')
  order = np.argsort(-scores, kind='stable')
  scores, hits = scores[order], np.cumsum(truth[order])
  last = np.append(scores[1:] != scores[:-1], True)  # of its equals
  hits = hits[last]
  precision = hits / (np.flatnonzero(last) + 1)
  # The best at this recall or more; in whole numbers, since 0.1 * 3 > 0.3.
  best = np.maximum.accumulate(precision[::-1])[::-1]
  first = np.searchsorted(10 * hits, _TENTHS * positives)
  return float(best[first].mean())


def _check(scores: np.ndarray, labels: np.ndarray) -> None:
  _check_scores(scores)
  check_in_range(labels, scores.shape[1])


def _check_scores(scores: np.ndarray) -> None:
  if not len(scores):
    raise UsageError('no scores: there is nothing to evaluate.')
  bad = int(np.isnan(scores).any(axis=1).sum())
  if bad:
    raise FailureError(
      f'{bad:,} of {len(scores):,} rows of scores have a NaN: the model or '
      'the probe has diverged.'
    )
