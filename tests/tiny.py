"""A model and a run small enough for any test."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from clip_jax.models.config import (
  CLIPConfig,
  TextTransformerConfig,
  VisionTransformerConfig,
)
from configs import base

TINY = CLIPConfig(
  embed_dim=16,
  image=VisionTransformerConfig(
    image_size=16, patch_size=8, width=32, depth=2, heads=4
  ),
  text=TextTransformerConfig(
    vocab_size=64,
    context_length=8,
    end_token=1,
    width=32,
    depth=2,
    heads=4,
  ),
)


def tiny_config() -> ConfigDict:
  """A recipe of a few seconds; the data set is the test's to name."""
  c = base.get_config()
  c.total_steps = 12
  c.log_every_steps = 2
  c.model.embed_dim = 16
  c.model.image.update(image_size=16, patch_size=8, width=32, depth=2, heads=4)
  c.model.text.update(context_length=16, width=32, depth=2, heads=4)
  c.data.batch_size = 16
  c.optimizer.update(learning_rate=1e-3, warmup_steps=2)
  c.checkpoint.every_steps = 4
  return c


def get_config() -> ConfigDict:
  """So that a real process can be started with --config=tests/tiny.py."""
  return tiny_config()


def write_pairs(folder: Path, count: int = 24) -> str:
  """Coloured squares beside .txt captions; returns their SPEC."""
  rng = np.random.default_rng(0)
  folder.mkdir(parents=True, exist_ok=True)
  for i in range(count):
    pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f'{i:03}.png')
    (folder / f'{i:03}.txt').write_text(f'picture number {i}')
  return f'folder:{folder}'
