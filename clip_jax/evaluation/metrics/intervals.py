"""Confidence intervals of proportions and means, and a test of proportions.

The overlap analysis of the paper (section 5, figure 17) asks of each data set
whether its accuracy on images that were also trained on is more than chance
above that on the rest.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from clip_jax.errors import UsageError

OVERLAP_CONFIDENCE = 0.995  # of the paper's intervals in section 5


class Interval(NamedTuple):
  """A closed range of values.

  Attributes:
    low, high: its ends; low <= high.
  """

  low: float
  high: float


class MeanInterval(NamedTuple):
  """A mean and where it could be.

  Attributes:
    mean: of the values.
    low, high: the ends of the interval around it.
  """

  mean: float
  low: float
  high: float


def clopper_pearson(
  successes: int, trials: int, confidence: float = 0.95
) -> Interval:
  """Returns the exact binomial interval of a proportion (section 5).

  It holds the true proportion in at least `confidence` of all samples,
  whatever the proportion is.

  Args:
    successes: such as images classified right; 0 to `trials`.
    trials: images.
    confidence: between 0 and 1; the paper's is OVERLAP_CONFIDENCE.
  Raises:
    UsageError: there are no trials, or the numbers make no sense.
  """
  _check_counts(successes, trials)
  _check_confidence(confidence)
  test = stats.binomtest(successes, trials)
  interval = test.proportion_ci(confidence, method='exact')
  return Interval(float(interval.low), float(interval.high))


def overlap_p_value(
  overlap_correct: int, overlap_total: int, clean_accuracy: float
) -> float:
  """Tests whether a model does better on what it may have been trained on.

  The one-tailed (greater) binomial test of section 5: the chance of at least
  `overlap_correct` right out of `overlap_total`, were each right with the
  accuracy on the clean images.

  Args:
    overlap_correct: images of the overlap that are classified right.
    overlap_total: images of the overlap.
    clean_accuracy: a fraction, 0 to 1, on the images without a duplicate.
  Returns:
    0 to 1; small where the overlap is suspiciously easy.
  Raises:
    UsageError: there is no overlap, or the numbers make no sense.
  """
  _check_counts(overlap_correct, overlap_total)
  if not 0 <= clean_accuracy <= 1:
    raise UsageError(
      f'clean_accuracy={clean_accuracy}: use a fraction, 0 to 1.'
    )
  test = stats.binomtest(
    overlap_correct, overlap_total, clean_accuracy, alternative='greater'
  )
  return float(test.pvalue)


def mean_interval(
  values: Float[np.ndarray, 'S'], confidence: float = 0.95
) -> MeanInterval:
  """Returns the mean over seeds, with its interval by Student's t distribution.

  For what is drawn anew with each seed, such as few-shot accuracies.

  Args:
    values: one a seed.
    confidence: between 0 and 1.
  Returns:
    Symmetric about the mean, and so perhaps beyond 0 or 1.
  Raises:
    UsageError: there are fewer than two values, of which nothing can be said.
  """
  _check_confidence(confidence)
  if len(values) < 2:
    raise UsageError(
      f'an interval over {len(values)} seeds: two are the fewest that show how '
      'much they differ.'
    )
  mean = float(values.mean())
  reach = stats.sem(values) * stats.t.isf((1 - confidence) / 2, len(values) - 1)
  return MeanInterval(mean, mean - float(reach), mean + float(reach))


def _check_counts(successes: int, trials: int) -> None:
  if trials < 1 or not 0 <= successes <= trials:
    raise UsageError(
      f'{successes:,} successes in {trials:,} trials: there must be a trial, '
      'and no more successes than trials.'
    )


def _check_confidence(confidence: float) -> None:
  if not 0 < confidence < 1:
    raise UsageError(
      f'confidence={confidence}: use a fraction between 0 and 1, as 0.95.'
    )
