"""Zero-shot is one number, whichever evaluator gives it."""

import dataclasses

import numpy as np
import pytest

from clip_jax.evaluation import Options, find_evaluator
from clip_jax.evaluation.metrics import ranking
from clip_jax.evaluation.metrics.ranking import (
  scaled,
  scores_of,
  top_classes,
)
from clip_jax.evaluation.tasks.prompt_gain import PHOTO
from tests.evaluation.rows import RowEncoder, dataset_of

# Two classes whose directions differ by rounding, and pictures about as near to
# the one as to the other: which is the best hangs on the order of operations.
RNG = np.random.default_rng(0)
WIDTH, PICTURES = 32, 400
NORTH = RNG.normal(size=WIDTH)
TEXTS = {
  'a': NORTH,
  'b': NORTH + 3e-7 * RNG.normal(size=WIDTH),
  'c': RNG.normal(size=WIDTH),
}
ROWS = NORTH + RNG.normal(size=(PICTURES, WIDTH))
ROWS /= np.linalg.norm(ROWS, axis=1, keepdims=True)
LABELS = RNG.integers(0, 3, PICTURES)
ENCODER = RowEncoder(
  ROWS,
  {
    template.replace('{}', name): direction.tolist()
    for name, direction in TEXTS.items()
    for template in ('{}', PHOTO)
  },
)
DATA = dataset_of(LABELS, train=range(60), test=range(PICTURES), names=[*TEXTS])
QUICK = Options(shots=(1,), seeds=1, C=1.0, templates=('{}',))


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
  found = {
    task: find_evaluator(task)(ENCODER, data, QUICK)
    for task in (
      'zero_shot',
      'few_shot',
      'prompt_gain',
      'overlap',
      'robustness',
    )
  }
  metrics = {task: result.metrics for task, result in found.items()}
  own = 'top1' if metric == 'accuracy' else metric
  expected = metrics['zero_shot'][own]
  assert metrics['few_shot']['zero_shot'] == expected
  assert metrics['prompt_gain']['ensemble'] == expected
  right = [record['rank'] == 0 for record in found['zero_shot'].records]
  assert [x['zero_shot'] for x in found['few_shot'].records] == right
  assert [x['zero_shot'] for x in found['robustness'].records] == right
  assert [x['correct'] for x in found['overlap'].records] == right
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
