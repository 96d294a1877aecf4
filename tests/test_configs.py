"""Recipes state what differs from base.py, and make runs."""

import dataclasses
import importlib
from pathlib import Path

import pytest

from clip_jax.data.augment import Augmentation
from clip_jax.models.config import (
  CLIPConfig,
  ResNetConfig,
  TextTransformerConfig,
  VisionTransformerConfig,
)
from configs import base

ROOT = Path(__file__).parents[1]
RECIPES = sorted(
  path.stem
  for path in (ROOT / 'configs').glob('*.py')
  if path.stem not in ('__init__', 'base')
)


def names(cls):
  return {field.name for field in dataclasses.fields(cls)}


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_recipe_has_the_fields_of_base(recipe):
  config = importlib.import_module(f'configs.{recipe}').get_config()
  assert set(config) == set(base.get_config())
  for group in ('model', 'data', 'objective', 'optimizer', 'mesh'):
    assert set(config[group]) == set(base.get_config()[group])


def test_base_has_every_field_of_the_model():
  model = base.get_config().model
  tokenizers_own = {'end_token'}
  towers = names(VisionTransformerConfig) | names(ResNetConfig)
  assert set(model.image) == towers
  assert set(model.text) == names(TextTransformerConfig) - tokenizers_own
  assert set(model) >= names(CLIPConfig)


def test_base_has_every_augmentation_with_its_default():
  expected = Augmentation().to_dict()
  assert base.get_config().data.augment.to_dict() == expected


def test_base_is_the_papers_recipe_for_a_vit():
  """CLIP paper, table 18, and section 2.5."""
  optimizer = base.get_config().optimizer
  assert optimizer.weight_decay == 0.2
  assert optimizer.warmup_steps == 2_000
  assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.98, 1e-6)
  assert optimizer.schedule == 'cosine'
