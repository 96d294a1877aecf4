"""Classes of two data sets that are the same, by id and by name."""

import numpy as np
import pytest

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import Dataset, Split
from clip_jax.evaluation.datasets import class_names, wordnet_ids
from clip_jax.evaluation.shift.shared_classes import share
from tests.evaluation.rows import RowSource


def named(name, *classes):
  rows = tuple((x,) if isinstance(x, str) else x for x in classes)
  return Dataset(name, Split(RowSource([0], [0])), class_names=rows)


def known(name):
  return named(name, *class_names(name))


@pytest.mark.parametrize(
  ('name', 'classes', 'held'),
  [
    ('imagenet_v2', 1000, 1000),
    ('imagenet_sketch', 1000, 1000),
    ('imagenet_r', 200, 200),
    ('imagenet_a', 200, 200),
    ('objectnet', 113, None),
    ('imagenet_vid_robust', 30, 288),  # of 14,400 pictures in ImageNet's test
    ('ytbb_robust', 19, 231),  # of 11,550
  ],
)
def test_the_shifts_of_imagenet_are_found_by_their_ids(name, classes, held):
  found = share(known('imagenet'), known(name))
  assert len(found.names) == classes
  ids = wordnet_ids('imagenet')
  theirs = wordnet_ids(name)
  for source, target in enumerate(found.of_reference):
    if target >= 0:
      assert (
        ids[source][0] in theirs[np.flatnonzero(found.of_shift == target)[0]]
      )
  holding = (found.of_reference >= 0).sum()
  expected = sum(len(several) for several in theirs)
  assert holding == (held or expected)
  assert holding >= classes


def test_names_are_matched_whatever_their_spelling_and_order():
  found = share(
    named('a', 'tabby cat', 'dog', 'bird', 'sea'),
    named('b', ('Dog', 'hound'), 'fish', 'Tabby_Cat', 'BIRD'),
  )
  assert found.names == ('Dog', 'Tabby_Cat', 'BIRD')
  assert found.of_reference.tolist() == [1, 0, 2, -1]
  assert found.of_shift.tolist() == [0, -1, 1, 2]
  scores = np.array([[0.1, 0.2, 0.3, 9.0]])
  np.testing.assert_array_equal(found.pool(scores), [[0.2, 0.1, 0.3]])
  np.testing.assert_array_equal(found.restrict(scores), [[0.1, 0.3, 9.0]])


def test_a_class_of_the_shift_may_hold_several():
  found = share(
    named('fine', 'poodle', 'oak', 'beagle', 'ash'),
    named('coarse', ('tree', 'oak', 'ash'), ('dog', 'poodle', 'beagle')),
  )
  assert found.of_reference.tolist() == [1, 0, 1, 0]
  pooled = found.pool(np.array([[0.1, 0.2, 0.5, 0.3]]))
  np.testing.assert_array_equal(pooled, [[0.3, 0.5]])


def test_data_that_share_too_little_or_share_it_twice_are_refused():
  with pytest.raises(UsageError, match="'a' and 'b' share 1 classes"):
    share(named('a', 'x', 'y'), named('b', 'x', 'z'))
  with pytest.raises(UsageError, match="'x' of 'a' may be 'x' or 'y' of 'b'"):
    share(named('a', ('x', 'y'), 'z'), named('b', 'x', 'y', 'z'))
