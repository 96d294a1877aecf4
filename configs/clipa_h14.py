"""ViT-H/14 on short sequences first (CLIPA, arXiv 2305.07017 and 2306.15658).

The larger the towers, the fewer tokens they need: nearly all of the training
sees images of 84 pixels (36 patches) and texts of 8 tokens, and the last 4% of
the pairs full ones, with three tenths of the patches left out. The second run
starts from the first, whose image positions are interpolated, and whose text
positions are kept, with new ones behind them.

The settings are those of the released H/14 of CLIPA-v2, 12.8 thousand million
pairs and then 512 million. Texts are truncated; the paper keeps their nouns
first (syntax masking), which needs a tagger of the language. It has BERT's
vocabulary and fixed image positions.

  clip-jax plan --config=configs/clipa_h14.py:pretrain
  clip-jax train --config=configs/clipa_h14.py:pretrain --workdir=runs/clipa \\
      --config.data.train='wds:pairs/*.tar'
  clip-jax train --config=configs/clipa_h14.py:finetune --workdir=runs/full \\
      --config.initialize_from=runs/clipa --config.data.train='wds:pairs/*.tar'
"""

from ml_collections import ConfigDict

from configs import base

TOPOLOGY = 'v5e:16x16'
STAGES = ('pretrain', 'finetune')


def get_config(stage: str = 'pretrain') -> ConfigDict:
  """Returns the recipe of a stage; `data.train` is yours to name."""
  if stage not in STAGES:
    raise ValueError(f'stage {stage!r}: one of {", ".join(STAGES)}')
  c = base.get_config()
  c.model.preset = 'ViT-H-14'
  c.model.dtype = 'bfloat16'
  c.model.remat = 'full'
  c.data.workers = 16  # reading processes of each host
  c.data.interpolation = 'bilinear'
  c.data.augment.update(
    crop_scale=(0.4, 1.0),
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    grayscale=0.2,
  )
  c.objective.form = 'chunked'
  c.optimizer.update(
    weight_decay=0.2, b1=0.9, b2=0.95, eps=1e-8, mu_dtype='bfloat16'
  )
  if stage == 'pretrain':
    _set_sizes(c, pairs=12_811_670_000, batch_size=65_536, image=84, text=8)
    c.optimizer.update(learning_rate=8e-6 * 256, warmup_steps=3_200)
  else:
    _set_sizes(c, pairs=524_288_000, batch_size=32_768, image=224, text=32)
    c.model.patch_dropout = 0.3
    c.mesh.fsdp = 4  # beside whole parameters, the activations do not fit
    c.optimizer.update(learning_rate=4e-7 * 128, warmup_steps=800)
  c.evaluation.every_steps = 10_000
  return c


def _set_sizes(
  c: ConfigDict, pairs: int, batch_size: int, image: int, text: int
) -> None:
  """Sets the pairs that are seen, in batches, and the sizes of each."""
  c.total_steps = pairs // batch_size
  c.data.batch_size = batch_size
  c.data.image_size = image  # pixels a side
  c.model.text.context_length = text  # tokens
