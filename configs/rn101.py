"""RN101 (CLIP paper, tables 18 and 19): expect 62.2% zero-shot ImageNet.

  clip-jax plan --config=configs/rn101.py
  clip-jax train --config=configs/rn101.py --workdir=runs/rn101 \\
      --config.data.train=tfds:my_pairs#train
"""

from ml_collections import ConfigDict

from configs import paper

TOPOLOGY = 'v5e:16x16'


def get_config() -> ConfigDict:
  """Returns the recipe without data: name it as `data.train`."""
  return paper.resnet('RN101', learning_rate=5e-4, image_size=224, remat='full')
