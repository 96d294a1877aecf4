"""Whether probabilities mean what they say: of those of 0.8, 80 % are right.

The paper has no such figure; zero-shot probabilities are used as they are, and
the temperature they come from was trained on batches, not on labels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation.labels import check_in_range

BINS = 15  # of Guo et al. 2017, arXiv 1706.04599


class Reliability(NamedTuple):
  """One bar of the reliability diagram.

  Attributes:
    low, high: the bin, low < confidence <= high (the first has 0, too).
    count: predictions in it.
    confidence: their mean; None where there are none.
    accuracy: the fraction of them that is right; None where there are none.
  """

  low: float
  high: float
  count: int
  confidence: float | None
  accuracy: float | None


def reliability_table(
  confidences: Float[np.ndarray, 'N'],
  correct: Bool[np.ndarray, 'N'],
  bins: int = BINS,
) -> list[Reliability]:
  """Predictions by their confidence, in bins of equal width.

  Args:
    confidences: the probability of each prediction, 0 to 1.
    correct: whether it was right.
    bins: how many, from 0 to 1.
  Returns:
    Every bin, from 0 to 1, the empty ones too.
  Raises:
    UsageError: there are no predictions, no bins, or a confidence that is no
      probability.
    FailureError: a confidence is NaN.
  """
  if bins < 1:
    raise UsageError(f'bins={bins}: use 1 or more.')
  _check_probabilities(confidences)
  edges = np.linspace(0, 1, bins + 1)
  places = np.searchsorted(edges[1:-1], confidences)
  counts = np.bincount(places, minlength=bins)
  divisors = np.maximum(counts, 1)
  means = np.bincount(places, confidences, minlength=bins) / divisors
  rates = np.bincount(places, correct, minlength=bins) / divisors
  return [
    Reliability(
      low=float(edges[i]),
      high=float(edges[i + 1]),
      count=int(counts[i]),
      confidence=float(means[i]) if counts[i] else None,
      accuracy=float(rates[i]) if counts[i] else None,
    )
    for i in range(bins)
  ]


def expected_calibration_error(
  probabilities: Float[np.ndarray, 'N C'],
  labels: Int[np.ndarray, 'N'],
  bins: int = BINS,
) -> float:
  """How far confidence is from accuracy, on average over predictions.

  Of the predicted class, the likeliest (of equals the lower): the bins' gaps
  between mean confidence and accuracy, weighted by their counts.

  Args:
    probabilities: of all classes, each row's sum 1.
    labels: the class of each row.
    bins: of equal width, from 0 to 1.
  Returns:
    0 to 1.
  Raises:
    UsageError, FailureError: see `brier_score` and `reliability_table`.
  """
  _check(probabilities, labels)
  predicted = probabilities.argmax(axis=1)
  table = reliability_table(
    probabilities.max(axis=1), predicted == labels, bins
  )
  return calibration_error(table)


def calibration_error(table: Sequence[Reliability]) -> float:
  """The bins' gaps between confidence and accuracy, weighted by their counts.

  Args:
    table: of `reliability_table`, with a prediction in it.
  Returns:
    0 to 1.
  """
  gaps = (
    row.count * abs(row.confidence - row.accuracy)
    for row in table
    if row.confidence is not None and row.accuracy is not None
  )
  return sum(gaps) / sum(row.count for row in table)


def brier_score(
  probabilities: Float[np.ndarray, 'N C'], labels: Int[np.ndarray, 'N']
) -> float:
  """The squared distance between probabilities and truth, over all classes.

  Brier's own (1950): of two classes it is twice what is given for the
  probability of one of them.

  Args:
    probabilities: of all classes, each row's sum 1.
    labels: the class of each row.
  Returns:
    The mean over rows: 0 for certain and right, 2 for certain and wrong.
  Raises:
    UsageError: there are no rows, a label is outside 0..C-1, or a row is no
      distribution.
    FailureError: a probability is NaN.
  """
  _check(probabilities, labels)
  rows = np.arange(len(labels))
  right = probabilities[rows, labels].astype(np.float64)
  squares = np.square(probabilities, dtype=np.float64).sum(axis=1)
  # (1 - p)^2 of the right class in place of its p^2.
  return float((squares + 1 - 2 * right).mean())


def _check(probabilities: np.ndarray, labels: np.ndarray) -> None:
  check_in_range(labels, probabilities.shape[1])
  _check_probabilities(probabilities)
  sums = probabilities.sum(axis=1, dtype=np.float64)
  far = np.flatnonzero(np.abs(sums - 1) > 1e-3)
  if len(far):
    raise UsageError(
      f'probabilities of row {far[0]:,} have the sum {sums[far[0]]:.4g}: '
      'calibration is of distributions, so apply a softmax first.'
    )


def _check_probabilities(values: np.ndarray) -> None:
  if not len(values):
    raise UsageError('no predictions: there is nothing to calibrate.')
  bad = int(np.isnan(values).sum())
  if bad:
    raise FailureError(
      f'{bad:,} of {values.size:,} probabilities are NaN: the model or the '
      'probe has diverged.'
    )
  # A float32 softmax may be over 1 by its rounding.
  if values.min() < 0 or values.max() > 1 + 1e-5:
    raise UsageError(
      f'probabilities from {values.min():.4g} to {values.max():.4g}: they '
      'must be 0 to 1.'
    )
