"""The line of standard models, above which a model is robust (section 3.3).

Over models trained in the standard way, the logit of the accuracy under a
shift is a line in the logit of the accuracy on ImageNet (Taori et al. 2020,
arXiv 2007.00644). A model is robust as far as it lies above that line.
"""

import csv
import dataclasses
import io
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation.metrics.intervals import Interval
from clip_jax.files import read_text

# Accuracies of 0 and of 1 have no logit: they count as this far from there,
# the accuracy of half an image in ten thousand (ImageNetV2's size).
_MARGIN = 0.5e-4
COLUMNS = ('model', 'reference_accuracy', 'shift_accuracy')  # of baselines


@dataclasses.dataclass(frozen=True)
class LogitFit:
  """logit(accuracy under shift) = slope * logit(ImageNet accuracy) + intercept.

  Attributes:
    slope, intercept: of the line of least squares.
    slope_error: the standard error of the slope.
    models: how many it was fitted to.
    mean_logit: of their ImageNet accuracies.
    spread: the sum of squared deviations of these logits from their mean.
  """

  slope: float
  intercept: float
  slope_error: float
  models: int
  mean_logit: float
  spread: float

  def predict(self, imagenet_accuracy: float) -> float:
    """Returns the accuracy under shift of a standard model.

    Args:
      imagenet_accuracy: a fraction, 0 to 1.
    Returns:
      A fraction, between 0 and 1.
    """
    return _accuracy(self._line(_logit(imagenet_accuracy)))

  def band(
    self, imagenet_accuracy: float, confidence: float = 0.95
  ) -> Interval:
    """Returns where the line itself could be at an ImageNet accuracy.

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
    leverage = self.spread / self.models + (x - self.mean_logit) ** 2
    quantile = stats.t.isf((1 - confidence) / 2, self.models - 2)
    reach = float(quantile) * self.slope_error * leverage**0.5
    middle = self._line(x)
    return Interval(_accuracy(middle - reach), _accuracy(middle + reach))

  def _line(self, logit: float) -> float:
    return self.slope * logit + self.intercept


def fit_logits(
  imagenet_accuracies: Float[np.ndarray, 'M'],
  shift_accuracies: Float[np.ndarray, 'M'],
) -> LogitFit:
  """Fits the line through standard models of figure 13.

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
  line: Any = stats.linregress(x, y)
  return LogitFit(
    slope=float(line.slope),
    intercept=float(line.intercept),
    slope_error=float(line.stderr),
    models=len(x),
    mean_logit=float(x.mean()),
    spread=float(((x - x.mean()) ** 2).sum()),
  )


def effective_robustness(
  shift_accuracy: float, imagenet_accuracy: float, fit: LogitFit
) -> float:
  """Returns the accuracy under shift above that of a standard model.

  The latter is one that is as good on ImageNet.

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
  """Returns the accuracy under shift gained over a model by changing it.

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
  """Inverts `_logit`."""
  return float(np.exp(-np.logaddexp(0.0, -logit)))


def _check_fraction(name: str, value: float) -> None:
  if not 0 <= value <= 1:
    raise UsageError(f'{name} {value}: use a fraction, 0 to 1.')


class Baseline(NamedTuple):
  """A model and what it reaches, as fractions, 0 to 1.

  Attributes:
    model: its name.
    reference_accuracy: on the reference (ImageNet), of the classes that it
      shares with the shift.
    shift_accuracy: under the shift.
  """

  model: str
  reference_accuracy: float
  shift_accuracy: float


def read_baselines(path: str) -> list[Baseline]:
  """Reads a CSV file with a header and the columns `COLUMNS`, in any order.

  Raises:
    UsageError: it cannot be read, a column is missing, an accuracy is no
      fraction, or there are fewer models than the three of a line.
  """
  try:
    text = read_text(path)
  except FailureError as error:
    raise UsageError(f'baselines: {error}') from error
  try:
    return _parse(text, path)
  except csv.Error as error:
    raise UsageError(f'baselines {path!r} is no CSV file: {error}.') from error


def _parse(text: str, path: str) -> list[Baseline]:
  rows = csv.DictReader(io.StringIO(text))
  missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
  if missing:
    raise UsageError(
      f'baselines {path!r} has no column {missing[0]!r}: begin with the line '
      f'{",".join(COLUMNS)}.'
    )
  baselines = []
  for row in rows:
    where = f'baselines {path!r}, line {rows.line_num}'
    if not row['model']:
      raise UsageError(f'{where}: the model has no name.')
    accuracies = (_fraction(row[name], name, where) for name in COLUMNS[1:])
    baselines.append(Baseline(row['model'], *accuracies))
  if len(baselines) < 3:
    raise UsageError(
      f'baselines {path!r} has {len(baselines)} models: a line needs three '
      'or more.'
    )
  return baselines


def _fraction(text: str | None, name: str, where: str) -> float:
  try:
    value = float(text or '')
  except ValueError:
    value = math.nan
  if not 0 <= value <= 1:
    raise UsageError(f'{where}: {name} {text!r} is no fraction, 0 to 1.')
  return value
