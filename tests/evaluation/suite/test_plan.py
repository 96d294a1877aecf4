"""Which pairs are evaluated."""

from pathlib import Path

import numpy as np
import pytest

from clip_jax.errors import UsageError
from clip_jax.evaluation import EVALUATORS, Options, find_evaluator
from clip_jax.evaluation.dataset import Dataset, Split
from clip_jax.evaluation.datasets.table import DATASETS
from clip_jax.evaluation.suite import Pair, make_plan
from clip_jax.evaluation.suite.plan import TASKS_OF_LOCAL, tasks_of
from clip_jax.evaluation.types import ProbeOptions
from tests.evaluation.rows import RowEncoder, RowSource, blobs
from tests.evaluation.suite.fakes import TABLE, TASKS, absence


def _plan(**options):
  call = {'root': Path('/data'), 'training_is_known': True, **options}
  return make_plan(TABLE, TASKS, absence, **call)


def test_every_kind_of_data_set_gets_its_tasks_in_the_tables_order():
  plan = _plan()
  assert [str(pair) for pair in plan.pairs] == [
    *(f'food101 {task}' for task in _PAPER),
    *(f'oxford_pets {task}' for task in _PAPER),
    'imagenet_v2 zero_shot',
    'imagenet_v2 robustness',
    'flickr30k retrieval',
    'fairface bias',
  ]
  assert plan.absent == {'mnist': 'not prepared'}


_PAPER = ('zero_shot', 'prompt_gain', 'linear_probe', 'few_shot', 'overlap')


def test_without_training_data_nothing_overlaps():
  pairs = _plan(training_is_known=False).pairs
  assert not [pair for pair in pairs if pair.task == 'overlap']


def test_only_selected_data_sets_and_tasks_are_planned():
  plan = _plan(datasets=['food101', 'mnist'], tasks=['few_shot', 'bias'])
  assert plan.pairs == (Pair('food101', 'few_shot'),)
  assert plan.absent == {'mnist': 'not prepared'}


def test_wrong_names_are_refused():
  with pytest.raises(UsageError, match="no data set 'cats' in the suite"):
    _plan(datasets=['cats'])
  with pytest.raises(UsageError, match=r"no task 'nosuch' .*zero_shot"):
    _plan(tasks=['nosuch'])


def test_a_plan_of_nothing_says_why():
  with pytest.raises(UsageError, match='mnist: not prepared'):
    _plan(datasets=['mnist'])
  with pytest.raises(UsageError, match='for other tasks'):
    _plan(datasets=['fairface'], tasks=['few_shot'])


def test_every_data_set_of_the_table_has_a_task():
  assert all(tasks_of(facts) for facts in DATASETS.values())
  assert set(TASKS_OF_LOCAL) <= set(DATASETS)


def test_multilabel_data_have_only_tasks_that_take_several_labels():
  asked = tasks_of(DATASETS['voc2007'])
  assert asked == ('zero_shot', 'prompt_gain', 'linear_probe')
  rows, _ = blobs(2, 8)
  labels = [[0], [1], [0, 1], []] * 4
  split = Split(RowSource(range(16), several=labels))
  data = Dataset(
    'several', split, train=split, validation=split,
    class_names=(('a',), ('b',)), metric='map_11_point',
  )  # fmt: skip
  texts = ('a', 'b', 'a photo of a a.', 'a photo of a b.')
  encoder = RowEncoder(
    rows, {text: np.eye(8)[i] for i, text in enumerate(texts)}
  )
  for task in tasks_of(DATASETS['mnist']):
    if task in asked:
      result = find_evaluator(task)(
        encoder, data, Options(probe=ProbeOptions(C=1.0))
      )
      assert result.metrics['examples'] == 16
    else:
      with pytest.raises(UsageError, match=f'several labels an image: {task}'):
        find_evaluator(task)(encoder, data, Options())


def test_data_sets_of_faces_have_the_task_bias():
  bias = [x.name for x in DATASETS.values() if 'bias' in tasks_of(x)]
  assert bias == [
    'fairface_race', 'fairface_gender', 'fairface_age', 'fairface_race_gender',
    'emoji_skin_tones',
  ]  # fmt: skip


def test_the_local_sets_ask_every_evaluator():
  asked = {task for tasks in TASKS_OF_LOCAL.values() for task in tasks}
  assert asked == set(EVALUATORS) - {'captioning'}  # it needs a decoder
