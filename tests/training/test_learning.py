"""A run of a minute learns: far better than chance on images it never saw."""

import json
import os
import subprocess
import sys

import pytest

FLAGS = (
  *('--config=configs/emoji.py', '--config.tokenizer=clip'),
  *('--config.data.train=tfds:digits#train', '--config.data.batch_size=64'),
  '--config.data.augment.plain=1.0',  # no rotation, which turns a 6 into a 9
  *('--config.model.image.width=64', '--config.model.image.heads=2'),
  *('--config.model.text.width=64', '--config.model.text.heads=2'),
  *('--config.model.image.depth=2', '--config.model.text.depth=1'),
  *('--config.model.text.context_length=8', '--config.mesh.cpu_devices=1'),
  *('--config.optimizer.learning_rate=2e-3', '--config.total_steps=300'),
  '--config.optimizer.warmup_steps=30',
  '--config.checkpoint.every_steps=300',
  '--config.evaluation.data=tfds:digits#test',
  "--config.evaluation.tasks=('zero_shot',)",
  '--config.evaluation.every_steps=0',
  '--config.evaluation.train_sample=False',
)


@pytest.mark.slow
def test_a_minute_of_training_beats_chance_by_far(tmp_path):
  environment = {
    name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'
  }
  environment['TFDS_DATA_DIR'] = str(tmp_path / 'data')
  for words in (
    ['data', 'build', 'digits'],
    ['train', f'--workdir={tmp_path / "run"}', *FLAGS],
  ):
    done = subprocess.run(
      [sys.executable, '-m', 'clip_jax', *words],
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )
    assert not done.returncode, done.stderr
  rows = (tmp_path / 'run/metrics.jsonl').read_text().splitlines()
  last = json.loads(rows[-1])
  assert last['eval/zero_shot/top1_chance'] == pytest.approx(0.1)
  assert last['eval/zero_shot/top1'] > 0.75
