"""Each metric against scikit-learn, another way to count, or a hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation.metrics.classification import (
  METRICS,
  accuracy,
  map_11_point,
  mean_per_class,
  mean_top1_top5,
  roc_auc,
)
from clip_jax.evaluation.metrics.ranking import count_each

NAMES = (
  'accuracy', 'mean_per_class', 'map_11_point', 'roc_auc', 'mean_top1_top5',
)  # fmt: skip


def random_case(seed, rows=200, classes=9):
  rng = np.random.default_rng(seed)
  labels = rng.choice(classes, rows, p=rng.dirichlet(np.ones(classes)))
  scores = rng.normal(size=(rows, classes)).astype(np.float32)
  scores[np.arange(rows), labels] += 1
  return scores, labels


def test_the_table_has_each_metric_of_the_paper():
  assert tuple(METRICS) == NAMES


@pytest.mark.parametrize('seed', range(3))
def test_accuracies_equal_scikit_learns(seed):
  scores, labels = random_case(seed)
  classes = np.arange(scores.shape[1])
  top1, top5 = (
    sklearn_metrics.top_k_accuracy_score(labels, scores, k=k, labels=classes)
    for k in (1, 5)
  )
  assert 0.2 < top1 < top5 < 1
  assert accuracy(scores, labels) == pytest.approx(top1)
  assert mean_top1_top5(scores, labels) == pytest.approx((top1 + top5) / 2)


@pytest.mark.parametrize('seed', range(3))
def test_mean_per_class_is_scikit_learns_balanced_accuracy(seed):
  scores, labels = random_case(seed)
  labels[labels == 4] = 5  # one class does not occur
  expected = sklearn_metrics.recall_score(
    labels,
    scores.argmax(axis=1),
    labels=np.unique(labels),
    average='macro',
  )
  assert mean_per_class(scores, labels) == pytest.approx(expected)
  assert expected != pytest.approx(accuracy(scores, labels))


def test_mean_per_class_counts_a_small_class_as_a_large_one():
  scores = np.array([[1.0, 0]] * 10)
  labels = np.array([0] * 9 + [1])
  assert accuracy(scores, labels) == 0.9
  assert mean_per_class(scores, labels) == 0.5


def test_with_fewer_than_five_classes_top5_is_all():
  scores = np.array([[0.0, 1], [0, 1]])
  assert mean_top1_top5(scores, np.array([0, 1])) == (0.5 + 1) / 2


def test_equal_scores_are_right_about_the_first_classes_only():
  scores, labels = np.zeros((10, 10)), np.arange(10)
  assert accuracy(scores, labels) == 0.1
  assert mean_top1_top5(scores, labels) == pytest.approx((0.1 + 0.5) / 2)


def eleven_points(scores, truth):
  """One class's average precision, by every threshold and every recall."""
  pairs = []
  for threshold in set(scores):
    chosen = scores >= threshold
    hits = (chosen & truth).sum()
    pairs.append((hits, truth.sum(), hits / chosen.sum()))
  return np.mean(
    [
      max(p for hits, total, p in pairs if hits * 10 >= tenth * total)
      for tenth in range(11)
    ]
  )


@given(st.integers(0, 10**6), st.booleans())
def test_map_11_point_is_the_best_precision_at_each_recall(seed, ties):
  rng = np.random.default_rng(seed)
  scores = rng.normal(size=(30, 3)).round(0 if ties else 8)
  truth = rng.random((30, 3)) < 0.4
  truth[0] = True
  difficult = rng.random((30, 3)) < 0.2
  difficult[0] = False
  expected = [
    eleven_points(scores[keep, c], truth[keep, c])
    for c, keep in enumerate(~difficult.T)
  ]
  actual = map_11_point(scores, truth, difficult)
  assert actual == pytest.approx(np.mean(expected))


