"""Steps that are not finite are counted, named, and at last too many."""

import json

import pytest

from clip_jax.errors import FailureError
from clip_jax.training.feed import Finished
from clip_jax.training.skipped import SkippedSteps


def take(skipped, steps, bad):
  for step in steps:
    metrics = {'loss': 1.0, 'skipped': float(step in bad)}
    skipped.take(Finished(step, metrics, None))


def ids(step):
  return [f'{step}-{i}.png' for i in range(2)]


def test_a_name_that_is_not_utf_8_is_written_as_json_can(tmp_path):
  path = tmp_path / 'bad_steps.jsonl'
  skipped = SkippedSteps(path, lambda _: ['caf\udce9.png'], 3)
  take(skipped, [1], bad=(1,))
  assert json.loads(path.read_text())['ids'] == ['caf\udce9.png']


def test_bad_steps_are_counted_and_their_records_named(tmp_path):
  skipped = SkippedSteps(tmp_path / 'bad_steps.jsonl', ids, 3)
  take(skipped, range(1, 9), bad=(2, 3, 5, 6))
  assert skipped.count == 4
  lines = (tmp_path / 'bad_steps.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [2, 3, 5, 6]
  assert json.loads(lines[0])['ids'] == ['2-0.png', '2-1.png']


def test_too_many_in_a_row_end_the_run(tmp_path):
  skipped = SkippedSteps(tmp_path / 'bad_steps.jsonl', ids, 3)
  with pytest.raises(FailureError, match=r'in 3 steps in a row, 4 to 6'):
    take(skipped, range(1, 9), bad=(1, 2, 4, 5, 6))


@pytest.mark.parametrize(
  ('latest', 'message'),
  [
    (None, 'the parameters, and there is no checkpoint yet. bad_steps'),
    (5, 'the parameters, and the checkpoint of step 5 is good'),
    (6, 'step 6 has the very parameters with which they failed'),
    (8, 'step 8 has the very parameters with which they failed'),
  ],
)
def test_what_is_left_is_said(latest, message):
  skipped = SkippedSteps(None, ids, 2, lambda: latest)
  with pytest.raises(FailureError, match=message) as caught:
    take(skipped, range(1, 9), bad=(8, 7))
  assert ('is good' in str(caught.value)) == (latest == 5)


def test_no_limit_and_no_file():
  skipped = SkippedSteps(None, ids, 0)
  take(skipped, range(1, 50), bad=range(1, 50))
  assert skipped.count == 49
