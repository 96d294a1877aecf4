"""LiT with a ViT-B/16 (arXiv 2111.07991): a new text tower reads a locked ViT.

`initialize_from` names any trained model: its image tower is locked, with its
projection, and a text tower of the same shape and a temperature of 1 / 10 begin
anew to read it ("Lu" in the paper's terms; `--config.initialize_anew=()` goes
on from the model's own text tower, "LU"). The locked tower has no moments, no
gradient and no backward pass. To free its last two blocks as well:

  --config.optimizer.groups='(("image/transformer/blocks[-2:]", 0.1),
                              ("image*", 0.0), ("*", 1.0))'

Settings of the authors' configuration (big_vision's `lit_coco.py`, and
`README_lit.md` for LiT-B16B_2): 60,000 steps, Adam at 1e-3 after 3 % of
warm-up, gradients clipped at 1, texts of 16 tokens. With 16,384 pairs these are
a thousand million, as in the paper's figure 1, on the left. Its weight decay
does not depend on the learning rate, and ours does: 0.1 is our choice.

  clip-jax plan --config=configs/lit_b16.py
  clip-jax train --config=configs/lit_b16.py --workdir=runs/lit_b16 \\
      --config.initialize_from=ViT-B-16.pt \\
      --config.data.train=tfds:my_pairs#train
"""

from ml_collections import ConfigDict

from configs import base

TOPOLOGY = 'v5e:8x8'


def get_config() -> ConfigDict:
  """Returns the recipe; name `data.train` and `initialize_from` yourself."""
  c = base.get_config()
  c.total_steps = 60_000
  c.initialize_anew = ('text', 'text_projection', 'logit_scale')
  c.model.preset = 'ViT-B/16'
  c.model.dtype = 'bfloat16'
  c.model.initial_logit_scale = 10.0
  c.model.text.context_length = 16
  c.data.batch_size = 16_384
  c.data.workers = 16  # reading processes of each host
  c.optimizer.update(
    groups=(('image*', 0.0), ('*', 1.0)),
    learning_rate=1e-3,
    warmup_steps=1_800,
    weight_decay=0.1,
    b2=0.999,
    eps=1e-8,
    clip_norm=1.0,
  )
  c.evaluation.every_steps = 10_000
  return c
