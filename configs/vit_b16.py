"""ViT-B/16 (CLIP paper, tables 18 and 20): expect 68.6% zero-shot ImageNet.

  clip-jax plan --config=configs/vit_b16.py
  clip-jax train --config=configs/vit_b16.py --workdir=runs/vit_b16 \\
      --config.data.train=tfds:my_pairs#train
"""

from ml_collections import ConfigDict

from configs import paper

TOPOLOGY = 'v5e:16x16'


def get_config() -> ConfigDict:
  """Returns the recipe without data: name it as `data.train`."""
  return paper.vit('ViT-B/16', learning_rate=5e-4, image_size=224, remat='none')
