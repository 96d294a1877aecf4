"""What a run measures beside its held-out data."""

import pytest

from clip_jax.evaluation import Evaluation
from clip_jax.training.evaluations import TrainingSample
from clip_jax.training.metrics import evaluation_metrics
from tests.evaluation.fakes import ListSource


def source(spec, count, first=0):
  made = ListSource(
    range(first, first + count),
    captions=[[f'{spec} {i}'] for i in range(count)],
  )
  made.spec = spec
  return made


def test_a_sample_is_drawn_from_all_sources_without_repeats():
  sources = [source('a', 30), source('b', 20), source('c', 1)]
  sample = TrainingSample(sources, 25, seed=0)
  assert len(sample) == 25
  assert sample.spec == 'a::b::c'
  texts = list(sample.texts())
  assert len(set(texts)) == 25
  assert {text[0] for text in texts} >= {'a', 'b'}
  assert texts == list(TrainingSample(sources, 25, seed=0).texts())
  assert texts != list(TrainingSample(sources, 25, seed=1).texts())
  for i in range(25):
    assert sample[i]['caption'] == sample.captions(i)
    assert sample[i]['id'] == sample.id(i)


@pytest.mark.parametrize('most', [51, 1000])
def test_a_sample_of_more_than_there_are_is_all(most):
  sources = [source('a', 30), source('b', 20), source('c', 1)]
  every = [text for x in sources for text in x.texts()]
  assert list(TrainingSample(sources, most, seed=0).texts()) == every


def test_levels_of_chance_are_beside_their_metrics():
  result = Evaluation({'top1': 0.5, 'ece': 0.1}, [], chance={'top1': 0.2})
  assert evaluation_metrics({'zero_shot': result}) == {
    'eval/zero_shot/top1': 0.5,
    'eval/zero_shot/top1_chance': 0.2,
    'eval/zero_shot/ece': 0.1,
  }
