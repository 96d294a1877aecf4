"""What holds of every sample and every split, and figure 7 by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.errors import UsageError
from clip_jax.evaluation.probes.sampling import (
  hold_out,
  sample,
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
def test_each_sample_contains_those_of_smaller_k(case, seed):
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
  train, validation = hold_out(labels, fraction, seed, classes=classes)
  both = np.concatenate([train, validation])
  np.testing.assert_array_equal(np.sort(both), np.arange(len(labels)))
  held = np.bincount(labels[validation], minlength=classes)
  for total, part in zip(counts, held, strict=True):
    if total < 2:
      assert part == 0
    else:
      assert 1 <= part <= total - 1
      assert abs(part - fraction * total) <= 1
  again = hold_out(labels, fraction, seed, classes=classes)
  np.testing.assert_array_equal(again[1], validation)


def test_another_seed_is_another_split():
  labels = np.zeros(100, int)
  one, two = (hold_out(labels, 0.3, seed, classes=1)[1] for seed in (0, 1))
  assert len(one) == len(two) == 30
  assert 0 < len(set(one) & set(two)) < 30


def test_held_out_rows_are_drawn_independently_of_the_sample():
  labels = np.zeros(1000, int)
  held = hold_out(labels, 0.1, 0, classes=1)[1]
  drawn = sample(labels, 100, 0, classes=1).indices
  assert len(np.intersect1d(held, drawn)) < 30  # by chance 10


def test_impossible_samples_are_refused():
  labels = np.array([0, 2, 2])
  with pytest.raises(UsageError, match='1 of 3 classes have no examples: 1'):
    sample(labels, 1, 0, classes=3)
  with pytest.raises(UsageError, match='label 2 of row 1 is outside'):
    sample(labels, 1, 0, classes=2)
  with pytest.raises(UsageError, match='k=0 examples a class'):
    sample(labels, 0, 0, classes=3)


def test_impossible_splits_are_refused():
  with pytest.raises(UsageError, match='no class of 3 rows has two'):
    hold_out(np.arange(3), 0.5, 0, classes=3)
  for fraction in (0.0, 1.0):
    with pytest.raises(UsageError, match=f'fraction={fraction}'):
      hold_out(np.zeros(9, int), fraction, 0, classes=1)
  with pytest.raises(UsageError, match='label 1 of row 8 is outside'):
    hold_out(np.repeat([0, 1], [8, 1]), 0.5, 0, classes=1)
