"""Examples chosen to be shown side by side."""

import math

import numpy as np
import pytest

from clip_jax.report.gallery import changed_words, nearest, spread
from tests.report.fakes import unit


def test_spread_takes_what_is_unlike_the_rest():
  features = unit(np.array([[1, 0], [1, 0.01], [0, 1], [1, 0.02]]))
  for seed in range(4):
    assert 2 in spread(features, 2, seed)
  assert sorted(spread(features, 9, 0)) == [0, 1, 2, 3]
  assert spread(features[:0], 3, 0) == []


def test_nearest_is_sorted_and_leaves_out():
  features = unit(np.array([[1, 0], [1, 1], [0, 1]]))
  found = nearest(features, features[0], 2, without=[0])
  assert [i for i, _ in found] == [1, 2]
  assert found[0][1] == pytest.approx(math.sqrt(0.5))


def test_changed_words():
  assert changed_words('a red Hat', 'a blue hat') == [
    ('a', False),
    (' ', False),
    ('red', True),
    (' ', False),
    ('Hat', False),
  ]
  longer = changed_words('old man', 'man')
  assert [piece for piece, differs in longer if differs] == ['old']
