"""Calibration against scikit-learn's and hand-made cases."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation.calibration import (
  brier_score,
  expected_calibration_error,
  reliability_table,
)


def random_case(seed, rows=400, classes=5):
  """Overconfident probabilities and labels."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(rows, classes))
  labels = np.array([rng.choice(classes, p=softmax(row)) for row in logits])
  return softmax(3 * logits), labels


def softmax(logits):
  powers = np.exp(logits)
  return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize('bins', [1, 10, 15])
def test_the_table_is_scikit_learns_curve(bins):
  probabilities, labels = random_case(0)
  confidences = probabilities.max(axis=1)
  correct = probabilities.argmax(axis=1) == labels
  # Some on the very edges of the bins.
  confidences[:20] = np.linspace(0, 1, 11).repeat(2)[:20]
  table = reliability_table(confidences, correct, bins)
  assert len(table) == bins
  assert [row.low for row in table[1:]] == [row.high for row in table[:-1]]
  assert (table[0].low, table[-1].high) == (0, 1)
  assert sum(row.count for row in table) == len(labels)
  accuracy, confidence = calibration_curve(correct, confidences, n_bins=bins)
  filled = [row for row in table if row.count]
  np.testing.assert_allclose([row.accuracy for row in filled], accuracy)
  np.testing.assert_allclose([row.confidence for row in filled], confidence)
  for row in table:
    inside = (confidences > row.low) & (confidences <= row.high)
    assert row.count == inside.sum() + (row.low == 0) * (confidences == 0).sum()


def test_expected_calibration_error_by_hand():
  # Bins of a half. 0.4 is below its edge and wrong; 0.6 and 0.8 are above,
  # and one of the two is right.
  probabilities = np.array([[0.4, 0.3, 0.3], [0.6, 0.4, 0], [0.2, 0.8, 0]])
  labels = np.array([1, 0, 0])
  found = expected_calibration_error(probabilities, labels, bins=2)
  assert found == pytest.approx((1 * 0.4 + 2 * (0.7 - 0.5)) / 3)
  table = reliability_table(
    np.array([0.4, 0.6, 0.8]), np.array([False, True, False]), bins=2
  )
  assert [row.count for row in table] == [1, 2]
  assert [row.accuracy for row in table] == [0, 0.5]
  assert [row.confidence for row in table] == pytest.approx([0.4, 0.7])


def test_an_empty_bin_has_no_numbers():
  table = reliability_table(np.array([0.1]), np.array([True]), bins=2)
  assert table[1] == (0.5, 1.0, 0, None, None)


def test_what_is_calibrated_has_no_error_and_what_is_certain_has_all():
  probabilities = np.array([[0.75, 0.25]] * 4)
  right = np.array([0, 0, 0, 1])
  assert expected_calibration_error(probabilities, right) == pytest.approx(0)
  certain = np.array([[1.0, 0.0]] * 4)
  assert expected_calibration_error(certain, np.ones(4, int)) == 1
  assert expected_calibration_error(certain, np.zeros(4, int)) == 0


def test_overconfidence_is_seen():
  probabilities, labels = random_case(1)
  correct = (probabilities.argmax(axis=1) == labels).mean()
  gap = probabilities.max(axis=1).mean() - correct
  assert gap > 0.1
  found = expected_calibration_error(probabilities, labels)
  assert gap - 1e-9 <= found < gap + 0.1  # never below that of one bin
  assert expected_calibration_error(probabilities, labels, 1) == pytest.approx(
    gap
  )


@given(st.integers(0, 10**6), st.integers(2, 6))
def test_brier_score_is_the_mean_squared_distance(seed, classes):
  probabilities, labels = random_case(seed, rows=20, classes=classes)
  expected = ((probabilities - np.eye(classes)[labels]) ** 2).sum(1).mean()
  assert brier_score(probabilities, labels) == pytest.approx(expected)
  assert brier_score(probabilities.astype(np.float32), labels) == pytest.approx(
    expected, abs=1e-5
  )


def test_brier_score_of_two_classes_is_twice_scikit_learns_of_one():
  probabilities, labels = random_case(2, classes=2)
  expected = brier_score_loss(labels, probabilities[:, 1])
  assert brier_score(probabilities, labels) == pytest.approx(2 * expected)
  assert brier_score(np.eye(2), np.array([0, 1])) == 0
  assert brier_score(np.eye(2), np.array([1, 0])) == 2


@pytest.mark.parametrize('score', [brier_score, expected_calibration_error])
def test_what_is_no_distribution_is_refused(score):
  labels = np.array([0, 1])
  with pytest.raises(
    UsageError, match=r'row 1 have the sum 1\.4: .* a softmax'
  ):
    score(np.array([[0.5, 0.5], [0.7, 0.7]]), labels)
  with pytest.raises(UsageError, match='from -1 to 2: they must be 0 to 1'):
    score(np.array([[2.0, -1], [0.5, 0.5]]), labels)
  with pytest.raises(FailureError, match='1 of 4 probabilities are NaN'):
    score(np.array([[0.5, 0.5], [np.nan, 0.5]]), labels)
  with pytest.raises(UsageError, match='label 2 of row 1'):
    score(np.full((2, 2), 0.5), np.array([0, 2]))
  with pytest.raises(UsageError, match='no labels'):
    score(np.zeros((0, 2)), np.zeros(0, int))


def test_tables_of_nothing_are_refused():
  with pytest.raises(UsageError, match='no predictions'):
    reliability_table(np.zeros(0), np.zeros(0, bool))
  with pytest.raises(UsageError, match='bins=0'):
    reliability_table(np.ones(1), np.ones(1, bool), 0)
