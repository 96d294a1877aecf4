"""RN50x64 (CLIP paper, tables 18 and 19): expect 73.6% zero-shot ImageNet.

  clip-jax plan --config=configs/rn50x64.py
  clip-jax train --config=configs/rn50x64.py --workdir=runs/rn50x64 \\
      --config.data.train=tfds:my_pairs#train
"""

from ml_collections import ConfigDict

from configs import paper

TOPOLOGY = 'v5p:8x8x8'


def get_config() -> ConfigDict:
  """Returns the recipe without data: name it as `data.train`."""
  return paper.resnet(
    'RN50x64', learning_rate=3.6e-4, image_size=448, remat='full'
  )
