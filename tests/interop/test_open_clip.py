"""open_clip's configs, read and written: the published ones, all of them."""

import dataclasses
import json

import pytest

from clip_jax.errors import UsageError
from clip_jax.interop.open_clip import (
  as_computed_there,
  read_config,
  write_config,
)
from clip_jax.models.presets import PRESETS
from tests.golden_models import GOLDENS, OPEN_CLIP, load_golden

PUBLISHED = {
  **json.loads((GOLDENS / 'open_clip_siglip_presets.json').read_text()),
  **json.loads((GOLDENS / 'open_clip_presets.json').read_text()),
}
# As timm 1.0 builds them; B/16 and L/16 of SigLIP 2 share SigLIP's towers.
EXACT, TANH = 'gelu', 'gelu_tanh'
ACTIVATIONS = {
  'vit_base_patch32_siglip_256': TANH,
  'vit_base_patch16_siglip_224': EXACT,
  'vit_base_patch16_siglip_512': EXACT,
  'vit_large_patch16_siglip_384': EXACT,
  'vit_large_patch16_siglip_512': TANH,
  'vit_so400m_patch14_siglip_224': EXACT,
  'vit_so400m_patch14_siglip_378': EXACT,
  'vit_so400m_patch14_siglip_384': EXACT,
  'vit_so400m_patch16_siglip_256': TANH,
  'vit_so400m_patch16_siglip_384': TANH,
  'vit_so400m_patch16_siglip_512': TANH,
  'vit_giantopt_patch16_siglip_256': TANH,
  'vit_giantopt_patch16_siglip_384': TANH,
}


@pytest.mark.parametrize('name', list(PUBLISHED))
def test_published_configs_come_back(name):
  config = read_config(PUBLISHED[name]['config'], name)
  assert read_config(write_config(config), 'written') == config


@pytest.mark.parametrize('name', OPEN_CLIP)
def test_configs_of_the_goldens_come_back(name):
  config = load_golden(name).config
  assert read_config(write_config(config), 'written') == config


def test_a_written_siglip_names_timms_tower():
  config = read_config(PUBLISHED['ViT-L-16-SigLIP-384']['config'], 'published')
  written = write_config(config)
  assert written['custom_text'] is True
  assert written['vision_cfg'] == {
    'image_size': 384,
    'timm_model_name': 'vit_large_patch16_siglip_384',
    'timm_pool': 'map',
    'timm_proj': 'none',
  }


@pytest.mark.parametrize(
  'change', [{'activation': 'gelu_tanh'}, {'image_size': 240}, {'depth': 11}]
)
def test_a_tower_that_timm_does_not_have_is_refused(change):
  config = read_config(PUBLISHED['ViT-B-16-SigLIP']['config'], 'published')
  image = dataclasses.replace(config.image, **change)
  with pytest.raises(UsageError, match=r'published SigLIP shapes .*--to=hf'):
    write_config(dataclasses.replace(config, image=image))


def test_what_open_clip_cannot_express_is_named():
  config = load_golden('open_clip_vit').config
  image = dataclasses.replace(
    config.image, pooling='average', class_token=False, patch_bias=True
  )
  with pytest.raises(UsageError, match=r'no class token, a bias of the patch'):
    write_config(dataclasses.replace(config, image=image))


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_timm_towers_have_their_own_activation_both_ways(name):
  width = {'base': 768, 'large': 1024, 'so400m': 1152, 'giantopt': 1536}
  fields = {
    'embed_dim': width[name.split('_')[1]],
    'init_logit_bias': -10,
    'custom_text': True,
    'vision_cfg': {
      'image_size': int(name.rsplit('_', 1)[1]),
      'timm_model_name': name,
      'timm_pool': 'map',
      'timm_proj': 'none',
    },
    'text_cfg': {'pool_type': 'last', 'proj_bias': True},
  }
  config = read_config(fields, 'a config')
  assert config.image.activation == ACTIVATIONS[name]
  assert write_config(config)['vision_cfg'] == fields['vision_cfg']


@pytest.mark.parametrize(
  'name', [name for name in PUBLISHED if name in PRESETS and 'SigLIP' in name]
)
def test_presets_compute_there_what_the_configs_say(name):
  ours = as_computed_there(PRESETS[name].config)
  theirs = read_config(PUBLISHED[name]['config'], name)
  assert ours.image.activation == theirs.image.activation
  assert ours.text.activation == theirs.text.activation
