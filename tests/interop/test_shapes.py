"""What shapes alone tell of a published model; no array is needed."""

import dataclasses

import numpy as np
import pytest

from clip_jax.interop import shapes
from clip_jax.interop.tensor_file import TensorInfo
from clip_jax.models import presets


def infos_of(config):
  """The keys of OpenAI's layout that tell a config with a ViT."""
  image, text = config.image, config.text
  result = {
    'visual.conv1.weight': (image.width, 3, image.patch_size, image.patch_size),
    'visual.positional_embedding': (image.patches + 1, image.width),
    'visual.ln_pre.weight': (image.width,),
    'token_embedding.weight': (text.vocab_size, text.width),
    'positional_embedding': (text.context_length, text.width),
    'text_projection': (text.width, config.embed_dim),
  }
  for prefix, tower in (('visual.', image), ('', text)):
    for i in range(tower.depth):
      key = f'{prefix}transformer.resblocks.{i}.mlp.c_fc.weight'
      result[key] = (int(tower.width * tower.mlp_ratio), tower.width)
  float32 = np.dtype(np.float32)
  return {key: TensorInfo(shape, float32) for key, shape in result.items()}


@pytest.mark.parametrize('name', ['ViT-H-14', 'ViT-g-14', 'ViT-bigG-14'])
@pytest.mark.parametrize('image_size', [224, 378])
def test_heads_are_the_published_ones_whatever_the_image_size(name, image_size):
  published = presets.find(name).config
  image = dataclasses.replace(published.image, image_size=image_size)
  config = dataclasses.replace(published, image=image)
  told = shapes.of_openai(infos_of(config), 'a file')
  assert told.image == image  # 16 heads, none of them 64 wide
  assert told.text.heads == published.text.heads


def test_of_two_published_sizes_the_own_one_is_told():
  config = presets.find('ViT-L/14@336').config
  assert shapes.of_openai(infos_of(config), 'a file').image == config.image
