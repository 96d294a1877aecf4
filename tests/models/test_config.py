"""Model descriptions: plain data, of today and of before."""

import dataclasses
import json
import subprocess
import sys

import pytest

from clip_jax.errors import UsageError
from clip_jax.models import presets
from clip_jax.models.config import (
  CLIPConfig,
  ResNetConfig,
  VisionTransformerConfig,
)
from tests.tiny import TINY, TINY_RESNET, TINY_SIGLIP

# What the first released models were described with.
OLDER_IMAGE = (
  'image_size', 'patch_size', 'width', 'depth', 'heads', 'mlp_ratio',
  'activation', 'pooling', 'pre_norm',
)  # fmt: skip
OLDER_TEXT = (
  'vocab_size', 'context_length', 'end_token', 'width', 'depth', 'heads',
  'mlp_ratio', 'activation', 'causal',
)  # fmt: skip


def older(config):
  """A description as it was written before the other fields existed."""
  fields = config.to_dict()
  return {
    'embed_dim': fields['embed_dim'],
    'image': {name: fields['image'][name] for name in OLDER_IMAGE},
    'text': {name: fields['text'][name] for name in OLDER_TEXT},
    'initial_logit_scale': fields['initial_logit_scale'],
  }


@pytest.mark.parametrize('config', [TINY, TINY_RESNET, TINY_SIGLIP])
def test_a_description_survives_json(config):
  again = CLIPConfig.from_dict(json.loads(json.dumps(config.to_dict())))
  assert again == config
  assert hash(again) == hash(config)


def test_an_older_description_means_what_it_meant():
  assert CLIPConfig.from_dict(older(TINY)) == TINY
  image = dataclasses.replace(TINY.image, pooling='average', class_token=False)
  averaged = dataclasses.replace(TINY, image=image)
  assert CLIPConfig.from_dict(older(averaged)) == averaged


def test_a_class_token_beside_an_average_has_to_be_said():
  image = dataclasses.replace(TINY.image, pooling='average', class_token=True)
  config = dataclasses.replace(TINY, image=image)
  assert CLIPConfig.from_dict(config.to_dict()) == config


def without(fields, tower, name):
  group = {k: v for k, v in fields[tower].items() if k != name}
  return {**fields, tower: group}


def test_every_missing_field_is_named():
  fields = TINY.to_dict()
  with pytest.raises(UsageError, match=r'^missing model\.image\.width: say'):
    CLIPConfig.from_dict(without(fields, 'image', 'width'))
  with pytest.raises(UsageError, match=r'^missing model\.text\.end_token: say'):
    CLIPConfig.from_dict(without(fields, 'text', 'end_token'))
  del fields['embed_dim']
  with pytest.raises(UsageError, match=r'^missing model\.embed_dim: say'):
    CLIPConfig.from_dict(fields)
  with pytest.raises(UsageError, match=r'patch_size, model\.image\.width'):
    CLIPConfig.from_dict({'image': {'image_size': 16}})


def test_an_unknown_field_is_named():
  fields = TINY.to_dict()
  for tower, name in (('image', 'model.image'), ('text', 'model.text')):
    wrong = {**fields, tower: {**fields[tower], 'sparkle': 1}}
    with pytest.raises(UsageError, match=f"{name} has no field 'sparkle'"):
      CLIPConfig.from_dict(wrong)
  with pytest.raises(UsageError, match="model has no field 'sparkle'"):
    CLIPConfig.from_dict({**fields, 'sparkle': 1})


def test_a_resnet_with_fields_of_a_vit_says_which_and_what_it_has():
  fields = TINY_RESNET.to_dict()
  wrong = {**fields, 'image': {**fields['image'], 'patch_size': 8, 'depth': 2}}
  with pytest.raises(
    UsageError,
    match='makes a ResNet, which has no patch_size, depth: its fields are '
    'image_size, layers, width, heads',
  ):
    CLIPConfig.from_dict(wrong)


