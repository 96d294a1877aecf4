"""What holds of every sample and every split, and figure 7 by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.errors import UsageError
from clip_jax.evaluation.probes.sampling import (
  sample,
  shots_to_match,
  split,
)

SEEDS = st.integers(0, 2**32)


@st.composite
def labelled(draw, fewest=1):
  """(labels in any order, C), each class with `fewest` rows at least."""
  counts = draw(st.lists(st.integers(fewest, 30), min_size=1, max_size=8))
  rows = np.repeat(np.arange(len(counts)), counts).tolist()
  return np.array(draw(st.permutations(rows)), int), len(counts)


@given(labelled(), st.integers(1, 40), SEEDS)
def test_a_sample_has_k_of_each_class_and_none_twice(case, k, seed):
  labels, classes = case
  drawn = sample(labels, k, seed, classes=classes)
  assert len(set(drawn.indices.tolist())) == len(drawn.indices)
  for c in range(classes):
    total = (labels == c).sum()
    assert (labels[drawn.indices] == c).sum() == min(k, total)
    assert drawn.short.get(c) == (total if total < k else None)


@given(labelled(), SEEDS)
def test_each_sample_holds_those_of_fewer_shots(case, seed):
  labels, classes = case
  drawn = [
    set(sample(labels, k, seed, classes=classes).indices.tolist())
    for k in (1, 2, 4, 8, 16)
  ]
  for fewer, more in itertools.pairwise(drawn):
    assert fewer <= more


@given(labelled(), st.integers(1, 16), SEEDS)
def test_a_seed_is_one_sample(case, k, seed):
  labels, classes = case
  first, again = (sample(labels, k, seed, classes=classes) for _ in range(2))
  np.testing.assert_array_equal(first.indices, again.indices)


@given(labelled(), st.integers(1, 16), SEEDS)
def test_a_class_has_its_sample_whatever_the_others_are(case, k, seed):
  labels, classes = case
  whole = sample(labels, k, seed, classes=classes).indices
  own = whole[labels[whole] == 0]
  merged = np.minimum(labels, 1)  # all the others are one
  again = sample(merged, k, seed, classes=min(classes, 2)).indices
  np.testing.assert_array_equal(again[merged[again] == 0], own)


def test_seeds_differ_and_every_row_comes_as_often():
  labels = np.repeat([0, 1], [10, 20])
  drawn = [sample(labels, 5, s, classes=2).indices for s in range(2000)]
  times = np.bincount(np.concatenate(drawn), minlength=30) / len(drawn)
  np.testing.assert_allclose(
    times, np.repeat([1 / 2, 1 / 4], [10, 20]), atol=0.05
  )


@given(labelled(fewest=0), st.floats(0.05, 0.95), SEEDS)
def test_a_split_is_of_all_rows_and_holds_out_of_each_class(
  case, fraction, seed
):
  labels, classes = case
  counts = np.bincount(labels, minlength=classes)
  if counts.max(initial=0) < 2:
    return
  train, validation = split(labels, fraction, seed, classes=classes)
  both = np.concatenate([train, validation])
  np.testing.assert_array_equal(np.sort(both), np.arange(len(labels)))
  held = np.bincount(labels[validation], minlength=classes)
  for total, part in zip(counts, held, strict=True):
    if total < 2:
      assert part == 0
    else:
      assert 1 <= part <= total - 1
      assert abs(part - fraction * total) <= 1
  again = split(labels, fraction, seed, classes=classes)
  np.testing.assert_array_equal(again[1], validation)


def test_another_seed_is_another_split():
  labels = np.zeros(100, int)
  one, two = (split(labels, 0.3, seed, classes=1)[1] for seed in (0, 1))
  assert len(one) == len(two) == 30
  assert 0 < len(set(one) & set(two)) < 30


def test_what_is_held_out_has_nothing_to_do_with_the_shots():
  labels = np.zeros(1000, int)
  held = split(labels, 0.1, 0, classes=1)[1]
  drawn = sample(labels, 100, 0, classes=1).indices
  assert len(np.intersect1d(held, drawn)) < 30  # by chance 10


def test_samples_that_cannot_be_are_refused():
  labels = np.array([0, 2, 2])
  with pytest.raises(UsageError, match='1 of 3 classes have no examples: 1'):
    sample(labels, 1, 0, classes=3)
  with pytest.raises(UsageError, match='label 2 of row 1 is outside'):
    sample(labels, 1, 0, classes=2)
  with pytest.raises(UsageError, match='k=0 shots'):
    sample(labels, 0, 0, classes=3)


def test_splits_that_cannot_be_are_refused():
  with pytest.raises(UsageError, match='no class of 3 rows has two'):
    split(np.arange(3), 0.5, 0, classes=3)
  for fraction in (0.0, 1.0):
    with pytest.raises(UsageError, match=f'fraction={fraction}'):
      split(np.zeros(9, int), fraction, 0, classes=1)
  with pytest.raises(UsageError, match='label 1 of row 8 is outside'):
    split(np.repeat([0, 1], [8, 1]), 0.5, 0, classes=1)


def test_zero_shot_between_two_points_is_matched_between_their_logs():
  shots, accuracies = (1, 2, 4, 8, 16), (0.2, 0.3, 0.5, 0.6, 0.7)
  assert shots_to_match(shots, accuracies, 0.4) == pytest.approx(math.sqrt(8))
  assert shots_to_match(shots, accuracies, 0.65) == pytest.approx(
    8 * math.sqrt(2)
  )
  quarter = shots_to_match((10, 1000), (0.0, 1.0), 0.25)
  assert quarter == pytest.approx(10**1.5)


@given(
  st.lists(st.floats(0.01, 1), min_size=2, max_size=6),
  st.floats(0, 1),
)
def test_the_curve_has_the_target_at_the_shots_found(rises, part):
  accuracies = np.cumsum(rises) / np.sum(rises)
  shots = [2.0**i for i in range(len(accuracies))]
  target = accuracies[0] + part * (accuracies[-1] - accuracies[0])
  found = shots_to_match(shots, accuracies.tolist(), float(target))
  assert found is not None
  there = np.interp(np.log2(found), np.log2(shots), accuracies)
  assert there == pytest.approx(target)


def test_points_themselves_and_the_ends_beyond():
  shots, accuracies = (1, 2, 4), (0.2, 0.3, 0.5)
  for k, accuracy in zip(shots, accuracies, strict=True):
    assert shots_to_match(shots, accuracies, accuracy) == pytest.approx(k)
  assert shots_to_match(shots, accuracies, 0.51) == math.inf
  assert shots_to_match(shots, accuracies, 0.19) is None


def test_a_curve_that_dips_matches_where_it_first_does():
  assert shots_to_match((1, 2, 4, 8), (0.1, 0.5, 0.3, 0.7), 0.5) == 2


def test_curves_that_make_no_sense_are_refused():
  with pytest.raises(UsageError, match='2 numbers of shots and 1 accuracies'):
    shots_to_match((1, 2), (0.1,), 0.5)
  with pytest.raises(UsageError, match='0 numbers of shots'):
    shots_to_match((), (), 0.5)
  for shots in ((0, 1), (2, 1), (1, 1)):
    with pytest.raises(UsageError, match='they must rise, from above 0'):
      shots_to_match(shots, (0.1, 0.2), 0.5)
