"""ViT-B/16 by multi-modal reinforced training (MobileCLIP, arXiv 2311.17049).

The student of the released training scripts, on DataCompDR-1B's settings: ten
stored views of each image, two teachers of ViT-L/14, a quarter of the loss
contrastive and three quarters distilled (a weight of 0 and 1 for the smaller
MobileCLIP-S). Each image has synthetic captions beside its own; the paper sums
the losses of both, here each example draws one. Its RandAugment is stood in for
by changes of colour.

The teachers see the views first, then the student is trained:

  clip-jax plan --config=configs/mobileclip_b16.py
  clip-jax embed --config=configs/mobileclip_b16.py --dtype=bfloat16 \\
      --model=ViT-L-14.pt --out=teachers/openai \\
      --config.data.train='wds:pairs/*.tar'
  clip-jax embed --config=configs/mobileclip_b16.py --dtype=bfloat16 \\
      --model=CLIP-ViT-L-14-DataComp.XL --out=teachers/datacomp \\
      --config.data.train='wds:pairs/*.tar'
  clip-jax train --config=configs/mobileclip_b16.py --workdir=runs/mobileclip \\
      --config.data.train='wds:pairs/*.tar'
"""

from ml_collections import ConfigDict

from configs import base

TOPOLOGY = 'v5e:16x16'


def get_config() -> ConfigDict:
  """Returns the recipe; name `data.train` when the teachers have seen it."""
  c = base.get_config()
  c.total_steps = 200_000
  c.model.preset = 'ViT-B-16'
  c.model.dtype = 'bfloat16'
  c.model.remat = 'full'
  c.data.batch_size = 65_536
  c.data.image_size = 224
  c.data.workers = 16  # reading processes of each host
  c.data.captions = ('caption', 'synthetic')
  c.data.caption_weights = (0.5, 0.5)
  c.data.views = 10
  c.data.teachers = ('teachers/openai', 'teachers/datacomp')
  c.data.augment.update(
    crop_scale=(0.08, 1.0),
    flip=0.5,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    grayscale=0.1,
  )
  c.objective.form = 'chunked'
  c.objective.weight = 0.25
  c.objective.added.distillation = 0.75
  c.optimizer.update(
    learning_rate=1e-3,
    warmup_steps=1_000,
    weight_decay=0.2,
    b1=0.9,
    b2=0.95,
    eps=1e-6,
    clip_norm=1.0,
    mu_dtype='bfloat16',
  )
  c.evaluation.every_steps = 10_000
  return c
