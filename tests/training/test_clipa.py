"""CLIPA's two runs: short sequences first, full ones from their weights."""

import dataclasses

import numpy as np
import pytest

from clip_jax.training.loop import train
from clip_jax.training.metrics import read_metrics
from clip_jax.training.writers import default_outputs
from configs.clipa_h14 import get_config
from tests.tiny import tiny_config, write_pairs

NO_REPORT = dataclasses.replace(default_outputs(), report=None)
STEPS = 40


def shrunken(stage, data, image_size, context_length):
  """The recipe of a stage for tiny towers, images and texts."""
  config, tiny = get_config(stage), tiny_config()
  config.model.update(preset='', dtype='float32', remat='none', embed_dim=16)
  config.model.image.update(tiny.model.image)
  config.model.image.image_size = None
  config.model.text.update(tiny.model.text)
  config.model.text.context_length = context_length
  config.data.update(
    train=data, batch_size=16, image_size=image_size, workers=0
  )
  config.update(total_steps=STEPS, log_every_steps=1)
  config.optimizer.update(learning_rate=5e-3, warmup_steps=2)
  return config


def losses(workdir):
  return [row['train/loss'] for row in read_metrics(workdir)]


@pytest.mark.slow
def test_the_loss_falls_in_both_stages_and_goes_on_where_it_was(tmp_path):
  data = write_pairs(tmp_path / 'pairs', 16)
  first, second = tmp_path / 'short', tmp_path / 'full'
  train(shrunken('pretrain', data, 16, 6), first, NO_REPORT)
  config = shrunken('finetune', data, 24, 12)
  config.initialize_from = str(first)
  train(config, second, NO_REPORT)
  before, after = losses(first), losses(second)
  assert len(before) == len(after) == STEPS
  assert np.mean(before[-5:]) < 0.8 * np.mean(before[:5])
  assert np.mean(after[-5:]) < 0.8 * np.mean(before[:5])
  assert np.mean(after[:3]) < np.mean(before[:3])
