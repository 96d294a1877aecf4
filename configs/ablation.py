"""Figure 2 of the paper in small, and the other choices of its section 2.3.

The study trains variants of one small model on the emoji, from scratch and with
several seeds, and draws their zero-shot accuracy over the images processed:

  clip-jax study --config=configs/ablation.py --workdir=runs/ablation
  clip-jax study --config=configs/ablation.py --workdir=runs/ablation \\
      --study=projection,temperature,tower,batch_size,captions

It is stopped and continued as a run is. One variant can be trained by itself:

  clip-jax train --config=configs/ablation.py:captioning --workdir=runs/caption

Accuracy is that of the right name among the 443 of the test split, whose images
are not trained on. clip_jax/evaluation/README.md shows what came of it.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import emoji

STEPS, BATCH_SIZE = 360, 256
BASELINE = 'contrastive'

# The variants by name, each with the fields of the baseline's config that it
# changes.
VARIANTS: dict[str, dict[str, Any]] = {
  BASELINE: {},
  # Figure 2. The language model is as large as the text tower that it replaces.
  'bag of words': {
    'objective.name': 'bag_of_words',
    'model.decoder.reads': 'pooled_image',
  },
  'captioning': {
    'objective.name': 'captioning',
    'model.decoder.reads': 'tokens',
    'model.decoder.width': 96,
    'model.decoder.depth': 2,
    'model.decoder.heads': 3,
    'model.decoder.activation': 'quick_gelu',
  },
  # Section 2.3: "We did not notice a difference in training efficiency".
  'non-linear projection': {
    'model.image.projection': 'mlp',
    'model.text.projection': 'mlp',
  },
  'fixed temperature': {
    'optimizer.groups': (('logit_scale', 0.0), ('*', 1.0)),
  },
  # This ResNet takes as many FLOPs an image as the baseline's ViT: 12 million.
  'ResNet': {
    'model.image.patch_size': None,
    'model.image.depth': None,
    'model.image.layers': (1, 1, 1, 1),
    'model.image.width': 18,
    'model.image.heads': 9,
  },
  # Runs with other batches take so many steps that they see as many images.
  'batch 64': {'data.batch_size': 64, 'total_steps': 4 * STEPS},
  'batch 1,024': {'data.batch_size': 1024, 'total_steps': STEPS // 4},
  # The caption of an image is drawn anew each time: its name in one of four
  # languages.
  'one of four captions': {
    'data.captions': ('caption', 'caption_de', 'caption_es', 'caption_fr'),
    'tokenizer': 'sentencepiece:runs/emoji_four_languages.model',
    'model.text.context_length': 24,
  },
}

# Which variants a study compares.
STUDIES: dict[str, tuple[str, ...]] = {
  'objective': (BASELINE, 'bag of words', 'captioning'),
  'projection': (BASELINE, 'non-linear projection'),
  'temperature': (BASELINE, 'fixed temperature'),
  'tower': (BASELINE, 'ResNet'),
  'batch_size': (BASELINE, 'batch 64', 'batch 1,024'),
  'captions': (BASELINE, 'one of four captions'),
}


def get_config(variant: str = BASELINE) -> ConfigDict:
  """Returns a variant's config by its name, with `_` in place of blanks."""
  names = {name.replace(' ', '_'): name for name in VARIANTS}
  if variant.replace(' ', '_') not in names:
    raise ValueError(f'no variant {variant!r}: one of {", ".join(names)}')
  c = emoji.get_config()
  c.total_steps = STEPS
  c.model.embed_dim = 96
  c.model.image.update(width=96, depth=3, heads=3)
  c.model.text.update(width=96, depth=2, heads=3)
  c.data.batch_size = BATCH_SIZE
  c.optimizer.learning_rate = 3e-3
  c.checkpoint.keep = 1
  c.evaluation.update(
    tasks=('zero_shot',), classes='present', train_sample=False
  )
  c.update_from_flattened_dict(VARIANTS[names[variant.replace(' ', '_')]])
  # Six measurements, and the same part of warm-up, whatever the batch.
  c.evaluation.every_steps = c.checkpoint.every_steps = c.total_steps // 6
  c.optimizer.warmup_steps = c.total_steps // 20
  return c
