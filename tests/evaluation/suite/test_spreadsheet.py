"""results.csv, read back."""

import csv
import dataclasses
import io
from pathlib import Path

import pytest
import scipy.stats

from clip_jax.evaluation.suite import evaluate_suite, make_plan
from clip_jax.evaluation.suite.spreadsheet import COLUMNS, to_csv
from tests.evaluation.suite.fakes import (
  CHANCE,
  SETTING,
  TABLE,
  TASKS,
  FakeSuite,
  absence,
)


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  fake = FakeSuite(tmp_path_factory.mktemp('suite'))
  plan = make_plan(
    TABLE, TASKS, absence, root=Path('/data'), training_is_known=True
  )
  collected = evaluate_suite(fake.suite, plan, SETTING, fake.say)
  text = (fake.folder / 'results.csv').read_text()
  assert text == to_csv(collected)
  reader = csv.DictReader(io.StringIO(text))
  assert tuple(reader.fieldnames or ()) == COLUMNS
  return {(x['dataset'], x['task'], x['metric']): x for x in reader}


def test_a_metric_has_its_interval_and_count_beside_it(rows):
  row = rows['food101', 'zero_shot', 'top1']
  assert (row['value'], row['low'], row['high'], row['n']) == (
    '0.5', '0.2', '0.8', '10',
  )  # fmt: skip
  assert ('food101', 'zero_shot', 'top1_low') not in rows
  assert ('food101', 'zero_shot', 'examples') not in rows


def test_the_level_of_chance_stands_beside_an_accuracy(rows):
  assert rows['food101', 'zero_shot', 'top1']['chance'] == str(CHANCE)
  assert rows['food101', 'zero_shot', 'ece']['chance'] == ''


def test_a_proportion_without_an_interval_gets_the_exact_one(rows):
  row = rows['food101', 'zero_shot', 'top5']
  exact = scipy.stats.binomtest(10, 10).proportion_ci(0.95, 'exact')
  assert float(row['low']) == pytest.approx(exact.low)
  assert float(row['high']) == pytest.approx(exact.high)
  assert rows['food101', 'zero_shot', 'ece']['low'] == ''


def test_published_numbers_stand_beside_the_data_sets_own_metric(rows):
  food = rows['food101', 'zero_shot', 'top1']
  assert (food['published'], food['published_uncertain']) == ('0.844', 'True')
  assert food['published_where'] == 'table 11'
  pets = rows['oxford_pets', 'linear_probe', 'mean_per_class']
  assert pets['published'] == '0.9'
  assert rows['oxford_pets', 'linear_probe', 'top1']['published'] == ''
  assert rows['food101', 'prompt_gain', 'bare']['published'] == ''


def test_a_model_that_is_not_of_the_paper_has_no_published_numbers(tmp_path):
  fake = FakeSuite(tmp_path)
  plan = make_plan(
    TABLE, TASKS, absence, root=Path('/data'), training_is_known=False
  )
  setting = dataclasses.replace(SETTING, published=None)
  collected = evaluate_suite(fake.suite, plan, setting, fake.say)
  assert not any(result['published'] for result in collected['results'])
