"""The line against scipy's, against known ones, and by hand."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clip_jax.errors import UsageError
from clip_jax.evaluation.shift.effective_robustness import (
  COLUMNS,
  effective_robustness,
  fit_logits,
  read_baselines,
  relative_robustness,
)

FRACTIONS = st.floats(0.02, 0.98)


def logit(p):
  return np.log(p / (1 - p))


def standard_models(seed, count=40):
  """Accuracies of models about a known line: slope 1.2, intercept -0.8."""
  rng = np.random.default_rng(seed)
  x = rng.normal(0.5, 0.7, count)
  y = 1.2 * x - 0.8 + 0.1 * rng.normal(size=count)
  return 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(-y))


@given(
  st.floats(0.2, 3),
  st.floats(-2, 2),
  st.lists(FRACTIONS, min_size=3, max_size=30, unique_by=lambda p: round(p, 3)),
  FRACTIONS,
)
def test_the_line_through_models_is_recovered(
  slope, intercept, imagenet, other
):
  x = np.array(imagenet)
  shift = 1 / (1 + np.exp(-(slope * logit(x) + intercept)))
  shift = shift.clip(1e-3, 1 - 1e-3)
  if (shift != 1 / (1 + np.exp(-(slope * logit(x) + intercept)))).any():
    return  # too near to 0 or 1 for its logit to be kept
  fit = fit_logits(x, shift)
  assert fit.slope == pytest.approx(slope, abs=1e-6)
  assert fit.intercept == pytest.approx(intercept, abs=1e-6)
  expected = 1 / (1 + np.exp(-(slope * logit(other) + intercept)))
  assert fit.predict(other) == pytest.approx(expected, abs=1e-6)
  assert effective_robustness(0.5, other, fit) == pytest.approx(
    0.5 - expected, abs=1e-6
  )
  assert fit.band(other) == pytest.approx((expected, expected), abs=1e-5)


def test_the_line_is_the_one_of_least_squares_between_logits():
  imagenet, shift = standard_models(0)
  fit = fit_logits(imagenet, shift)
  line = stats.linregress(logit(imagenet), logit(shift))
  assert fit.slope == pytest.approx(line.slope)
  assert fit.intercept == pytest.approx(line.intercept)
  assert fit.slope_error * fit.spread**0.5 == pytest.approx(0.1, rel=0.3)


def test_the_band_holds_the_true_line_in_95_of_100():
  result = []
  for seed in range(500):
    fit = fit_logits(*standard_models(seed, count=8))
    low, high = fit.band(0.8)
    result.append(low <= 1 / (1 + np.exp(-(1.2 * logit(0.8) - 0.8))) <= high)
  assert np.mean(result) == pytest.approx(0.95, abs=0.03)


def test_the_band_is_narrowest_amid_the_models_and_widens_with_confidence():
  fit = fit_logits(*standard_models(1))
  widths = {}
  for accuracy in (0.05, 0.62, 0.99):
    low, high = fit.band(accuracy)
    assert 0 < low < fit.predict(accuracy) < high < 1
    widths[accuracy] = logit(high) - logit(low)
    wider = fit.band(accuracy, 0.999)
    assert wider.low < low and high < wider.high
  assert widths[0.62] < min(widths[0.05], widths[0.99])
  with pytest.raises(UsageError, match=r'confidence=95\.0'):
    fit.band(0.5, 95.0)


def test_all_and_none_right_are_far_out_and_finite():
  imagenet = np.array([0.0, 0.3, 0.7, 1.0])
  fit = fit_logits(imagenet, imagenet)
  assert (fit.slope, fit.intercept) == pytest.approx((1, 0), abs=1e-9)
  for accuracy in (0.0, 1.0):
    assert fit.predict(accuracy) == pytest.approx(accuracy, abs=1e-4)


def test_robustness_by_hand():
  # Standard models lose half of the odds: 0.8 is 4 to 1, so 2 to 1.
  imagenet = np.array([0.2, 0.5, 0.8])
  odds = imagenet / (1 - imagenet) / 2
  fit = fit_logits(imagenet, odds / (1 + odds))
  assert effective_robustness(0.75, 0.8, fit) == pytest.approx(0.75 - 2 / 3)
  assert relative_robustness(0.75, 0.6) == pytest.approx(0.15)


def test_too_few_or_equal_models_are_refused():
  some = np.array([0.2, 0.5, 0.8])
  with pytest.raises(UsageError, match='a line through 2 models'):
    fit_logits(some[:2], some[:2])
  with pytest.raises(
    UsageError, match=r'all 3 .* same ImageNet accuracy, 0\.5'
  ):
    fit_logits(np.full(3, 0.5), some)
  with pytest.raises(UsageError, match=r'shift accuracy 20\.0: use a fraction'):
    fit_logits(some, 100 * some)
  with pytest.raises(UsageError, match='imagenet accuracy nan'):
    fit_logits(np.array([0.2, np.nan, 0.8]), some)
  fit = fit_logits(some, some)
  with pytest.raises(UsageError, match=r'imagenet accuracy 80\.0'):
    effective_robustness(0.5, 80.0, fit)
  with pytest.raises(UsageError, match=r'baseline shift accuracy -0\.1'):
    relative_robustness(0.5, -0.1)


HEAD = ','.join(COLUMNS)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (b'\xff\xfe\0', 'not UTF-8'),
    (b'a,b\n1,2\n', "no column 'model'"),
    (f'{HEAD}\nm,0.5,high\n'.encode(), 'line 2: shift_accuracy'),
    (f'{HEAD}\nm,0.5,nan\n'.encode(), 'line 2: shift_accuracy'),
    (f'{HEAD}\nm,0.5\n'.encode(), 'line 2: shift_accuracy'),
    (f'{HEAD}\nm,{"9" * 200_000},1\n'.encode(), 'baselines'),
  ],
)
def test_other_tables_are_one_line(tmp_path, text, message):
  path = tmp_path / 'b.csv'
  path.write_bytes(text)
  with pytest.raises(UsageError, match=message):
    read_baselines(str(path))


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'b.csv')
  with pytest.raises(UsageError, match='a pipe or a device'):
    read_baselines(str(tmp_path / 'b.csv'))
