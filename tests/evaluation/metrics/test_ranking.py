"""Zero-shot is one number, whichever evaluator gives it."""

import dataclasses
import math

import numpy as np
import pytest

from clip_jax.evaluation import Options, find_evaluator
from clip_jax.evaluation.metrics import ranking
from clip_jax.evaluation.metrics.classification import METRICS
from clip_jax.evaluation.metrics.ranking import (
  chance_levels,
  ranks_of,
  scaled,
  scores_of,
  top_classes,
)
from clip_jax.evaluation.tasks.prompt_gain import PHOTO
from clip_jax.evaluation.tasks.retrieval import recalls, recalls_by_chance
from clip_jax.evaluation.types import FewShotOptions, ProbeOptions
from tests.evaluation.rows import RowEncoder, dataset_of

# Two classes whose directions differ by rounding, and images about as near to
# the one as to the other: which is the best hangs on the order of operations.
RNG = np.random.default_rng(0)
WIDTH, IMAGES = 32, 400
NORTH = RNG.normal(size=WIDTH)
TEXTS = {
  'a': NORTH,
  'b': NORTH + 3e-7 * RNG.normal(size=WIDTH),
  'c': RNG.normal(size=WIDTH),
}
ROWS = NORTH + RNG.normal(size=(IMAGES, WIDTH))
ROWS /= np.linalg.norm(ROWS, axis=1, keepdims=True)
LABELS = RNG.integers(0, 3, IMAGES)
ENCODER = RowEncoder(
  ROWS,
  {
    template.replace('{}', name): direction.tolist()
    for name, direction in TEXTS.items()
    for template in ('{}', PHOTO)
  },
)
DATA = dataset_of(LABELS, train=range(60), test=range(IMAGES), names=[*TEXTS])
QUICK = Options(
  templates=('{}',),
  few_shot=FewShotOptions(examples_per_class=(1,), seeds=1),
  probe=ProbeOptions(C=1.0),
)


def test_the_case_has_ties_that_another_order_would_break():
  directions = ENCODER.encode_text(TEXTS).T
  features = ROWS.astype(np.float32)
  scale = ENCODER.logit_scale
  first = scores_of(features, scaled(directions, scale)).argmax(axis=1)
  other = (scale * (features @ directions)).argmax(axis=1)
  # The counts of right ones may be the same all the same, by chance.
  assert (first != other).any()


@pytest.mark.parametrize('metric', ['accuracy', 'mean_per_class'])
@pytest.mark.parametrize('rows', [None, 7])
def test_ties_are_broken_alike_in_every_evaluation(
  monkeypatch: pytest.MonkeyPatch, metric, rows: int | None
):
  if rows is not None:  # the scores do not fit into one part
    monkeypatch.setattr(ranking, '_CHUNK_BYTES', rows * 3 * 4)
  data = dataclasses.replace(DATA, metric=metric)
  data = dataclasses.replace(data, reference=data)
  actual = {
    task: find_evaluator(task)(ENCODER, data, QUICK)
    for task in (
      'zero_shot',
      'few_shot',
      'prompt_gain',
      'overlap',
      'robustness',
    )
  }
  metrics = {task: result.metrics for task, result in actual.items()}
  own = 'top1' if metric == 'accuracy' else metric
  expected = metrics['zero_shot'][own]
  assert metrics['few_shot']['zero_shot'] == expected
  assert metrics['prompt_gain']['ensemble'] == expected
  right = [record['rank'] == 0 for record in actual['zero_shot'].records]
  assert [x['zero_shot'] for x in actual['few_shot'].records] == right
  assert [x['zero_shot'] for x in actual['robustness'].records] == right
  assert [x['correct'] for x in actual['overlap'].records] == right
  top1 = metrics['zero_shot']['top1']
  assert metrics['robustness']['zero_shot_reference'] == top1
  assert metrics['overlap']['accuracy_all'] == top1


def test_no_rows_have_no_scores():
  weights = np.ones((4, 3), np.float32)
  assert scores_of(np.ones((0, 4), np.float32), weights).shape == (0, 3)
  best, values = top_classes(
    np.ones((0, 4), np.float32), weights, k=2, logit_scale=1.0
  )
  assert best.shape == values.shape == (0, 2)


@pytest.mark.parametrize(
  'metric', ['accuracy', 'mean_per_class', 'roc_auc', 'mean_top1_top5']
)
def test_the_level_is_the_mean_metric_of_random_scores(metric):
  rng = np.random.default_rng(0)
  classes = 2 if metric == 'roc_auc' else 12
  labels = rng.integers(0, classes, 60) // 2 * 2 if classes > 2 else None
  labels = rng.integers(0, 2, 60) if labels is None else labels
  result = [
    METRICS[metric](rng.random((60, classes)), labels) for _ in range(400)
  ]
  (level,) = chance_levels([metric], classes).values()
  error = np.std(result) / math.sqrt(len(result))
  assert abs(np.mean(result) - level) < 4 * error


def test_metrics_without_a_chance_level_are_left_out():
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

  result = [random_recalls() for _ in range(1500)]
  for name, level in recalls_by_chance(texts, (1, 3, 10)).items():
    values = [x[name] for x in result]
    error = max(np.std(values) / math.sqrt(len(values)), 1e-9)
    assert abs(np.mean(values) - level) < 4 * error, name
