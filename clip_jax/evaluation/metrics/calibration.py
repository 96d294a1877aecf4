"""Calibration: of answers with a probability of 0.8, 80 % should be right.

The paper has no such figure; zero-shot probabilities are used as they are, and
the temperature they come from was trained on batches, not on labels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from clip_jax.errors import FailureError, UsageError

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
  """Returns predictions by their confidence, in bins of equal width.

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
  bin_of = np.searchsorted(edges[1:-1], confidences)
  counts = np.bincount(bin_of, minlength=bins)
  divisors = np.maximum(counts, 1)
  means = np.bincount(bin_of, confidences, minlength=bins) / divisors
  rates = np.bincount(bin_of, correct, minlength=bins) / divisors
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


def calibration_error(table: Sequence[Reliability]) -> float:
  """Returns the mean gap of confidence and accuracy, weighted by counts.

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
