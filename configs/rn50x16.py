"""RN50x16 (CLIP paper, tables 18 and 19): expect 70.5% zero-shot ImageNet.

  clip-jax plan --config=configs/rn50x16.py
  clip-jax train --config=configs/rn50x16.py --workdir=runs/rn50x16 \\
      --config.data.train=tfds:my_pairs#train
"""

from ml_collections import ConfigDict

from configs import paper

TOPOLOGY = 'v5p:8x8x4'


def get_config() -> ConfigDict:
  """Returns the recipe without data: name it as `data.train`."""
  return paper.resnet(
    'RN50x16', learning_rate=4e-4, image_size=384, remat='full'
  )
