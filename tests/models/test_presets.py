"""Every row of the table is the published model, to the parameter.

goldens/open_clip_siglip_presets.json is to the SigLIP configs of open_clip
3.3.0 what open_clip_presets.json (see its README) is to some: the config, and
the parameters of `CustomTextCLIP(**config)` on torch's meta device.
"""

import dataclasses
import json

import pytest

from clip_jax.errors import UsageError
from clip_jax.interop.open_clip import read_config
from clip_jax.interop.preprocessors import read_hugging_face
from clip_jax.models.config import CLIPConfig, mlp_ratio
from clip_jax.models.counting import count_parameters
from clip_jax.models.presets import PRESETS, find, preprocessing_of, resolve
from tests.golden_models import GOLDENS

PUBLISHED = {
  **json.loads((GOLDENS / 'open_clip_siglip_presets.json').read_text()),
  **json.loads((GOLDENS / 'open_clip_presets.json').read_text()),
}
OPENAI = [name for name in PRESETS if '-' not in name or '/' in name]


def published(name):
  """open_clip's facts about a preset of ours."""
  if name in OPENAI:
    rows = [
      row
      for row in PUBLISHED.values()
      if row.get('openai_name') in (name, f'{name}px')
    ]
    assert len(rows) == 1
    return rows[0]
  return PUBLISHED[name]


def comparable(config: CLIPConfig) -> CLIPConfig:
  """Without what presets say otherwise than open_clip, each for a reason."""
  text = config.text
  image = config.image
  if config.initial_logit_bias is not None:  # SigLIP
    # open_clip computes the exact GELU where the authors have tanh's; a ratio
    # is written with few digits there; pads have the end token's id.
    image = dataclasses.replace(image, activation='gelu')
    ratio = mlp_ratio(int(text.width * text.mlp_ratio), text.width)
    text = dataclasses.replace(text, activation='gelu', mlp_ratio=ratio)
  if text.causal:  # the end token is the highest id: both ways are the same
    text = dataclasses.replace(text, pooling='end')
  text = dataclasses.replace(text, end_token=0)
  return dataclasses.replace(config, image=image, text=text)


def test_the_nine_models_of_the_paper_are_there():
  assert len(OPENAI) == 9


@pytest.mark.parametrize('name', list(PRESETS))
def test_parameter_counts_are_the_published_ones(name):
  count, row = count_parameters(resolve(name)), published(name)
  assert count.total == row['params_total']
  assert count.image == row['params_visual']
  assert count.text == row['params_text']
  assert count.total - count.image - count.text == row['params_logit']


@pytest.mark.parametrize('name', list(PRESETS))
def test_shapes_are_open_clips(name):
  fields = published(name)['config']
  if name in OPENAI:
    # OpenAI's weights need QuickGELU, whatever the base config says.
    fields = {**fields, 'quick_gelu': True}
  assert comparable(resolve(name)) == comparable(read_config(fields, name))


def test_images_are_preprocessed_as_published():
  tags = {'ViT-B/32': 'openai', 'RN50x64': 'openai', 'ViT-B-16-SigLIP': 'webli'}
  for name, tag in tags.items():
    expected = published(name)['published_weights'][tag]
    result = preprocessing_of(name)
    assert result.image_size == find(name).config.image.image_size
    assert result.resize_mode == expected['resize_mode']
    assert result.interpolation == expected['interpolation']
    assert list(result.mean) == expected['mean']
    assert list(result.std) == expected['std']


def test_vit_b_32_has_151_277_313_parameters():
  assert count_parameters(resolve('ViT-B/32')).total == 151_277_313


@pytest.mark.parametrize('name', list(PRESETS))
def test_a_config_survives_being_plain_data(name):
  config = resolve(name)
  again = json.loads(json.dumps(config.to_dict()))
  assert CLIPConfig.from_dict(again) == config


def test_an_override_replaces_a_single_field():
  config = resolve('ViT-B/32', {'image': {'depth': 3, 'width': None}})
  assert (config.image.depth, config.image.width) == (3, 768)
  assert config.text == resolve('ViT-B/32').text


