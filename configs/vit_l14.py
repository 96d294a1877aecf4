"""ViT-L/14 (CLIP paper, tables 18 and 20): expect 75.3% zero-shot ImageNet.

  clip-jax plan --config=configs/vit_l14.py
  clip-jax train --config=configs/vit_l14.py --workdir=runs/vit_l14 \\
      --config.data.train=tfds:my_pairs#train
"""

from typing import Any

from ml_collections import ConfigDict

from configs import paper

TOPOLOGY = 'v5e:16x16'


def get_config() -> ConfigDict:
  """Returns the recipe without data: name it as `data.train`."""
  c: Any = paper.vit('ViT-L/14', learning_rate=4e-4, image_size=224)
  # Split over 16 chips, parameters leave memory free, in which blocks keep more
  # of what the backward pass reads.
  c.mesh.fsdp = 16
  c.model.remat = 'save_mlp:0.3,save_both'
  return c
