"""Recipes state what differs from base.py, and make runs."""

import dataclasses
import importlib
from pathlib import Path

import pytest

from clip_jax.data.augment import Augmentation
from clip_jax.models.config import (
  CLIPConfig,
  DecoderConfig,
  ResNetConfig,
  TextTransformerConfig,
  VisionTransformerConfig,
)
from clip_jax.planning.compiling import planned_model
from clip_jax.planning.topology import parse_topology
from clip_jax.training.config import (
  check_config,
  check_objective,
  with_defaults,
)
from configs import base

ROOT = Path(__file__).parents[1]
RECIPES = sorted(
  path.stem
  for path in (ROOT / 'configs').glob('*.py')
  if path.stem not in ('__init__', 'base', 'paper')
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

  decoder = names(DecoderConfig) - {'only'}  # follows from the objective
  assert set(model.decoder) == decoder


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


# CLIP paper, tables 18 to 20: learning rate, b2, epsilon, image size.
PAPER = {
  'rn50': ('RN50', 5e-4, 0.999, 1e-8, 224),
  'rn101': ('RN101', 5e-4, 0.999, 1e-8, 224),
  'rn50x4': ('RN50x4', 5e-4, 0.999, 1e-8, 288),
  'rn50x16': ('RN50x16', 4e-4, 0.999, 1e-8, 384),
  'rn50x64': ('RN50x64', 3.6e-4, 0.999, 1e-8, 448),
  'vit_b32': ('ViT-B/32', 5e-4, 0.98, 1e-6, 224),
  'vit_b16': ('ViT-B/16', 5e-4, 0.98, 1e-6, 224),
  'vit_l14': ('ViT-L/14', 4e-4, 0.98, 1e-6, 224),
  'vit_l14_336': ('ViT-L/14@336', 2e-5, 0.98, 1e-6, 336),
}


@pytest.mark.parametrize('recipe', PAPER)
def test_recipes_are_the_papers(recipe):
  config = importlib.import_module(f'configs.{recipe}').get_config()
  optimizer = config.optimizer
  assert PAPER[recipe] == (
    config.model.preset,
    optimizer.learning_rate,
    optimizer.b2,
    optimizer.eps,
    config.data.image_size,
  )
  assert (optimizer.weight_decay, optimizer.warmup_steps) == (0.2, 2_000)
  assert (config.data.batch_size, optimizer.schedule) == (32_768, 'cosine')
  assert config.objective.max_logit_scale == 100
  epochs = 1 if recipe == 'vit_l14_336' else 32
  assert config.total_steps == epochs * 400_000_000 // 32_768


@pytest.mark.parametrize(
  'recipe',
  [
    *PAPER,
    'siglip_b16',
    'naflex_b16',
    'siglip2_b16',
    'coca_base',
    'finetune',
    'lit_b16',
    'mobileclip_b16',
    'clipa_h14:pretrain',
    'clipa_h14:finetune',
  ],
)
def test_a_recipe_can_be_laid_out_on_its_topology(recipe):
  """What `plan` compiles, up to the compiler: the model, and the batch."""
  name, _, argument = recipe.partition(':')
  module = importlib.import_module(f'configs.{name}')
  config = module.get_config(argument) if argument else module.get_config()
  config = with_defaults(config)
  topology = parse_topology(module.TOPOLOGY, config.mesh.slices)
  model = planned_model(config)
  check_config(config)
  check_objective(config, model)
  assert config.data.batch_size % topology.chips == 0


def test_siglip_2_has_the_papers_settings():
  """SigLIP 2 (arXiv 2502.14786), sections 2.1 to 2.3, for a ViT-B/16."""
  config = importlib.import_module('configs.siglip2_b16').get_config()
  added, own = config.objective.added, config.objective.self_distillation
  assert config.objective.name == 'sigmoid'
  assert (config.objective.weight, added.captioning) == (1, 1)
  assert added.self_distillation == 0.25
  assert added.masked_prediction == 0.25 * 0.25
  assert (own.begin, own.local_views, own.masked) == (0.8, 8, 0.5)
  assert (config.data.batch_size, config.total_steps) == (32_768, 1_220_703)
  optimizer = config.optimizer
  assert (optimizer.learning_rate, optimizer.warmup_steps) == (1e-3, 20_000)
  assert (optimizer.clip_norm, optimizer.schedule) == (1, 'cosine')
  model = planned_model(with_defaults(config))
  assert (model.image.patches, model.text.context_length) == (256, 64)
  assert model.decoder.depth == model.text.depth // 2
  for name in ('width', 'heads', 'mlp_ratio', 'activation'):
    assert getattr(model.decoder, name) == getattr(model.text, name)


def test_the_second_stage_of_clipa_sees_all_that_the_first_left_out():
  """CLIPA-v2 (arXiv 2306.15658): H/14, as its configs have it."""
  first, second = (
    importlib.import_module('configs.clipa_h14').get_config(stage)
    for stage in ('pretrain', 'finetune')
  )
  sizes = [
    (c.data.image_size, c.model.text.context_length, c.data.batch_size)
    for c in (first, second)
  ]
  assert sizes == [(84, 8, 65_536), (224, 32, 32_768)]
  assert first.optimizer.learning_rate == pytest.approx(2.048e-3)
  assert second.optimizer.learning_rate == pytest.approx(5.12e-5)
  assert planned_model(first).image.patches == 36
  assert (first.total_steps, second.total_steps) == (195_490, 16_000)
  with pytest.raises(ValueError, match='pretrain, finetune'):
    importlib.import_module('configs.clipa_h14').get_config('x')
