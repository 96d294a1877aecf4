"""Robustness to natural distribution shift (paper, section 3.3, figures 13-15).

Over models trained in the standard way, the logit of the accuracy under a
shift is a line in the logit of the accuracy on ImageNet (Taori et al. 2020,
arXiv 2007.00644). A model is robust as far as it lies above that line.
"""

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy import stats

from clip_jax.errors import UsageError
from clip_jax.evaluation.metrics.intervals import Interval

# Accuracies of 0 and of 1 have no logit: they count as this far from there,
# the accuracy of half a picture in ten thousand (ImageNetV2's size).
_MARGIN = 0.5e-4


@dataclasses.dataclass(frozen=True)
class LogitFit:
  """logit(accuracy under shift) = slope * logit(ImageNet accuracy) + intercept.

  Attributes:
    slope, intercept: of the line of least squares.
    models: how many it was fitted to.
    mean_logit: of their ImageNet accuracies.
    spread: the sum of squared deviations of these logits from their mean.
    residual: the standard error of a model about the line, in logits, of
      models - 2 degrees of freedom.
  """

  slope: float
  intercept: float
  models: int
  mean_logit: float
  spread: float
  residual: float

  def predict(self, imagenet_accuracy: float) -> float:
    """The accuracy under shift of a standard model.

    Args:
      imagenet_accuracy: a fraction, 0 to 1.
    Returns:
      A fraction, between 0 and 1.
    """
    return _accuracy(self._line(_logit(imagenet_accuracy)))

  def band(
    self, imagenet_accuracy: float, confidence: float = 0.95
  ) -> Interval:
    """Where the line itself could be at an ImageNet accuracy.

    The interval by Student's t for the mean of the regression, in logits;
    it says how well the line is known, not how far models lie from it.

    Args:
      imagenet_accuracy: a fraction, 0 to 1.
      confidence: between 0 and 1.
    Returns:
      Fractions about `predict`'s.
    Raises:
      UsageError: the confidence is not between 0 and 1.
    """
    if not 0 < confidence < 1:
      raise UsageError(
        f'confidence={confidence}: use a fraction between 0 and 1, as 0.95.'
      )
    x = _logit(imagenet_accuracy)
    leverage = 1 / self.models + (x - self.mean_logit) ** 2 / self.spread
    quantile = stats.t.isf((1 - confidence) / 2, self.models - 2)
    reach = float(quantile) * self.residual * leverage**0.5
    middle = self._line(x)
    return Interval(_accuracy(middle - reach), _accuracy(middle + reach))

  def _line(self, logit: float) -> float:
    return self.slope * logit + self.intercept


def fit_logits(
  imagenet_accuracies: Float[np.ndarray, 'M'],
  shift_accuracies: Float[np.ndarray, 'M'],
) -> LogitFit:
  """The line through standard models (figure 13's).

  Args:
    imagenet_accuracies: fractions, one a model; on ImageNet's classes that
      the shifted set has, where it has only some (ImageNet-R, -A).
    shift_accuracies: of the same models under the shift.
  Raises:
    UsageError: there are fewer than three models, an accuracy is not a
      fraction, or all have the same ImageNet accuracy.
  """
  if len(imagenet_accuracies) < 3:
    raise UsageError(
      f'a line through {len(imagenet_accuracies)} models: give three or more.'
    )
  for name, values in (
    ('imagenet', imagenet_accuracies),
    ('shift', shift_accuracies),
  ):
    for value in values.tolist():
      _check_fraction(f'{name} accuracy', value)
  x, y = (
    np.array([_logit(value) for value in values.tolist()])
    for values in (imagenet_accuracies, shift_accuracies)
  )
  if not np.ptp(x):
    raise UsageError(
      f'all {len(x)} models have the same ImageNet accuracy, '
      f'{imagenet_accuracies[0]}: no line goes through them.'
    )
  slope, intercept = np.polyfit(x, y, 1)
  misses = y - (slope * x + intercept)
  return LogitFit(
    slope=float(slope),
    intercept=float(intercept),
    models=len(x),
    mean_logit=float(x.mean()),
    spread=float(((x - x.mean()) ** 2).sum()),
    residual=float(np.sqrt((misses**2).sum() / (len(x) - 2))),
  )


def effective_robustness(
  shift_accuracy: float, imagenet_accuracy: float, fit: LogitFit
) -> float:
  """Accuracy under shift above that of a standard model as good on ImageNet.

  Args:
    shift_accuracy, imagenet_accuracy: of one model, fractions, 0 to 1.
    fit: of standard models.
  Returns:
    -1 to 1; 0 on the line.
  Raises:
    UsageError: an accuracy is not a fraction.
  """
  _check_fraction('shift accuracy', shift_accuracy)
  _check_fraction('imagenet accuracy', imagenet_accuracy)
  return shift_accuracy - fit.predict(imagenet_accuracy)


def relative_robustness(
  shift_accuracy: float, baseline_shift_accuracy: float
) -> float:
  """Accuracy under shift gained over the model before it was changed.

  Whatever happened to ImageNet accuracy: as zero-shot CLIP over a supervised
  model, or over CLIP adapted to ImageNet (figure 14).

  Args:
    shift_accuracy: of the changed model, a fraction, 0 to 1.
    baseline_shift_accuracy: of the model it is compared with.
  Returns:
    -1 to 1.
  Raises:
    UsageError: an accuracy is not a fraction.
  """
  _check_fraction('shift accuracy', shift_accuracy)
  _check_fraction('baseline shift accuracy', baseline_shift_accuracy)
  return shift_accuracy - baseline_shift_accuracy


def _logit(accuracy: float) -> float:
  clipped = min(max(accuracy, _MARGIN), 1 - _MARGIN)
  return float(np.log(clipped / (1 - clipped)))


def _accuracy(logit: float) -> float:
  """The inverse of `_logit`."""
  return float(np.exp(-np.logaddexp(0.0, -logit)))


def _check_fraction(name: str, value: float) -> None:
  if not 0 <= value <= 1:
    raise UsageError(f'{name} {value}: use a fraction, 0 to 1.')
