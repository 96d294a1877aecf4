"""Examples chosen to be shown side by side."""

import dataclasses
import math

import numpy as np
import pytest

from clip_jax.report.examples import Prediction, ShownExamples
from clip_jax.report.gallery import (
  IMAGE_QUERIES,
  changed_words,
  confused_names,
  farthest_first,
  image_queries,
  text_queries,
)
from tests.report.fakes import FakeModel, png, unit


def test_spread_takes_what_is_unlike_the_rest():
  features = unit(np.array([[1, 0], [1, 0.01], [0, 1], [1, 0.02]]))
  for seed in range(4):
    assert 2 in farthest_first(features, 2, seed)
  assert sorted(farthest_first(features, 9, 0)) == [0, 1, 2, 3]
  assert farthest_first(features[:0], 3, 0) == []


def examples_at(*directions):
  """Examples with these features, each with a name and an image."""
  features = unit(np.array(directions, float))
  count = len(features)
  return ShownExamples(
    [png(i) for i in range(count)], list('abcdef')[:count], features, None, 0
  )


def test_images_are_compared_with_all_images_but_themselves():
  examples = examples_at([1, 0], [1, 1], [0, 1])
  results = image_queries(examples, seed=0)
  assert len(results) == IMAGE_QUERIES
  for result in results:
    names = [name for _, name, _ in result['nearest']]
    assert sorted([*names, result['text']]) == ['a', 'b', 'c']
    similarities = [similarity for _, _, similarity in result['nearest']]
    assert similarities[0] == pytest.approx(math.sqrt(0.5))
    assert similarities == sorted(similarities, reverse=True)
  assert image_queries(examples_at([1, 0]), seed=0) == []


def test_texts_have_their_nearest_images_first():
  class Model(FakeModel):
    def encode_text(self, texts):
      return unit(np.array([[1, 0.1] if x == 'a' else [0.1, 1] for x in texts]))

  examples = examples_at([1, 0], [1, 1], [0, 1])
  first, second = text_queries(Model(), examples, ['a', 'c'], seed=0)
  assert [name for _, name, _, _ in first['nearest']] == ['a', 'b', 'c']
  assert [name for _, name, _, _ in second['nearest']] == ['c', 'b', 'a']
  assert [ticked for *_, ticked in first['nearest']] == [True, False, False]


def test_confused_names_have_images_of_both():
  predictions = [
    Prediction('red hat', [('blue hat', 0.9)]),
    Prediction('blue hat', [('blue hat', 0.8)]),
    Prediction('sun', [('moon', 0.6)], also=('moon',)),
  ]
  examples = dataclasses.replace(
    examples_at([1, 0], [1, 1], [0, 1]), predictions=predictions
  )
  (row,) = confused_names(examples)
  assert row['right'] == changed_words('red hat', 'blue hat')
  assert row['times'] == 1 and row['probability'] == 0.9
  assert row['image'].startswith('data:') and row['other'] != row['image']


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
