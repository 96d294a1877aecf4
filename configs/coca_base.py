"""CoCa-Base (arXiv 2205.01917): contrast and captions, by one text decoder.

Its first half is the text tower, whose state at the end token is compared with
the image; the second half goes on from that tower's states, attends to the
tokens of the image, and predicts the caption. Table 1: both halves and the ViT
have 12 blocks of width 768, 383 M parameters in all. Section 4.1: images of 288
pixels in patches of 18, batch 65,536, 500,000 steps; the captioning loss counts
twice the contrastive one; temperature 0.07; warm-up to 8e-4 for 2 % of the
steps, then linearly to 0; weight decay 0.01; texts of 64 tokens of 64,000
pieces.

What differs: the paper's optimizer is Adafactor; its images are read through
one learned query by the contrastive loss, as here, and through 256 by the
decoder, which here attends to all 256 patches; a token of its own ends its
texts, where here the end token does. The paper's data, JFT-3B and ALIGN, are
not public: name pairs of your own. The same command trains the vocabulary on
their captions, unless it is there.

  clip-jax plan --config=configs/coca_base.py
  clip-jax train --config=configs/coca_base.py --workdir=runs/coca \\
      --config.data.train=tfds:my_pairs#train
"""

from ml_collections import ConfigDict

from configs import base

TOPOLOGY = 'v5e:16x16'


def get_config() -> ConfigDict:
  """Returns the recipe; `data.train` is yours to name."""
  c = base.get_config()
  c.total_steps = 500_000
  c.model.embed_dim = 768
  c.model.dtype = 'bfloat16'
  c.model.remat = 'full'
  tower = {'width': 768, 'depth': 12, 'heads': 12, 'activation': 'gelu'}
  c.model.image.update(
    image_size=288,
    patch_size=18,
    pooling='attention',
    class_token=False,
    patch_bias=True,
    pre_norm=False,
    **tower,
  )
  c.model.text.update(context_length=64, **tower)
  c.model.decoder.update(reads='text_tower', **tower)
  c.tokenizer = 'sentencepiece:runs/coca_tokenizer.model'
  c.tokenizer_training.vocab_size = 64_000
  c.data.batch_size = 65_536
  c.data.workers = 16  # reading processes of each host
  c.objective.name = 'softmax'
  c.objective.added.captioning = 2.0
  c.optimizer.update(
    learning_rate=8e-4,
    schedule='linear',
    warmup_steps=10_000,
    weight_decay=0.01,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    mu_dtype='bfloat16',
  )
  c.evaluation.every_steps = 10_000
  return c
