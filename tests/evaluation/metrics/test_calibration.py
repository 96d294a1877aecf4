"""Calibration against scikit-learn's and hand-made cases."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation.metrics.calibration import (
  BINS,
  calibration_error,
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


def expected_calibration_error(probabilities, labels, bins=BINS):
  """Of the likeliest class."""
  right = probabilities.argmax(axis=1) == labels
  table = reliability_table(probabilities.max(axis=1), right, bins)
  return calibration_error(table)


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
  result = expected_calibration_error(probabilities, labels, bins=2)
  assert result == pytest.approx((1 * 0.4 + 2 * (0.7 - 0.5)) / 3)
  table = reliability_table(
    np.array([0.4, 0.6, 0.8]), np.array([False, True, False]), bins=2
  )
  assert [row.count for row in table] == [1, 2]
  assert [row.accuracy for row in table] == [0, 0.5]
  assert [row.confidence for row in table] == pytest.approx([0.4, 0.7])


def test_an_empty_bin_has_no_numbers():
  table = reliability_table(np.array([0.1]), np.array([True]), bins=2)
  assert table[1] == (0.5, 1.0, 0, None, None)


def test_calibrated_answers_have_no_error_and_certain_wrong_ones_all():
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
  result = expected_calibration_error(probabilities, labels)
  assert gap - 1e-9 <= result < gap + 0.1  # never below that of one bin
  assert expected_calibration_error(probabilities, labels, 1) == pytest.approx(
    gap
  )


def test_values_that_are_no_probabilities_are_refused():
  right = np.array([True, False])
  with pytest.raises(UsageError, match='from -1 to 2: they must be 0 to 1'):
    reliability_table(np.array([2.0, -1]), right)
  with pytest.raises(FailureError, match='1 of 2 probabilities are NaN'):
    reliability_table(np.array([0.5, np.nan]), right)


def test_tables_of_nothing_are_refused():
  with pytest.raises(UsageError, match='no predictions'):
    reliability_table(np.zeros(0), np.zeros(0, bool))
  with pytest.raises(UsageError, match='bins=0'):
    reliability_table(np.ones(1), np.ones(1, bool), 0)
