"""Fine-tunes a CLIP on labelled images by the loss that it was trained with.

FLYP (arXiv 2212.00638), with the settings that its code has for ImageNet: both
towers, ten epochs of batches of 512, the learning rate 1e-5 after 500 steps of
warm-up, weight decay 0.1. A caption is a prompt around the name of the class,
drawn anew each time. As in the paper, images of one class stay each other's
negatives, also where a batch has many of them: a warning says how many.

  clip-jax plan --config=configs/finetune.py
  clip-jax train --config=configs/finetune.py --workdir=runs/flyp \\
      --config.initialize_from=ViT-B-16.pt \\
      --config.data.train=tfds:imagenet2012#train
"""

from ml_collections import ConfigDict

from configs import base

TOPOLOGY = 'v5e:4x4'
_IMAGES = 1_281_167  # of ImageNet
_BATCH_SIZE = 512


def get_config() -> ConfigDict:
  """Returns the recipe; name `data.train` and `initialize_from` yourself."""
  c = base.get_config()
  c.total_steps = 10 * _IMAGES // _BATCH_SIZE
  c.model.preset = 'ViT-B/16'
  c.model.dtype = 'bfloat16'
  c.data.batch_size = _BATCH_SIZE
  c.data.templates = (
    'a photo of a {}.',
    'a bad photo of a {}.',
    'a photo of the large {}.',
    'a photo of the small {}.',
    'a {} in a video game.',
    'art of the {}.',
    'itap of a {}.',
  )
  c.data.augment.crop_scale = (0.9, 1.0)
  c.data.workers = 16  # reading processes of each host
  c.optimizer.update(
    learning_rate=1e-5,
    warmup_steps=500,
    weight_decay=0.1,
    b2=0.999,
    eps=1e-8,
  )
  return c
