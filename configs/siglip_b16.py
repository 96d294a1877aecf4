"""SigLIP B/16 (arXiv 2303.15343), trained from scratch.

The sigmoid loss in its ring form: no device ever holds the features of all.
Paper, sections 3.3 and 4: temperature 10, bias -10, Adam with b2 = 0.95, which
keeps large batches stable, learning rate 1e-3, weight decay 1e-4: in
big_vision, that is not multiplied by the learning rate. Here it is, so that the
same decay is 0.1. The paper's data, WebLI, is not public: name image-text pairs
of your own, ten thousand million of them for the numbers of its tables. The
tokenizer is a SentencePiece model of 32,000 pieces, that of C4 in the paper;
`siglip:PATH` cleans texts as the released models expect.

  clip-jax plan --config=configs/siglip_b16.py
  clip-jax train --config=configs/siglip_b16.py --workdir=runs/siglip_b16 \\
      --config.tokenizer=siglip:spiece.model \\
      --config.data.train=tfds:my_pairs#train
"""

from ml_collections import ConfigDict

from configs import base

TOPOLOGY = 'v5e:16x16'


def get_config() -> ConfigDict:
  """Returns the recipe; `data.train` and `tokenizer` are yours to name."""
  c = base.get_config()
  c.total_steps = 10_000_000_000 // 32_768
  c.model.preset = 'ViT-B-16-SigLIP'
  c.model.dtype = 'bfloat16'
  c.model.remat = 'none'
  c.tokenizer = 'siglip:spiece.model'
  c.data.batch_size = 32_768
  c.data.image_size = 224
  c.data.resize_mode = 'squash'
  c.data.workers = 16  # reading processes of each host
  c.objective.update(name='sigmoid', form='ring', max_logit_scale=0.0)
  c.optimizer.update(
    learning_rate=1e-3,
    warmup_steps=10_000,
    weight_decay=0.1,
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    clip_norm=1.0,
    mu_dtype='bfloat16',
  )
  c.evaluation.every_steps = 10_000
  return c
