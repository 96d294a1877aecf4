"""Classes of one set as parts of another's, by hand and one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.errors import UsageError
from clip_jax.evaluation.metrics.classification import accuracy
from clip_jax.evaluation.shift.class_shift import (
  UNMAPPED,
  class_shift,
  map_classes,
)

IMAGENET = ('bridegroom', 'tabby', 'Siamese cat', 'toaster', 'scuba diver')
YOUTUBE = ('cat', 'person')
HOLDS = {
  'scuba diver': 'person',
  'tabby': 'cat',
  'Siamese cat': 'cat',
  'bridegroom': 'person',
}


def test_a_wide_class_is_as_likely_as_the_likeliest_it_holds():
  groups = map_classes(IMAGENET, YOUTUBE, HOLDS)
  np.testing.assert_array_equal(groups, [1, 0, 0, UNMAPPED, 1])
  scores = np.array(
    [[0.1, 0.2, 0.3, 9, 0.25], [0.1, 0.2, 0.3, 9, 0.35], [-3, -5, -4, -1, -9]]
  )
  found = class_shift(scores, groups, targets=2)
  np.testing.assert_array_equal(found, [[0.3, 0.25], [0.3, 0.35], [-4, -3]])
  # The toaster is likeliest in all and is none of what is asked.
  assert accuracy(found, np.array([0, 1, 1])) == 1


def test_a_part_of_the_classes_in_another_order():
  scores = np.arange(10.0).reshape(2, 5)
  names = ('toaster', 'tabby')
  groups = map_classes(IMAGENET, names, {name: name for name in names})
  found = class_shift(scores, groups, targets=2)
  np.testing.assert_array_equal(found, scores[:, [3, 1]])


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 12))
def test_each_target_is_the_maximum_of_its_own(seed, targets, more):
  rng = np.random.default_rng(seed)
  groups = rng.permutation(
    np.concatenate([np.arange(targets), rng.integers(-1, targets, more)])
  )
  scores = rng.normal(size=(4, len(groups))).astype(np.float32)
  found = class_shift(scores, groups, targets=targets)
  assert found.dtype == np.float32
  for t in range(targets):
    np.testing.assert_array_equal(found[:, t], scores[:, groups == t].max(1))


def test_names_that_do_not_fit_are_refused():
  for mapping, match in (
    ({**HOLDS, 'dog': 'cat'}, "'dog' is mapped, and is no class of the source"),
    (
      {**HOLDS, 'toaster': 'oven'},
      "'toaster' is mapped to 'oven', which is no",
    ),
    ({'tabby': 'cat'}, "1 of 2 classes of the target hold none .*'person'"),
  ):
    with pytest.raises(UsageError, match=match):
      map_classes(IMAGENET, YOUTUBE, mapping)
  with pytest.raises(UsageError, match="the source has two classes 'tabby'"):
    map_classes(('tabby', 'tabby'), ('cat',), {'tabby': 'cat'})
  with pytest.raises(UsageError, match="the target has two classes 'cat'"):
    map_classes(('tabby',), ('cat', 'cat'), {'tabby': 'cat'})


def test_groups_that_do_not_fit_are_refused():
  scores = np.zeros((1, 3))
  with pytest.raises(UsageError, match='groups from 0 to 2: of 2 targets'):
    class_shift(scores, np.array([0, 1, 2]), targets=2)
  with pytest.raises(UsageError, match='groups from -2 to 1'):
    class_shift(scores, np.array([0, 1, -2]), targets=2)
  with pytest.raises(UsageError, match='1 of 3 targets hold no class: 1'):
    class_shift(scores, np.array([0, 2, -1]), targets=3)
