"""SigLIP 2 B/16 of native aspect ratio, NaFlex (arXiv 2502.14786).

Section 2.4.2: the run of a model for squares of 256 pixels is taken at 90 % of
its steps. From there, images keep their aspect, each step draws one of five
sequence lengths, and the last tenth of the schedule is stretched by 3.75, so
that each length is trained on sufficiently many images. Section 2.1: 40
thousand million pairs in batches of 32,768, the sigmoid loss, a peak learning
rate of 1e-3, weight decay 1e-4 (here 0.1, as configs/siglip_b16.py says), and
gradients clipped at norm 1; the tokenizer is Gemma's, of 256,000 pieces, and
texts are lower-cased.

At 90 % of a cosine the rate is 1e-3 * (1 + cos(0.9 pi)) / 2 = 2.4e-5; Adam's
moments begin anew here, hence the short warm-up, which the paper does not have.
Nor is its halved batch for the longest sequence here: `objective.micro_batch`
bounds the memory, and changes no result.

  clip-jax plan --config=configs/naflex_b16.py
  clip-jax train --config=configs/naflex_b16.py --workdir=runs/naflex_b16 \\
      --config.initialize_from=runs/squares/1098000 \\
      --config.data.train=tfds:my_pairs#train

Here runs/squares/1098000 is runs/siglip2_b16/checkpoints/1098000, copied while
it was there: a run keeps its newest checkpoints only. Without
`initialize_from`, it trains from scratch; name the `tokenizer` then.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import siglip_b16

TOPOLOGY = 'v5e:16x16'

_STEPS = 40_000_000_000 // 32_768  # of the whole run for squares


def get_config() -> ConfigDict:
  """Returns SigLIP's recipe with what NaFlex changes, without data."""
  c: Any = siglip_b16.get_config()
  c.total_steps = int(3.75 * 0.1 * _STEPS)
  c.model.preset = 'ViT-B-16-SigLIP2-256'
  c.tokenizer = 'hf:gemma'
  c.data.image_size = c.data.resize_mode = None  # images are no squares
  c.data.sequence_lengths = (128, 256, 576, 784, 1024)  # patches
  c.data.interpolation = 'bilinear'
  c.data.mean = c.data.std = (0.5, 0.5, 0.5)
  c.objective.micro_batch = 4_096
  c.optimizer.update(learning_rate=2.4e-5, warmup_steps=1_000)
  return c