def test_map_11_point_by_hand():
  # By falling score: right, wrong, right, wrong. Precision is 1 up to a
  # recall of 1/2 (six of the points), then 2/3 (five).
  scores = np.array([[4.0], [3], [2], [1]])
  truth = np.array([[True], [False], [True], [False]])
  expected = (6 * 1 + 5 * 2 / 3) / 11
  assert map_11_point(scores, truth) == pytest.approx(expected)
  # Without the wrong one, which is too difficult to tell, all is right.
  assert map_11_point(scores, truth, scores == 3) == 1
  # All the same score: precision is the share of the class everywhere.
  assert map_11_point(np.zeros((4, 1)), truth) == 0.5


def test_map_11_point_finds_each_tenth_of_ten():
  # A float 0.1 * 3 is over 3 / 10, which would lose the recall of 3 of 10.
  truth = np.array([True, False] * 10)[:, None]
  scores = -np.arange(20.0)[:, None]
  expected = np.mean([1.0] + [k / (2 * k - 1) for k in range(1, 11)])
  assert map_11_point(scores, truth) == pytest.approx(expected)


def test_roc_auc_is_the_chance_that_a_pair_is_in_order():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 2, 60)
  scores = (5 * rng.normal(size=(60, 2))).round()  # whole, so that some tie
  scores[:, 1] += 5 * labels
  margin = scores[:, 1] - scores[:, 0]
  ahead = margin[labels == 1][:, None] - margin[labels == 0][None, :]
  assert (ahead == 0).any()
  expected = ((ahead > 0) + 0.5 * (ahead == 0)).mean()
  assert 0.55 < expected < 0.9
  assert roc_auc(scores, labels) == pytest.approx(expected)


@pytest.mark.parametrize('name', NAMES)
def test_scores_of_a_diverged_model_are_a_failure(name):
  scores = np.array([[0.5, np.nan], [0, 1]])
  truth = np.array([0, 1])
  if name == 'map_11_point':
    truth = np.eye(2, dtype=bool)
  with pytest.raises(FailureError, match='1 of 2 rows of scores have a NaN'):
    METRICS[name](scores, truth)


@pytest.mark.parametrize('name', NAMES)
def test_nothing_at_all_is_refused(name):
  truth = np.zeros((0, 2), bool) if name == 'map_11_point' else np.zeros(0, int)
  with pytest.raises(UsageError, match='no scores'):
    METRICS[name](np.zeros((0, 2)), truth)


@pytest.mark.parametrize('label', [-1, 2])
@pytest.mark.parametrize(
  'name', [name for name in NAMES if name != 'map_11_point']
)
def test_labels_outside_the_range_are_refused(name, label):
  with pytest.raises(
    UsageError,
    match=f'label {label} of row 1 is outside .* 2 classes, 0 to 1 .1 of 3 row',
  ):
    METRICS[name](np.zeros((3, 2)), np.array([0, label, 1]))


def test_a_class_in_no_image_has_no_average_precision():
  truth = np.array([[True, False], [True, True]])
  difficult = np.array([[False, False], [False, True]])
  with pytest.raises(UsageError, match='class 1 is in none of the 1 images'):
    map_11_point(np.zeros((2, 2)), truth, difficult)


def test_roc_auc_of_one_class_or_of_three_is_refused():
  with pytest.raises(UsageError, match='all have label 1'):
    roc_auc(np.zeros((2, 2)), np.array([1, 1]))
  with pytest.raises(UsageError, match='scores of 3'):
    roc_auc(np.zeros((2, 3)), np.array([0, 1]))


def test_classes_are_counted_and_an_empty_one_is_refused():
  np.testing.assert_array_equal(
    count_each(np.array([2, 0, 1, 2]), 3), [1, 1, 2]
  )
  with pytest.raises(UsageError, match=r'2 of 4 classes have no .*: 1, 3; '):
    count_each(np.array([0, 2]), 4)
  with pytest.raises(UsageError, match='no labels'):
    count_each(np.zeros(0, int), 2)
