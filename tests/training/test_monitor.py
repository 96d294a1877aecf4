"""Warnings of repeated pairs, printed metrics, and skipped steps."""

import itertools
import json

import pytest

from clip_jax.data.examples import Repeats
from clip_jax.errors import FailureError
from clip_jax.training.config import with_defaults
from clip_jax.training.monitor import RunMonitor, SkippedSteps, describe_metrics
from clip_jax.training.prefetch import FinishedStep
from clip_jax.training.run import prepare_run
from clip_jax.training.run_summary import describe_repeats
from tests.tiny import tiny_config, write_pairs


def told(repeats, records, batch_size=128, **objective):
  config = tiny_config()
  config.data.batch_size = batch_size
  config.objective.update(**objective)
  return describe_repeats(repeats, records, config)


def test_few_captions_for_many_images():
  line = told(Repeats(128, 128, 0, 128, 128 * 3.245), 5_000)
  assert line == (
    '100 % of the pairs have the caption of another pair of their batch: the '
    'loss takes each for a wrong answer to the other, and cannot fall below '
    '3.25. What helps: a data.batch_size below 128; captions that tell '
    'the images apart.'
  )


def test_a_data_set_smaller_than_the_batch():
  line = told(Repeats(64, 64, 64, 64, 64 * 0.98), 24, 64)
  assert 'data.train has 24 records, fewer than data.batch_size=64' in line
  assert 'a data.batch_size of at most 24, or more data' in line


def test_copies_of_images():
  line = told(Repeats(1000, 0, 100, 100, 0.0), 5_000)
  assert line.startswith('10 % of the pairs have the image of another pair')
  assert 'cannot fall' not in line
  assert line.endswith('What helps: data without copies of images.')


def test_the_floor_is_of_the_softmax_loss():
  line = told(Repeats(64, 64, 0, 64, 90.0), 99, name='sigmoid')
  assert 'cannot fall' not in line


@pytest.mark.parametrize(
  'repeats',
  [
    Repeats(),
    Repeats(512, 0, 0, 0, 0.0),
    Repeats(16, 2, 0, 2, 1.4),  # two of a small batch, by chance
    Repeats(10_000, 100, 99, 150, 70.0),  # where epochs meet
  ],
)
def test_what_may_be_chance_is_not_told(repeats):
  assert told(repeats, 5_000) == ''


def test_repeats_do_no_harm_where_nothing_is_compared():
  repeats = Repeats(10_000, 9_000, 0, 9_000, 70.0)
  assert told(repeats, 5_000)
  assert told(repeats, 5_000, name='captioning') == ''


def lines_of(tmp_path, capsys, count, steps=4):
  config = tiny_config()
  config.data.train = write_pairs(tmp_path / 'images', count)
  run = prepare_run(with_defaults(config))
  batches = run.batches(0)
  with RunMonitor(run, tmp_path, 0, batches) as monitor:
    passed = list(itertools.islice(monitor.checked_batches(), steps))
  batches.close()
  assert len(passed) == steps
  return [x for x in capsys.readouterr().err.splitlines() if 'warning' in x]


def test_it_is_told_once_before_the_first_step(tmp_path, capsys):
  (line,) = lines_of(tmp_path, capsys, count=6)  # of a batch of 16
  assert line.startswith(
    'warning: 100 % of the pairs have the caption and 100 % of the pairs have '
    'the image of another pair of their batch'
  )
  assert 'data.train has 6 records' in line


def test_of_batches_without_repeats_nothing_is_told(tmp_path, capsys):
  assert lines_of(tmp_path, capsys, count=64) == []


def test_an_evaluation_is_told_beside_training_pairs_and_chance():
  assert describe_metrics(
    {
      'eval/loss/loss': 3.2104,
      'eval/loss/examples': 80,
      'eval/train_loss/loss': 1.2,
      'eval/retrieval/image_to_text_r1': 0.25,
      'eval/retrieval/image_to_text_r1_chance': 0.0125,
      'eval/retrieval/image_to_text_r5': 0.5,
      'eval/train_retrieval/image_to_text_r1': 0.9,
      'eval/zero_shot/top1': 0.5,
      'eval/zero_shot/top1_low': 0.4,
      'eval/zero_shot/top1_chance': 0.1,
      'eval/bias/own/accuracy': 0.3,
    }
  ) == (
    'held-out loss 3.21 (training pairs 1.2), retrieval/image_to_text_r1 0.25 '
    '(training pairs 0.9, chance 0.0125), zero_shot/top1 0.5 (chance 0.1), '
    'bias/own/accuracy 0.3'
  )


def count_steps(skipped, steps, bad):
  for step in steps:
    metrics = {'loss': 1.0, 'skipped': float(step in bad)}
    skipped.count_step(FinishedStep(step, metrics, None))


def ids(step):
  return [f'{step}-{i}.png' for i in range(2)]


def test_a_name_that_is_not_utf_8_is_written_as_json_can(tmp_path):
  path = tmp_path / 'bad_steps.jsonl'
  skipped = SkippedSteps(path, lambda _: ['caf\udce9.png'], 3)
  count_steps(skipped, [1], bad=(1,))
  assert json.loads(path.read_text())['ids'] == ['caf\udce9.png']


def test_skipped_steps_are_counted_and_their_records_named(tmp_path):
  skipped = SkippedSteps(tmp_path / 'bad_steps.jsonl', ids, 3)
  count_steps(skipped, range(1, 9), bad=(2, 3, 5, 6))
  assert skipped.count == 4
  lines = (tmp_path / 'bad_steps.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [2, 3, 5, 6]
  assert json.loads(lines[0])['ids'] == ['2-0.png', '2-1.png']


def test_too_many_in_a_row_end_the_run(tmp_path):
  skipped = SkippedSteps(tmp_path / 'bad_steps.jsonl', ids, 3)
  with pytest.raises(FailureError, match=r'in 3 steps in a row, 4 to 6'):
    count_steps(skipped, range(1, 9), bad=(1, 2, 4, 5, 6))


@pytest.mark.parametrize(
  ('latest', 'message'),
  [
    (None, 'the parameters, and there is no checkpoint yet. bad_steps'),
    (5, 'the parameters, and the checkpoint of step 5 is good'),
    (6, 'step 6 has the very parameters with which they failed'),
    (8, 'step 8 has the very parameters with which they failed'),
  ],
)
def test_the_error_says_which_checkpoint_is_good(latest, message):
  skipped = SkippedSteps(None, ids, 2, lambda: latest)
  with pytest.raises(FailureError, match=message) as caught:
    count_steps(skipped, range(1, 9), bad=(8, 7))
  assert ('is good' in str(caught.value)) == (latest == 5)


def test_no_limit_and_no_file():
  skipped = SkippedSteps(None, ids, 0)
  count_steps(skipped, range(1, 50), bad=range(1, 50))
  assert skipped.count == 49
