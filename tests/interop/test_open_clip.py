"""open_clip's model configs, beyond what whole directories show."""

import pytest

from clip_jax.interop import open_clip

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
  config = open_clip.read_config(fields, 'a config')
  assert config.image.activation == ACTIVATIONS[name]
  assert open_clip.write_config(config)['vision_cfg'] == fields['vision_cfg']
