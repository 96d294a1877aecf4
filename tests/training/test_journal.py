"""What a person is told of batches whose pairs repeat each other."""

import itertools

import pytest

from clip_jax.data.examples import Repeats
from clip_jax.training.journal import Journal, in_words, repeats_told
from clip_jax.training.run import make_run
from tests.tiny import tiny_config, write_pairs


def told(repeats, records, batch_size=128, **objective):
  config = tiny_config()
  config.data.batch_size = batch_size
  config.objective.update(**objective)
  return repeats_told(repeats, records, config)


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


def lines_of(tmp_path, capsys, count, steps=4):
  config = tiny_config()
  config.data.train = write_pairs(tmp_path / 'images', count)
  run = make_run(config)
  batches = run.batches(0)
  with Journal(run, tmp_path, 0, batches) as journal:
    passed = list(itertools.islice(journal.passing(), steps))
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
  assert in_words(
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