def test_an_unknown_name_is_answered_with_the_nearest():
  with pytest.raises(UsageError, match=r"'ViT-L14'; did you mean 'ViT-L/14'"):
    resolve('ViT-L14')


@pytest.mark.parametrize(
  'name', [name for name in PUBLISHED if name.endswith('-quickgelu')]
)
def test_open_clips_quickgelu_is_the_row_that_computes_it(name):
  assert comparable(resolve(name)) == comparable(
    read_config(PUBLISHED[name]['config'], name)
  )


@pytest.mark.parametrize(
  ('name', 'row'),
  [
    ('ViT-L/14@336px', 'ViT-L/14@336'),
    ('ViT-L-14-336-quickgelu', 'ViT-L/14@336'),
    ('vit-l-14-QuickGELU', 'ViT-L/14'),
    ('rn50X64-quickgelu', 'RN50x64'),
    ('openai/clip-vit-large-patch14-336', 'ViT-L/14@336'),
    ('laion/CLIP-ViT-B-32-laion2B-s34B-b79K', 'ViT-B-32'),
    ('hf-hub:laion/clip-vit-h-14-laion2b-s32b-b79k', 'ViT-H-14'),
    ('google/siglip-so400m-patch14-384', 'ViT-SO400M-14-SigLIP-384'),
    ('timm/ViT-B-16-SigLIP', 'ViT-B-16-SigLIP'),
  ],
)
def test_names_of_other_libraries_in_any_case(name, row):
  assert find(name).config == find(row).config


def test_a_quickgelu_without_a_row_of_its_own_is_the_shape_with_it():
  other = resolve('ViT-H-14-quickgelu')
  assert other.image.activation == other.text.activation == 'quick_gelu'
  gelu = {'activation': 'gelu'}
  again = resolve('ViT-H-14-quickgelu', {'image': gelu, 'text': gelu})
  assert again == resolve('ViT-H-14')


def test_what_another_publisher_prepares_otherwise():
  assert preprocessing_of('google/siglip2-base-patch16-224').interpolation == (
    'bilinear'
  )
  half = preprocessing_of('laion/CLIP-ViT-L-14-laion2B-s32B-b82K')
  assert half.mean == (0.5, 0.5, 0.5)
  assert preprocessing_of('ViT-L-14').mean != half.mean


@pytest.mark.parametrize(
  ('name', 'row'),
  [
    ('google/siglip2-base-patch16-naflex', 'ViT-B-16-SigLIP2-256'),
    ('google/siglip2-so400m-patch16-naflex', 'ViT-SO400M-16-SigLIP2-256'),
  ],
)
def test_naflex_is_the_model_for_squares_that_reads_any_aspect(name, row):
  assert find(name).config == find(row).config
  siglip2 = {'image_processor_type': 'Siglip2ImageProcessor'}
  assert preprocessing_of(name) == read_hugging_face(siglip2)


@pytest.mark.parametrize(
  'name', ['ViT-G-14', 'vit-g-14', 'ViT-G/14', 'VIT-G-14-quickgelu']
)
def test_two_models_that_one_name_may_mean_are_not_chosen_between(name):
  with pytest.raises(UsageError, match='might be ViT-g-14 or ViT-bigG-14'):
    find(name)


@pytest.mark.parametrize(
  ('name', 'offered'),
  [
    ('ViT-L-14-quickgelo', r"'ViT-L-14' \(gelu.* or 'ViT-L/14' \(quick_gelu"),
    ('ViT-B32', r"'ViT-B/32' \(quick_gelu, 224.* or 'ViT-B-32' \(gelu, 224"),
    ('ViT-B-16-SigLIP-quickgelu', r"'ViT-B-16-SigLIP' \(gelu_tanh, 224"),
  ],
)
def test_an_offer_says_how_it_computes(name, offered):
  with pytest.raises(UsageError, match=f'did you mean {offered}'):
    find(name)


def test_a_shape_that_cannot_be_is_refused():
  with pytest.raises(UsageError, match='image_size=31 is smaller than'):
    resolve('ViT-B/32', {'image': {'image_size': 31}})
  with pytest.raises(UsageError, match=r'text.width=512 .*text.heads=7'):
    resolve('ViT-B/32', {'text': {'heads': 7}})
