"""`models/counting.py` against what is compiled, as MFU takes it: a step costs
three times the forward products."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from clip_jax.data.preprocessing import Preprocessing
from clip_jax.models.config import ResNetConfig
from clip_jax.models.counting import training_flops
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.planning import hlo
from clip_jax.planning.compiling import abstract_batch
from clip_jax.planning.costs import operations
from clip_jax.training.config import check_devices
from clip_jax.training.program import build_train_program
from tests.planning.programs import array, program
from tests.tiny import TINY, tiny_config

BATCH = 8

# A context below 32 tokens has one program on a CPU: with more, the step would
# hold a branch for each text length, and all of them would be counted.
VIT = dataclasses.replace(
  TINY,
  image=dataclasses.replace(
    TINY.image, image_size=64, width=128, depth=3, heads=4
  ),
  text=dataclasses.replace(TINY.text, context_length=24, width=64),
)
# At this size, the taps of its convolutions that meet padding are few.
RESNET = dataclasses.replace(
  VIT,
  image=ResNetConfig(image_size=224, layers=(1, 2, 1, 1), width=8, heads=4),
)
MODELS = {'ViT': VIT, 'ResNet': RESNET}


def flops(result: hlo.HloModule) -> int:
  return sum(o.flops * o.times for o in operations(result))


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_forward_products_are_those_of_the_formula(name):
  model = MODELS[name]
  module = DualEncoder(model)
  size = model.image.image_size
  images = array(BATCH, size, size, 3)
  tokens = array(BATCH, model.text.context_length, dtype=jnp.int32)
  variables = jax.eval_shape(module.init, jax.random.key(0), images, tokens)
  result = program(module.apply, variables, images, tokens)
  expected = BATCH * training_flops(model) / 3
  assert flops(result) == pytest.approx(expected, rel=0.05)


def step_flops(model, remat: str) -> int:
  config = tiny_config()
  config.model.remat = remat
  config.data.batch_size = BATCH
  config.objective.form = 'dense'
  preprocessing = Preprocessing(image_size=model.image.image_size)
  mesh = check_devices(config, jax.devices()[:1])
  made = build_train_program(config, mesh, model, preprocessing)
  batch = abstract_batch(made, model, BATCH)
  compiled = made.train_step.lower(made.state, batch).compile()
  return flops(hlo.parse(compiled.as_text()))


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_a_step_costs_three_times_its_forward_products(name):
  model = MODELS[name]
  expected = BATCH * training_flops(model)
  assert step_flops(model, 'none') == pytest.approx(expected, rel=0.05)


@pytest.mark.slow
def test_full_remat_computes_most_of_the_blocks_again():
  """All products of a block but its last, which no gradient needs."""
  forward = BATCH * training_flops(VIT) / 3
  again = step_flops(VIT, 'full') / forward
  assert 3.5 < again < 3.9
