"""RN50 (CLIP paper, tables 18 and 19): expect 59.6% zero-shot ImageNet.

  clip-jax plan --config=configs/rn50.py
  clip-jax train --config=configs/rn50.py --workdir=runs/rn50 \\
      --config.data.train=tfds:my_pairs#train
"""

from ml_collections import ConfigDict

from configs import paper

TOPOLOGY = 'v5e:16x16'


def get_config() -> ConfigDict:
  """Returns the recipe without data: name it as `data.train`."""
  return paper.resnet('RN50', learning_rate=5e-4, image_size=224)
