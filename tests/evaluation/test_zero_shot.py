"""Zero-shot accuracy against open_clip's numbers and hand-worked cases."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation import EVALUATORS, Options, find_evaluator, zero_shot
from clip_jax.evaluation.zero_shot import accuracies, top_classes
from tests.evaluation.fakes import ListSource, TableEncoder
from tests.golden_models import GOLDENS

NAMES = ['north', 'east', 'south']
COMPASS = TableEncoder(
  by_level={0: [0.1, 1], 50: [1, 0.2], 100: [0.9, -1]},
  by_text={'north': [0, 1], 'east': [1, 0], 'south': [0, -1]},
)


def test_accuracies_and_best_five_equal_open_clips():
  case = json.loads((GOLDENS / 'zero_shot' / 'zero_shot.json').read_text())
  arrays = load_file(GOLDENS / 'zero_shot' / 'zero_shot.safetensors')
  best, _ = top_classes(
    arrays['image_features'], arrays['classifier'], k=5, logit_scale=100.0
  )
  np.testing.assert_array_equal(best, arrays['top5_indices'])
  assert accuracies(best, arrays['labels']) == {
    'top1': case['top1'],
    'top5': case['top5'],
  }


def test_top_classes_are_the_sorted_softmax(monkeypatch):
  rng = np.random.default_rng(0)
  features = rng.normal(size=(40, 8)).astype(np.float32)
  weights = rng.normal(size=(8, 30)).astype(np.float32)
  logits = 3 * features @ weights
  every = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  order = np.argsort(-logits, axis=1)[:, :5]
  # Also when the scores do not fit into one part.
  for size in (2**26, 1):
    monkeypatch.setattr(zero_shot, '_CHUNK_BYTES', size)
    best, values = top_classes(features, weights, k=5, logit_scale=3.0)
    np.testing.assert_array_equal(best, order)
    expected = np.take_along_axis(every, order, axis=1)
    np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_hand_worked_case():
  # The last picture looks south and is labelled east, the second best.
  source = ListSource([0, 50, 100], labels=[0, 1, 1], names=NAMES)
  result = zero_shot.evaluate(COMPASS, source, Options())
  assert result.metrics == {'top1': 2 / 3, 'top5': 1.0, 'examples': 3.0}
  assert result.corrupt == {}
  assert [r['id'] for r in result.records] == [
    'picture/0', 'picture/1', 'picture/2'
  ]  # fmt: skip
  last = result.records[2]
  assert last['label'] == 'east'
  assert last['rank'] == 1
  assert [name for name, _ in last['top']] == ['south', 'east', 'north']
  features = np.array([0.9, -1]) / np.hypot(0.9, 1)
  powers = np.exp(10 * np.array([-features[1], features[0], features[1]]))
  np.testing.assert_allclose(
    [p for _, p in last['top']], powers / powers.sum(), rtol=1e-4
  )
  json.dumps(result.records)  # plain data


def test_a_label_outside_the_first_five_has_no_rank():
  names = [f'class {i}' for i in range(7)]
  encoder = TableEncoder(
    by_level={0: [1, 0]},
    by_text={name: [1, i / 10] for i, name in enumerate(names)},
  )
  result = zero_shot.evaluate(
    encoder, ListSource([0], labels=[6], names=names), Options()
  )
  assert result.metrics == {'top1': 0.0, 'top5': 0.0, 'examples': 1.0}
  assert result.records[0]['rank'] is None
  assert len(result.records[0]['top']) == 5


def test_each_name_goes_through_each_template():
  encoder = TableEncoder(
    by_level={0: [0, 1]},
    by_text={
      f'{size} {name}': [i, 1 + j]
      for i, name in enumerate(NAMES)
      for j, size in enumerate(('big', 'small'))
    },
  )
  options = Options(templates=('big {}', 'small {}'))
  zero_shot.evaluate(encoder, ListSource([0], labels=[0], names=NAMES), options)
  assert encoder.texts == [
    'big north', 'small north', 'big east', 'small east', 'big south',
    'small south',
  ]  # fmt: skip


def test_unreadable_pictures_are_left_out_and_reported():
  source = ListSource([0, None, 50, None], labels=[0, 0, 1, 2], names=NAMES)
  result = zero_shot.evaluate(COMPASS, source, Options())
  assert result.metrics == {'top1': 1.0, 'top5': 1.0, 'examples': 2.0}
  assert result.corrupt == {'picture/1': 'damaged', 'picture/3': 'damaged'}
  assert [r['id'] for r in result.records] == ['picture/0', 'picture/2']
  with pytest.raises(
    FailureError, match=r'over max_corrupt_records=1 .* picture/1: damaged'
  ):
    zero_shot.evaluate(COMPASS, source, Options(max_corrupt_records=1))


def test_a_source_without_a_readable_picture_is_a_failure():
  source = ListSource([None], labels=[0], names=NAMES)
  with pytest.raises(FailureError, match='no readable picture: picture/0'):
    zero_shot.evaluate(COMPASS, source, Options())


def test_a_source_without_names_is_refused():
  with pytest.raises(UsageError, match="'list:' has no label names"):
    zero_shot.evaluate(COMPASS, ListSource([0], labels=[0]), Options())


def test_a_record_without_a_label_is_refused():
  with pytest.raises(UsageError, match='record picture/0 has no label'):
    zero_shot.evaluate(COMPASS, ListSource([0], names=NAMES), Options())


def test_a_template_without_a_slot_is_refused_before_the_work():
  source = ListSource([None], labels=[0], names=NAMES)
  with pytest.raises(UsageError, match="template 'a' has no slot"):
    zero_shot.evaluate(COMPASS, source, Options(templates=('a',)))


def test_a_diverged_model_is_a_failure_and_not_a_score():
  encoder = TableEncoder({0: [np.nan, 1]}, {name: [0, 1] for name in NAMES})
  source = ListSource([0], labels=[0], names=NAMES)
  with pytest.raises(FailureError, match='1 of 1 image embeddings are not fin'):
    zero_shot.evaluate(encoder, source, Options())


def test_a_collapsed_model_is_right_about_the_first_class_only():
  encoder = TableEncoder({0: [1, 1]}, {name: [1, 1] for name in NAMES})
  source = ListSource([0] * 3, labels=[0, 1, 2], names=NAMES)
  assert zero_shot.evaluate(encoder, source, Options()).metrics['top1'] == 1 / 3


def test_progress_is_shown_for_both_towers():
  seen = []

  def watch(items, total, unit):
    seen.append((total, unit))
    return items

  source = ListSource([0, 50], labels=[0, 1], names=NAMES)
  zero_shot.evaluate(COMPASS, source, Options(watch=watch))
  assert seen == [(2, 'images'), (3, 'texts')]


def test_the_table_finds_every_task_and_names_them_for_others():
  for name, evaluator in EVALUATORS.items():
    assert find_evaluator(name).__module__.endswith(f'.{evaluator}')
  with pytest.raises(UsageError, match='choose one of zero_shot, retrieval'):
    find_evaluator('nosuch')
