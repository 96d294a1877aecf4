"""ViT-L/14@336 (CLIP paper, section 3.2 and table 20).

The paper has 76.2 % zero-shot on ImageNet with it. This is one more epoch of a
trained ViT-L/14 at 336 pixels: its weights are the first ones here, with the
positions of its patches interpolated.

  clip-jax plan --config=configs/vit_l14_336.py
  clip-jax train --config=configs/vit_l14_336.py --workdir=runs/vit_l14_336 \\
      --config.initialize_from=runs/vit_l14 \\
      --config.data.train=tfds:my_pairs#train
"""

from typing import Any

from ml_collections import ConfigDict

from configs import paper

TOPOLOGY = 'v5e:16x16'


def get_config() -> ConfigDict:
  """Returns the recipe; name `data.train` and `initialize_from`."""
  c: Any = paper.vit('ViT-L/14@336', learning_rate=2e-5, image_size=336)
  c.total_steps = paper.steps(1)
  # An image has 577 tokens here, so that computing attention again takes longer
  # than computing the MLP again.
  c.mesh.fsdp = 16
  c.model.remat = 'full:0.35,save_qkv'
  return c
