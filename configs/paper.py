"""The settings that the nine models of the CLIP paper share (2103.00020).

Table 18, all of them: batch 32,768, 32 epochs of 400 M pairs, 2,000 steps of
warm-up, then a cosine to 0; Adam with decoupled weight decay 0.2; the
temperature starts at 1/0.07 and stays at 100 or below. Section 2.5: gradient
checkpointing, mixed precision, half-precision Adam statistics, and a random
square crop of the resized image as the only augmentation.
"""

from ml_collections import ConfigDict

from configs import base

PAIRS = 400_000_000  # WIT, the paper's data
BATCH_SIZE = 32_768


def steps(epochs: int) -> int:
  """Returns the updates of so many passes over the paper's data."""
  return epochs * PAIRS // BATCH_SIZE


def vit(
  preset: str, learning_rate: float, image_size: int, remat: str = 'full'
) -> ConfigDict:
  """Returns the recipe of a Vision Transformer of table 20."""
  return _recipe(preset, learning_rate, image_size, remat, b2=0.98, eps=1e-6)


def resnet(
  preset: str, learning_rate: float, image_size: int, remat: str = 'none'
) -> ConfigDict:
  """Returns the recipe of a ResNet of table 19."""
  return _recipe(preset, learning_rate, image_size, remat, b2=0.999, eps=1e-8)


def _recipe(
  preset: str,
  learning_rate: float,
  image_size: int,
  remat: str,
  b2: float,
  eps: float,
) -> ConfigDict:
  c = base.get_config()
  c.total_steps = steps(32)
  c.model.preset = preset
  c.model.dtype = 'bfloat16'
  c.model.remat = remat
  c.data.batch_size = BATCH_SIZE
  c.data.image_size = image_size
  c.data.workers = 16  # reading processes of each host
  c.optimizer.update(
    learning_rate=learning_rate,
    warmup_steps=2_000,
    weight_decay=0.2,
    b1=0.9,
    b2=b2,
    eps=eps,
    # nu_dtype could be bfloat16 as well; that of a ResNet, whose b2 is 0.999,
    # is then rounded by chance at nearly every step.
    mu_dtype='bfloat16',
  )
  c.checkpoint.every_steps = 1_000
  c.evaluation.every_steps = 10_000
  return c
