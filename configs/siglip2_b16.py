"""SigLIP 2 B/16 (arXiv 2502.14786): four losses, two of them at the end.

Section 2.1: 40 thousand million pairs in batches of 32,768, images of 256
pixels in patches of 16, texts of 64 tokens of Gemma's vocabulary, lower-cased;
a peak learning rate of 1e-3 after 20,000 steps, then a cosine, weight decay
1e-4 (here 0.1, as configs/siglip_b16.py says), gradients clipped at norm 1,
parameters split over the devices. Section 2.2: the sigmoid loss and, with the
same weight, the captions' likelihood by a decoder of half the text tower's
blocks, which attends to the image's tokens. Section 2.3, from 80 % of the steps
on: eight small crops are to say what a momentum teacher says of a large one
(SILC, arXiv 2310.13355), and half of the patches of the large one, masked, what
the teacher says of these (TIPS, arXiv 2410.16512), with weights 1 and 0.25,
both times 0.25 for a ViT-B (0.5 for L, 1 for So400m, 0.5 for g). The crops are
beside the image that is compared with its text, which stays as it is.

What differs: of LocCa's decoder (arXiv 2403.19596), only captioning is here. It
is never by parallel prediction, which the paper draws half of the time, and
there are no boxes: the paper has them, and the texts of regions, from a
detector. The published B/16 was trained on with selected data in the end
(section 2.5), which is not here.

What the paper leaves to SILC, which leaves most of it to DINO (arXiv
2104.14294): the areas of crops and 96 pixels a side, heads of 2,048, 2,048 and
256 with 65,536 prototypes, temperatures 0.1 and 0.04, and the decay 0.9 of the
centre. SILC keeps the teacher's decay fixed; 0.996, DINO's first value, is
ours. So is that the centre begins as the mean of a batch; that crops are
mirrored and not coloured; and that they are made of the batch's images, on the
device: a crop has the pixels of 256 x 256, not those of a larger original.

The paper's data, WebLI, are not public: name pairs of your own.

  clip-jax plan --config=configs/siglip2_b16.py
  clip-jax train --config=configs/siglip2_b16.py --workdir=runs/siglip2_b16 \\
      --config.tokenizer=hf:gemma --config.data.train=tfds:my_pairs#train

Its last fifth alone, for a model that is there already, of any ViT for squares:

  clip-jax train --config=configs/siglip2_b16.py --workdir=runs/more \\
      --config.initialize_from=runs/siglip_b16 --config.total_steps=20000 \\
      --config.objective.self_distillation.begin=0.0 \\
      --config.optimizer.learning_rate=1e-4 \\
      --config.optimizer.warmup_steps=1000 \\
      --config.data.train=tfds:my_pairs#train
"""

from ml_collections import ConfigDict

from configs import siglip_b16

TOPOLOGY = 'v5e:16x16'

_OF_A_VIT_B = 0.25  # the factor of both late terms (section 2.3)


def get_config() -> ConfigDict:
  """Returns the recipe; `data.train` and `tokenizer` are yours to name."""
  c = siglip_b16.get_config()
  c.model.remat = 'save_mlp'
  c.total_steps = 40_000_000_000 // 32_768
  c.model.preset = 'ViT-B-16-SigLIP2-256'
  c.model.decoder.update(
    reads='tokens', width=768, depth=6, heads=12, activation='gelu_tanh'
  )
  c.tokenizer = 'hf:gemma'
  c.data.image_size = 256
  c.data.interpolation = 'bilinear'
  c.data.mean = c.data.std = (0.5, 0.5, 0.5)
  c.objective.added.captioning = 1.0
  c.objective.added.self_distillation = _OF_A_VIT_B * 1.0
  c.objective.added.masked_prediction = _OF_A_VIT_B * 0.25
  c.optimizer.warmup_steps = 20_000
  c.mesh.fsdp = 16
  return c
