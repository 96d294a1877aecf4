"""A vision-language model in small: the demo's model, a projector, a decoder.

As in LLaVA-1.5 (arXiv 2310.03744), the patch tokens of a frozen CLIP go through
two layers with a GELU between them, and stand before the text in a language
model. That one is tiny, begins anew, and answers with the name of an emoji. The
image tower has no gradient and no moments; blocks above the one that is read
are not computed. clip_jax/inference/README.md says what came of it.

The study compares two blocks whose tokens are read, with three seeds each, and
another one the last block's with and without the last LayerNorm:

  clip-jax study --config=configs/vlm_emoji.py --workdir=runs/vlm
  clip-jax study --config=configs/vlm_emoji.py --workdir=runs/vlm --study=norm
  clip-jax train --config=configs/vlm_emoji.py --workdir=runs/vlm_emoji

`--config.initialize_from=REF` takes another model, which must be a ViT. LLaVA's
first stage, where the language model is frozen too, is a row of the groups:

  --config.initialize_from=runs/vlm_emoji \\
  --config.optimizer.groups='(("decoder/projector", 1.0), ("*", 0.0))'
"""

from typing import Any

from ml_collections import ConfigDict

from configs import emoji

STEPS = 200

# The variants by name, each with the fields that it changes.
VARIANTS: dict[str, dict[str, Any]] = {
  'second-to-last block': {'model.decoder.image_layer': -2},  # LLaVA
  'last block': {'model.decoder.image_layer': -1},
  # And with the class token; PaliGemma, Idefics.
  'last LayerNorm': {'model.decoder.image_layer': None},
}
STUDIES = {
  'layer': ('second-to-last block', 'last block'),
  'norm': ('last block', 'last LayerNorm'),
}
METRICS = {
  'names chosen': 'eval/zero_shot/top1',  # of all in the test split
  'names written': 'eval/captioning/exact_match',
}


def get_config(variant: str = 'second-to-last block') -> ConfigDict:
  """Returns a variant's config by its name, with `_` in place of blanks."""
  names = {name.replace(' ', '_'): name for name in VARIANTS}
  if variant.replace(' ', '_') not in names:
    raise ValueError(f'no variant {variant!r}: one of {", ".join(names)}')
  c = emoji.get_config()
  c.initialize_from = 'runs/emoji'
  c.total_steps = STEPS
  c.model.decoder.update(reads='image_prefix', width=128, depth=1, heads=4)
  c.data.batch_size = 128
  c.data.augment.plain = 1.0  # the tower has learned what it takes for the same
  c.objective.name = 'captioning'
  c.optimizer.update(
    groups=(('decoder', 1.0), ('*', 0.0)),
    learning_rate=3e-3,
    warmup_steps=STEPS // 20,
  )
  c.checkpoint.update(every_steps=STEPS, keep=1)
  c.evaluation.update(
    every_steps=STEPS,
    tasks=('zero_shot', 'captioning'),
    classes='present',
    train_sample=False,
  )
  c.update_from_flattened_dict(VARIANTS[names[variant.replace(' ', '_')]])
  return c
