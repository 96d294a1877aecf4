"""What is stored, kept and done again."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation.dataset import Split
from clip_jax.evaluation.suite import evaluate_suite, make_plan, stored
from clip_jax.evaluation.suite.plan import Pair
from clip_jax.evaluation.suite.run import run
from clip_jax.evaluation.types import FewShotOptions
from clip_jax.parallel import peer_failures
from tests.evaluation.suite.fakes import (
  SETTING,
  TABLE,
  TASKS,
  FakeSuite,
  absence,
)

PLAN = make_plan(
  TABLE, TASKS, absence, root=Path('/data'), training_is_known=True
)


def _run(fake):
  return run(fake.suite, PLAN.pairs, fake.say)


def test_every_pair_is_stored_and_every_data_set_opened_once(tmp_path):
  fake = FakeSuite(tmp_path)
  results = _run(fake)
  assert [result.pair for result in results] == list(PLAN.pairs)
  assert set(fake.opened.values()) == {1}
  assert sorted(path.name for path in (tmp_path / 'results').iterdir()) == (
    sorted(f'{pair.dataset}.{pair.task}.json' for pair in PLAN.pairs)
  )
  file = tmp_path / 'results' / 'food101.zero_shot.json'
  assert json.loads(file.read_text())['metrics']['top1'] == 0.5


def test_a_second_call_computes_nothing(tmp_path):
  first = _run(FakeSuite(tmp_path))
  again = FakeSuite(tmp_path)
  assert _run(again) == first
  assert not again.calls
  assert all(line.endswith('kept') for line in again.said)


def test_a_killed_suite_continues_with_the_next_pair(tmp_path):
  killed = FakeSuite(tmp_path, {'oxford_pets few_shot': KeyboardInterrupt()})
  with pytest.raises(KeyboardInterrupt):
    _run(killed)
  done = PLAN.pairs.index(Pair('oxford_pets', 'few_shot'))
  assert done == 8
  fake = FakeSuite(tmp_path)
  _run(fake)
  assert list(fake.calls) == [str(pair) for pair in PLAN.pairs[done:]]
  assert fake.said[0] == f'1/{len(PLAN.pairs)} food101 zero_shot kept'


def test_half_a_file_is_no_result(tmp_path):
  _run(FakeSuite(tmp_path))
  path = stored.path_of(tmp_path, Pair('fairface', 'bias'))
  path.write_text(path.read_text()[:40])
  fake = FakeSuite(tmp_path)
  _run(fake)
  assert dict(fake.calls) == {'fairface bias': 1}


def test_a_result_with_more_corrupt_images_than_now_allowed_is_not_kept(
  tmp_path,
):
  _run(FakeSuite(tmp_path))
  pair = Pair('food101', 'few_shot')
  path = stored.path_of(tmp_path, pair)
  fields = json.loads(path.read_text())
  del fields['sha256']
  fields |= {'pair': pair, 'corrupt': {'a': 'x', 'b': 'x'}}
  stored.write(tmp_path, stored.Result(**fields))
  for limit, calls in ((2, {}), (1, {str(pair): 1})):
    fake = FakeSuite(tmp_path)
    fake.options = dataclasses.replace(fake.options, max_corrupt_records=limit)
    _run(fake)
    assert dict(fake.calls) == calls


def test_a_result_that_another_process_cannot_read_is_computed_again(
  tmp_path, monkeypatch
):
  first = _run(FakeSuite(tmp_path))
  lacking = Pair('oxford_pets', 'few_shot')
  theirs = iter([pair != lacking for pair in PLAN.pairs])
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(
    multihost_utils,
    'process_allgather',
    lambda mine: np.array([mine, next(theirs)]),
  )
  fake = FakeSuite(tmp_path)
  again = _run(fake)
  assert dict(fake.calls) == {str(lacking): 1}
  assert [x.metrics for x in again] == [x.metrics for x in first]


@pytest.mark.parametrize('what', ['weights', 'options'])
def test_a_result_of_other_conditions_is_computed_again(tmp_path, what):
  _run(FakeSuite(tmp_path))
  fake = FakeSuite(tmp_path)
  if what == 'weights':
    fake.depends = {'model': {'weights': 'abd', 'dtype': 'float32'}}
  else:
    fake.options = dataclasses.replace(
      fake.options, few_shot=FewShotOptions(examples_per_class=(1, 3))
    )
  _run(fake)
  assert sum(fake.calls.values()) == len(PLAN.pairs)


def test_a_changed_data_set_is_evaluated_again(tmp_path):
  _run(FakeSuite(tmp_path))
  fake = FakeSuite(tmp_path)
  fake.levels = [10, 20, 30, 50]
  _run(fake)
  assert dict(fake.calls) == {
    str(pair): 1 for pair in PLAN.pairs if pair.dataset == 'food101'
  }


def test_an_unreadable_training_split_does_not_prevent_storing_results(
  tmp_path,
):
  def missing():
    raise PermissionError('no folder of yours')

  for calls in (1, 0):
    fake = FakeSuite(tmp_path)
    fake.train = Split(missing)
    _run(fake)
    assert fake.calls['food101 zero_shot'] == calls


def test_how_it_is_watched_makes_no_difference(tmp_path):
  _run(FakeSuite(tmp_path))
  fake = FakeSuite(tmp_path)
  fake.options = dataclasses.replace(
    fake.options,
    progress=lambda items, total, unit: items,
    max_corrupt_records=3,
  )
  _run(fake)
  assert not fake.calls


def test_failures_are_recorded_in_a_line_and_the_others_finish(tmp_path):
  fake = FakeSuite(
    tmp_path,
    {
      'oxford_pets': FailureError('too many\n corrupt pictures.'),
      'food101 few_shot': ValueError('shapes'),
      'fairface bias': UsageError('no labels.'),
    },
  )
  results = _run(fake)
  errors = {str(x.pair): x.error for x in results if x.error is not None}
  assert errors == {
    'food101 few_shot': 'ValueError: shapes',
    **{
      f'oxford_pets {pair.task}': 'too many corrupt pictures.'
      for pair in PLAN.pairs
      if pair.dataset == 'oxford_pets'
    },
    'fairface bias': 'no labels.',
  }
  assert fake.opened['oxford_pets'] == 1


def test_a_lost_process_is_not_recorded_as_a_failed_pair(tmp_path, monkeypatch):
  lost = ValueError('UNKNOWN: Gloo AllGather failed')
  fake = FakeSuite(tmp_path, {'food101 few_shot': lost})

  def end(error):
    assert error is lost
    raise SystemExit

  monkeypatch.setattr(peer_failures, 'wait_if_peer_lost', end)
  with pytest.raises(SystemExit):
    _run(fake)
  kept = {path.stem for path in (tmp_path / 'results').iterdir()}
  assert 'food101.few_shot' not in kept


def test_what_failed_is_tried_again_and_nothing_else(tmp_path):
  _run(FakeSuite(tmp_path, {'flickr30k retrieval': ValueError('once')}))
  fake = FakeSuite(tmp_path)
  results = _run(fake)
  assert dict(fake.calls) == {'flickr30k retrieval': 1}
  assert all(result.error is None for result in results)


def test_all_files_are_written_though_something_failed(tmp_path):
  fake = FakeSuite(tmp_path, {'food101': ValueError('gone')})
  call = dataclasses.replace(SETTING, root='/caf\udce9')  # a Latin-1 name
  collected = evaluate_suite(fake.suite, PLAN, call, fake.say)
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {'results', 'results.json', 'results.csv'}
  assert json.loads((tmp_path / 'results.json').read_text()) == collected
