"""The level of chance is what guessing gives, on average."""

import math

import numpy as np
import pytest

from clip_jax.evaluation.metrics.chance import (
  chance_levels,
  ranks_of,
)
from clip_jax.evaluation.metrics.classification import METRICS
from clip_jax.evaluation.tasks.retrieval import recalls, recalls_by_chance


@pytest.mark.parametrize(
  'metric', ['accuracy', 'mean_per_class', 'roc_auc', 'mean_top1_top5']
)
def test_the_level_is_the_mean_metric_of_random_scores(metric):
  rng = np.random.default_rng(0)
  classes = 2 if metric == 'roc_auc' else 12
  labels = rng.integers(0, classes, 60) // 2 * 2 if classes > 2 else None
  labels = rng.integers(0, 2, 60) if labels is None else labels
  found = [
    METRICS[metric](rng.random((60, classes)), labels) for _ in range(400)
  ]
  (level,) = chance_levels([metric], classes).values()
  error = np.std(found) / math.sqrt(len(found))
  assert abs(np.mean(found) - level) < 4 * error


def test_numbers_that_guessing_has_no_level_for_have_none():
  names = ['top1', 'ece', 'examples', 'map_11_point', 'top1_low']
  assert chance_levels(names, 4) == {'top1': 0.25}
  assert chance_levels(['bare', 'photo'], 4, 'map_11_point') == {}
  assert chance_levels(['bare'], 4, 'accuracy') == {'bare': 0.25}


def test_top5_is_of_more_than_ten_classes():
  assert ranks_of(10) == (1,)
  assert ranks_of(11) == (1, 5)
  assert chance_levels(['top5'], 3) == {'top5': 1.0}


def test_recalls_of_chance_are_the_mean_of_random_features():
  rng = np.random.default_rng(0)
  texts = [3, 0, 1, 2, 1]
  owners = np.repeat(np.arange(len(texts)), texts)

  def random_recalls():
    images, words = (
      x / np.linalg.norm(x, axis=1, keepdims=True)
      for x in rng.normal(size=(2, sum(texts), 64)).astype(np.float32)
    )
    return recalls(images[: len(texts)], words, owners, (1, 3, 10))

  found = [random_recalls() for _ in range(1500)]
  for name, level in recalls_by_chance(texts, (1, 3, 10)).items():
    values = [x[name] for x in found]
    error = max(np.std(values) / math.sqrt(len(values)), 1e-9)
    assert abs(np.mean(values) - level) < 4 * error, name
