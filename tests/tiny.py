"""A model and a run small enough for any test."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from clip_jax.models.config import (
  CLIPConfig,
  DecoderConfig,
  ResNetConfig,
  TextTransformerConfig,
  VisionTransformerConfig,
)
from configs import base

TINY = CLIPConfig(
  embed_dim=16,
  image=VisionTransformerConfig(
    image_size=16, patch_size=8, width=32, depth=2, heads=4
  ),
  text=TextTransformerConfig(
    vocab_size=64,
    context_length=8,
    end_token=1,
    width=32,
    depth=2,
    heads=4,
  ),
)

# Wide enough that two devices with half of the heads each fill registers.
WIDE = dataclasses.replace(
  TINY,
  image=dataclasses.replace(TINY.image, width=256, heads=4),
  text=dataclasses.replace(TINY.text, width=256, heads=4),
)

TINY_RESNET = dataclasses.replace(
  TINY,
  image=ResNetConfig(image_size=32, layers=(1, 1, 1, 1), width=4, heads=4),
)

# As SigLIP: pooled by attention, no class token, a text tower that sees all.
TINY_SIGLIP = dataclasses.replace(
  TINY,
  embed_dim=32,
  initial_logit_scale=10.0,
  initial_logit_bias=-10.0,
  image=dataclasses.replace(
    TINY.image,
    pooling='attention',
    class_token=False,
    patch_bias=True,
    pre_norm=False,
    projection='none',
  ),
  text=dataclasses.replace(
    TINY.text, causal=False, pooling='last', projection='affine'
  ),
)

# With caption decoders: CoCa's, figure 2's language model and bag of words, and
# one whose prefix is the image, as LLaVA's.
TINY_COCA = dataclasses.replace(
  TINY, decoder=DecoderConfig('text_tower', width=32, depth=2, heads=4)
)
TINY_CAPTIONER = dataclasses.replace(
  TINY, decoder=DecoderConfig('tokens', width=24, depth=2, heads=2, only=True)
)
TINY_PREFIXED = dataclasses.replace(
  TINY,
  decoder=DecoderConfig(
    'image_prefix', width=24, depth=2, heads=2, image_layer=-2, only=True
  ),
)
TINY_BAG = dataclasses.replace(
  TINY, decoder=DecoderConfig('pooled_image', only=True)
)


def tiny_config() -> ConfigDict:
  """A recipe of a few seconds; the data set is the test's to name."""
  c = base.get_config()
  c.total_steps = 12
  c.log_every_steps = 2
  c.model.embed_dim = 16
  c.model.image.update(image_size=16, patch_size=8, width=32, depth=2, heads=4)
  c.model.text.update(context_length=16, width=32, depth=2, heads=4)
  c.data.batch_size = 16
  c.optimizer.update(learning_rate=1e-3, warmup_steps=2)
  c.checkpoint.every_steps = 4
  return c


def tiny_resnet_config() -> ConfigDict:
  """The same recipe with the image tower of `TINY_RESNET`."""
  c = tiny_config()
  for name in c.model.image:
    c.model.image[name] = None
  c.model.image.update(image_size=32, layers=(1, 1, 1, 1), width=4, heads=4)
  return c


def tiny_siglip_config() -> ConfigDict:
  """The same recipe with the towers of `TINY_SIGLIP`."""
  c = tiny_config()
  c.model.update(
    embed_dim=32, initial_logit_scale=10.0, initial_logit_bias=-10.0
  )
  c.model.image.update(
    pooling='attention',
    class_token=False,
    patch_bias=True,
    pre_norm=False,
    projection='none',
  )
  c.model.text.update(causal=False, pooling='last', projection='affine')
  return c


def get_config() -> ConfigDict:
  """So that a real process can be started with --config=tests/tiny.py."""
  return tiny_config()


def write_pairs(folder: Path, count: int = 24) -> str:
  """Coloured squares beside .txt captions; returns their SPEC."""
  rng = np.random.default_rng(0)
  folder.mkdir(parents=True, exist_ok=True)
  for i in range(count):
    pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f'{i:03}.png')
    (folder / f'{i:03}.txt').write_text(f'picture number {i}')
  return f'folder:{folder}'


def write_word_tokenizer(folder: Path, captions: Iterable[str]) -> str:
  """Makes a piece of each word of these captions; returns the tokenizer's SPEC.

  The embeddings of CLIP's 49,408 pieces would take most of a tiny step's time.
  """
  words = sorted({word for text in captions for word in text.split()})
  pieces = ['[PAD]', '[SEP]', '[UNK]', *words]
  ids = {piece: i for i, piece in enumerate(pieces)}
  tokenizer = Tokenizer(models.WordLevel(ids, unk_token='[UNK]'))
  tokenizer.add_special_tokens(pieces[:3])
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer.post_processor = processors.TemplateProcessing(
    single='$A [SEP]', special_tokens=[('[SEP]', ids['[SEP]'])]
  )
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(folder / 'tokenizer.json'))
  return f'hf:{folder}'
