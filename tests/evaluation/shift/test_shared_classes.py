"""Classes of two data sets that are the same, by id and by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import Dataset, Split
from clip_jax.evaluation.datasets.names import read_names
from clip_jax.evaluation.metrics.classification import accuracy
from clip_jax.evaluation.shift.shared_classes import (
  UNMAPPED,
  find_shared_classes,
  pool_scores,
)
from tests.evaluation.rows import RowSource


def named(name, *classes):
  rows = tuple((x,) if isinstance(x, str) else x for x in classes)
  return Dataset(name, Split(RowSource([0], [0])), class_names=rows)


def known(name):
  return named(name, *read_names(name).classes)


@pytest.mark.parametrize(
  ('name', 'classes', 'held'),
  [
    ('imagenet_v2', 1000, 1000),
    ('imagenet_sketch', 1000, 1000),
    ('imagenet_r', 200, 200),
    ('imagenet_a', 200, 200),
    ('objectnet', 113, None),
    ('imagenet_vid_robust', 30, 288),  # of 14,400 images in ImageNet's test
    ('ytbb_robust', 19, 231),  # of 11,550
  ],
)
def test_the_shifts_of_imagenet_are_found_by_their_ids(name, classes, held):
  result = find_shared_classes(known('imagenet'), known(name))
  assert len(result.names) == classes
  ids = read_names('imagenet').wordnet_ids
  theirs = read_names(name).wordnet_ids
  for source, target in enumerate(result.of_reference):
    if target >= 0:
      assert (
        ids[source][0] in theirs[np.flatnonzero(result.of_shift == target)[0]]
      )
  holding = (result.of_reference >= 0).sum()
  expected = sum(len(several) for several in theirs)
  assert holding == (held or expected)
  assert holding >= classes


def test_names_are_matched_whatever_their_spelling_and_order():
  result = find_shared_classes(
    named('a', 'tabby cat', 'dog', 'bird', 'sea'),
    named('b', ('Dog', 'hound'), 'fish', 'Tabby_Cat', 'BIRD'),
  )
  assert result.names == ('Dog', 'Tabby_Cat', 'BIRD')
  assert result.of_reference.tolist() == [1, 0, 2, -1]
  assert result.of_shift.tolist() == [0, -1, 1, 2]
  scores = np.array([[0.1, 0.2, 0.3, 9.0]])
  np.testing.assert_array_equal(
    result.pool_reference(scores), [[0.2, 0.1, 0.3]]
  )
  np.testing.assert_array_equal(result.pool_shift(scores), [[0.1, 0.3, 9.0]])


def test_a_class_of_the_shift_may_hold_several():
  result = find_shared_classes(
    named('fine', 'poodle', 'oak', 'beagle', 'ash'),
    named('coarse', ('tree', 'oak', 'ash'), ('dog', 'poodle', 'beagle')),
  )
  assert result.of_reference.tolist() == [1, 0, 1, 0]
  pooled = result.pool_reference(np.array([[0.1, 0.2, 0.5, 0.3]]))
  np.testing.assert_array_equal(pooled, [[0.3, 0.5]])


def test_data_with_too_few_or_ambiguous_shared_classes_are_refused():
  with pytest.raises(UsageError, match="'a' and 'b' share 1 classes"):
    find_shared_classes(named('a', 'x', 'y'), named('b', 'x', 'z'))
  with pytest.raises(UsageError, match="'x' of 'a' may be 'x' or 'y' of 'b'"):
    find_shared_classes(named('a', ('x', 'y'), 'z'), named('b', 'x', 'y', 'z'))


def test_a_wide_class_is_as_likely_as_the_likeliest_it_holds():
  groups = np.array([1, 0, 0, UNMAPPED, 1])
  scores = np.array(
    [[0.1, 0.2, 0.3, 9, 0.25], [0.1, 0.2, 0.3, 9, 0.35], [-3, -5, -4, -1, -9]]
  )
  pooled = pool_scores(scores, groups)
  np.testing.assert_array_equal(pooled, [[0.3, 0.25], [0.3, 0.35], [-4, -3]])
  # The unmapped class is likeliest in all and is none of what is asked.
  assert accuracy(pooled, np.array([0, 1, 1])) == 1


def test_a_part_of_the_classes_in_another_order():
  scores = np.arange(10.0).reshape(2, 5)
  groups = np.array([UNMAPPED, 1, UNMAPPED, 0, UNMAPPED])
  np.testing.assert_array_equal(pool_scores(scores, groups), scores[:, [3, 1]])


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 12))
def test_each_target_is_the_maximum_of_its_own(seed, targets, more):
  rng = np.random.default_rng(seed)
  groups = rng.permutation(
    np.concatenate([np.arange(targets), rng.integers(-1, targets, more)])
  )
  scores = rng.normal(size=(4, len(groups))).astype(np.float32)
  result = pool_scores(scores, groups)
  assert result.dtype == np.float32
  for t in range(targets):
    np.testing.assert_array_equal(result[:, t], scores[:, groups == t].max(1))
