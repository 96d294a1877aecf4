"""Every row of the table is the published model, to the parameter."""

import json

import pytest

from clip_jax.errors import UsageError
from clip_jax.models.config import CLIPConfig
from clip_jax.models.counting import count_parameters
from clip_jax.models.presets import PRESETS, resolve
from tests.models.open_clip_golden import GOLDENS, open_clip_config

PUBLISHED = json.loads((GOLDENS / 'open_clip_presets.json').read_text())


def published(name):
  """open_clip's facts about a preset of ours, its OpenAI variant."""
  rows = [
    row
    for key, row in PUBLISHED.items()
    if row['openai_name'] in (name, f'{name}px')
  ]
  assert len(rows) == 1
  return rows[0]


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
  # OpenAI's weights need QuickGELU, whatever the base config says.
  assert resolve(name) == open_clip_config({**fields, 'quick_gelu': True})


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
  with pytest.raises(UsageError, match=r"'ViT-L-14'; did you mean 'ViT-L/14'"):
    resolve('ViT-L-14')


def test_a_shape_that_cannot_be_is_refused():
  with pytest.raises(UsageError, match='image_size=225 is not a multiple'):
    resolve('ViT-B/32', {'image': {'image_size': 225}})
  with pytest.raises(UsageError, match=r'text.width=512 .*text.heads=7'):
    resolve('ViT-B/32', {'text': {'heads': 7}})
