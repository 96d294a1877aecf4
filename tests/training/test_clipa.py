"""CLIPA's two runs: short sequences first, full ones from their weights."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from clip_jax.checkpoints.reading import load_variables
from clip_jax.training.loop import train
from clip_jax.training.metrics import read_metrics
from clip_jax.training.writers import default_outputs
from configs.clipa_h14 import get_config
from tests.tiny import tiny_config, write_pairs, write_word_tokenizer

NO_REPORT = dataclasses.replace(default_outputs(), report=None)
STEPS = 40


def shrunken(stage, data, tokenizer, image_size, context_length):
  """The recipe of a stage for tiny towers, images and texts."""
  config, tiny = get_config(stage), tiny_config().model
  config.model.update(preset='', dtype='float32', remat='none', embed_dim=16)
  for name in ('patch_size', 'width', 'depth', 'heads'):
    config.model.image[name] = tiny.image[name]
  for name in ('width', 'depth', 'heads'):
    config.model.text[name] = tiny.text[name]
  config.model.text.context_length = context_length
  config.data.update(
    train=data, batch_size=16, image_size=image_size, workers=0
  )
  config.data.augment.update(tiny_config().data.augment)
  config.update(tokenizer=tokenizer, total_steps=STEPS, log_every_steps=1)
  config.optimizer.update(learning_rate=3e-3, warmup_steps=5)
  return config


def write_patterns(folder, count):
  """Black and white squares, which survive a change of size; their SPEC."""
  spec, rng = write_pairs(folder, count), np.random.default_rng(0)
  for path in folder.glob('*.png'):
    squares = 255 * rng.integers(0, 2, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(np.kron(squares, np.ones((12, 12, 1), np.uint8))).save(path)
  return spec


def losses(workdir):
  return [row['train/loss'] for row in read_metrics(workdir)]


@pytest.mark.slow
def test_the_loss_falls_in_both_stages_and_goes_on_where_it_was(tmp_path):
  data = write_patterns(tmp_path / 'pairs', 16)
  first, second = tmp_path / 'short', tmp_path / 'full'
  captions = [f'picture number {i}' for i in range(16)]
  tokenizer = write_word_tokenizer(tmp_path / 'tokenizer', captions)
  train(shrunken('pretrain', data, tokenizer, 16, 6), first, NO_REPORT)
  config = shrunken('finetune', data, tokenizer, 24, 12)
  config.initialize_from = str(first)
  config.checkpoint.every_steps = 25
  config.objective.micro_batch = 8
  train(config, second, NO_REPORT)
  before, after = losses(first), losses(second)
  assert len(before) == len(after) == STEPS
  assert np.mean(before[-5:]) < 0.8 * np.mean(before[:5])
  assert np.mean(after[-5:]) < 0.8 * np.mean(before[:5])
  assert np.mean(after[:3]) < np.mean(before[:3])

  # A run that is resumed drops the same patches.
  assert config.model.patch_dropout == 0.3
  resumed = tmp_path / 'resumed'
  shutil.copytree(second, resumed)
  shutil.rmtree(resumed / 'checkpoints' / str(STEPS))
  train(config, resumed, NO_REPORT)
  assert losses(resumed) == after
  jax.tree.map(
    np.testing.assert_array_equal,
    load_variables(resumed)[0],
    load_variables(second)[0],
  )