@pytest.mark.parametrize(
  ('tower', 'name', 'value'),
  [('image', 'width', '32'), ('image', 'heads', None), ('text', 'depth', 'x')],
)
def test_a_field_of_another_type_is_one_line(tower, name, value):
  fields = TINY.to_dict()
  wrong = {**fields, tower: {**fields[tower], name: value}}
  with pytest.raises(UsageError, match='does not fit'):
    CLIPConfig.from_dict(wrong)
  for tower in ('image', 'text'):
    with pytest.raises(UsageError, match='does not fit'):
      CLIPConfig.from_dict({**fields, tower: [1]})


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'layers': (1, 1, 1)}, 'give the blocks of four stages'),
    ({'layers': (1, 1, 1, 0)}, 'give the blocks of four stages'),
    ({'width': 3}, 'must be even'),
    ({'width': 0}, 'must be at least 1'),
    ({'heads': 0}, 'must be at least 1'),
    ({'heads': 3}, 'does not split over'),
    ({'image_size': 48}, 'not a multiple of 32'),
  ],
)
def test_a_resnet_that_cannot_be_is_refused(changes, message):
  fields = dict(image_size=32, layers=(1, 1, 1, 1), width=4, heads=4)
  assert ResNetConfig(**fields).patches == 1
  with pytest.raises(UsageError, match=message):
    ResNetConfig(**{**fields, **changes})


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'heads': True}, 'must be a whole number'),
    ({'depth': 10**9}, 'must be at most 1000'),
    ({'width': 10**30}, 'must be at most 65536'),
    ({'image_size': 10**9}, 'must be at most 16384'),
    ({'image_size': 16_000, 'patch_size': 16}, 'makes 1,000,000 patches'),
    ({'mlp_ratio': 1e5}, 'makes an MLP of'),
    ({'norm_eps': float('nan')}, 'must be a number above 0'),
    ({'mlp_ratio': 1e-6}, 'leaves no MLP'),
  ],
)
def test_a_tower_that_cannot_be_is_refused(changes, message):
  with pytest.raises(UsageError, match=message):
    dataclasses.replace(TINY.image, **changes)


def test_numbers_of_another_type_are_refused_where_nothing_else_checks_types():
  # In this process, the type checker of the tests would be first.
  script = """
import dataclasses
from clip_jax.errors import UsageError
from clip_jax.models.presets import find
image = find('ViT-B/32').config.image
for field in dataclasses.fields(image):
  for value in ('x', [], {}, None):
    if field.type in (int, float):
      try:
        dataclasses.replace(image, **{field.name: value})
      except UsageError as error:
        assert f'model.image.{field.name}={value!r} must be a' in str(error)
      else:
        raise AssertionError(field.name)
print('done')
"""
  run = subprocess.run(
    [sys.executable, '-c', script], capture_output=True, text=True
  )
  assert (run.stdout, run.returncode) == ('done\n', 0), run.stderr


@pytest.mark.parametrize(
  'dropout, kept', [(0.0, 49), (0.5, 24), (0.75, 12), (0.99, 1)]
)
def test_patch_dropout_keeps_what_open_clip_keeps(dropout, kept):
  image = presets.resolve('ViT-B/32').image
  assert isinstance(image, VisionTransformerConfig)
  assert image.kept_patches(dropout) == kept


@pytest.mark.parametrize('length', [10**5, 10**7, 10**9])
def test_a_context_whose_mask_would_fill_the_memory_is_refused(length):
  fields = TINY.to_dict()
  fields['text']['context_length'] = length
  with pytest.raises(UsageError, match=r'context_length=.* at most 16384'):
    CLIPConfig.from_dict(fields)


@pytest.mark.parametrize(
  'fields',
  [
    5,
    [],
    {'image': 3, 'text': None},
    {'image': [['width', 'x']]},
    {**TINY.to_dict(), 'initial_logit_bias': 'none'},
    {**TINY.to_dict(), 'initial_logit_bias': float('nan')},
    {**TINY.to_dict(), 'text': [1]},
    {**TINY.to_dict(), 'text': {**TINY.to_dict()['text'], 'causal': 'no'}},
  ],
)
def test_what_is_no_description_is_refused(fields):
  with pytest.raises(UsageError):
    CLIPConfig.from_dict(fields)
