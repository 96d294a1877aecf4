"""ViT-L/14 (CLIP paper, tables 18 and 20): expect 75.3% zero-shot ImageNet.

  clip-jax plan --config=configs/vit_l14.py
  clip-jax train --config=configs/vit_l14.py --workdir=runs/vit_l14 \\
      --config.data.train=tfds:my_pairs#train
"""

from ml_collections import ConfigDict

from configs import paper

TOPOLOGY = 'v5e:16x16'


def get_config() -> ConfigDict:
  """Returns the recipe without data: name it as `data.train`."""
  return paper.vit(
    'ViT-L/14', learning_rate=4e-4, image_size=224, remat='save_mlp'
  )
