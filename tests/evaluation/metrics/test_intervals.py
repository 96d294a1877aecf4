"""Intervals by what they promise, and by scipy's and other ways to them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clip_jax.errors import UsageError
from clip_jax.evaluation.metrics.intervals import (
  OVERLAP_CONFIDENCE,
  clopper_pearson,
  mean_interval,
  overlap_p_value,
)

CONFIDENCES = st.floats(0.5, 0.999)


@st.composite
def counts(draw):
  trials = draw(st.integers(1, 2000))
  return draw(st.integers(0, trials)), trials


@given(counts(), CONFIDENCES)
def test_clopper_pearson_is_scipys(case, confidence):
  expected = stats.binomtest(*case).proportion_ci(confidence, method='exact')
  assert clopper_pearson(*case, confidence) == pytest.approx(expected, abs=1e-9)


@given(counts(), CONFIDENCES)
def test_the_interval_holds_the_proportion_and_lies_in_0_to_1(case, confidence):
  low, high = clopper_pearson(*case, confidence)
  assert 0 <= low <= case[0] / case[1] <= high <= 1
  assert low < high


@given(counts(), CONFIDENCES)
def test_failures_have_the_mirrored_interval(case, confidence):
  low, high = clopper_pearson(*case, confidence)
  mirrored = clopper_pearson(case[1] - case[0], case[1], confidence)
  assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-9)


@given(counts(), CONFIDENCES)
def test_the_ends_rise_with_every_success(case, confidence):
  successes, trials = case
  now = clopper_pearson(successes, trials, confidence)
  if successes < trials:
    after = clopper_pearson(successes + 1, trials, confidence)
    assert now.low < after.low and now.high < after.high


@given(counts(), CONFIDENCES)
def test_more_confidence_or_fewer_trials_is_a_wider_interval(case, confidence):
  low, high = clopper_pearson(*case, confidence)
  wider = clopper_pearson(*case, (1 + confidence) / 2)
  assert wider.low <= low and high <= wider.high
  sure = clopper_pearson(10 * case[0], 10 * case[1], confidence)
  assert sure.high - sure.low < high - low


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.floats(0.6, 0.995))
def test_the_interval_covers_as_often_as_it_says(trials, truth, confidence):
  # Not a sample: the chance of each count, added up where it covers.
  covered = sum(
    stats.binom.pmf(k, trials, truth)
    for k in range(trials + 1)
    if clopper_pearson(k, trials, confidence).low
    <= truth
    <= clopper_pearson(k, trials, confidence).high
  )
  assert covered >= confidence - 1e-9


def test_none_and_all_right_by_hand():
  # 0 of n: the high end h has (1 - h) ** n of a tail's chance.
  low, high = clopper_pearson(0, 20, 0.9)
  assert low == 0
  assert (1 - high) ** 20 == pytest.approx(0.05)
  low, high = clopper_pearson(20, 20, OVERLAP_CONFIDENCE)
  assert high == 1
  assert low**20 == pytest.approx(0.0025)


def test_p_value_by_hand():
  # 3 or more of 4 fair coins: (4 + 1) / 16.
  assert overlap_p_value(3, 4, 0.5) == pytest.approx(5 / 16)
  assert overlap_p_value(0, 4, 0.5) == pytest.approx(1)
  assert overlap_p_value(4, 4, 1.0) == 1
  assert overlap_p_value(1, 4, 0.0) == 0


@given(counts(), st.floats(0, 1))
def test_p_value_is_a_tail_which_shrinks_with_every_success(case, clean):
  successes, trials = case
  p = overlap_p_value(successes, trials, clean)
  tail = stats.binom.sf(successes - 1, trials, clean)
  assert p == pytest.approx(tail, rel=1e-6, abs=1e-12)
  if successes < trials:
    assert overlap_p_value(successes + 1, trials, clean) <= p + 1e-12


@given(
  st.lists(st.floats(-10, 10), min_size=2, max_size=20), st.floats(0.5, 0.99)
)
def test_mean_interval_is_scipys_and_moves_with_the_values(values, confidence):
  array = np.array(values)
  mean, low, high = mean_interval(array, confidence)
  assert low <= mean <= high
  assert high - mean == pytest.approx(mean - low, abs=1e-9)
  if np.ptp(array) > 1e-6:
    expected = stats.ttest_1samp(array, 0).confidence_interval(confidence)
    assert (low, high) == pytest.approx(tuple(expected), rel=1e-6, abs=1e-9)
  moved = mean_interval(2 * array + 3, confidence)
  scaled = [2 * end + 3 for end in (mean, low, high)]
  assert moved == pytest.approx(scaled, abs=1e-6)


def test_mean_interval_covers_95_of_100_normal_samples():
  samples = np.random.default_rng(0).normal(size=(2000, 4))
  result = [mean_interval(row) for row in samples]
  rate = np.mean([low <= 0 <= high for _, low, high in result])
  assert rate == pytest.approx(0.95, abs=0.015)  # three deviations


def test_numbers_that_make_no_sense_are_refused():
  for successes, trials in ((0, 0), (3, 2), (-1, 2)):
    with pytest.raises(UsageError, match=f'{successes} successes in {trials}'):
      clopper_pearson(successes, trials)
    with pytest.raises(UsageError, match='there must be a trial'):
      overlap_p_value(successes, trials, 0.5)
  for confidence in (0.0, 1.0, 95.0):
    with pytest.raises(UsageError, match=f'confidence={confidence}'):
      clopper_pearson(1, 2, confidence)
    with pytest.raises(UsageError, match=f'confidence={confidence}'):
      mean_interval(np.array([0.1, 0.2]), confidence)
  with pytest.raises(UsageError, match='clean_accuracy=55'):
    overlap_p_value(1, 2, 55.0)
  with pytest.raises(UsageError, match='over 1 seeds'):
    mean_interval(np.array([0.5]))
