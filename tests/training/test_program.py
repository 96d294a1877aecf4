"""The compiled step: what travels between devices, and what is refused."""

import re

import jax
import jax.numpy as jnp
import pytest

from clip_jax.data.preprocessing import Preprocessing
from clip_jax.errors import UsageError
from clip_jax.parallel.mesh import batch_sharding
from clip_jax.training.config import check_config, check_devices
from clip_jax.training.program import build_train_program
from tests.tiny import TINY, TINY_RESNET, tiny_config

BATCH = 48  # no other axis of a tiny model is 48, 24, 12 or 6


def build(config, model):
  """Checks the config, and builds its program."""
  check_config(config)
  preprocessing = Preprocessing(image_size=model.image.image_size)
  mesh = check_devices(config)
  return build_train_program(config, mesh, model, preprocessing)


def compiled_text(model, **sizes):
  """The optimized program of a step on eight devices."""
  config = tiny_config()
  config.data.batch_size = BATCH
  config.mesh.update(sizes)
  size, length = model.image.image_size, model.text.context_length
  program = build(config, model)
  batch = {
    name: jax.ShapeDtypeStruct(
      shape, dtype, sharding=batch_sharding(program.mesh)
    )
    for name, shape, dtype in (
      ('image', (BATCH, size, size, 3), jnp.uint8),
      ('tokens', (BATCH, length), jnp.int32),
    )
  }
  return program.train_step.lower(program.state, batch).compile().as_text()


def exchanged(text):
  """Shapes of all that devices send each other."""
  ops = 'all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute'
  results = re.findall(rf' = (.+?) (?:{ops})(?:-start)?\(', text)
  return [
    tuple(map(int, dims.split(',')))
    for result in results
    for dims in re.findall(r'\w+\[([\d,]+)\]', result)
  ]


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [{'fsdp': 8}, {'data': 2, 'fsdp': 4}])
def test_parameters_travel_and_activations_stay(sizes):
  shapes = exchanged(compiled_text(TINY, **sizes))
  pairs = {BATCH, BATCH // 2, BATCH // 4, BATCH // 8}
  # Two axes of features and of ids, which the loss and the table need.
  assert not [x for x in shapes if len(x) > 2 and x[0] in pairs]
  width = TINY.image.width
  assert any(width in shape and 4 * width in shape for shape in shapes)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'mesh.fsdp': 3}, 'does not fit 8 devices'),
    ({'mesh.slices': 3}, 'mesh.slices=3 does not divide 8 devices'),
    ({'data.batch_size': 12}, 'use a multiple of 8, such as 16'),
    ({'objective.micro_batch': 32}, 'must divide data.batch_size=16'),
    ({'objective.form': 'ring', 'objective.chunk': 3, 'data.batch_size': 64},
     'objective.chunk=3 does not divide the 8 pairs of a device: 2 does'),
    ({'objective.name': 'sigmoid'}, 'needs a bias'),
    ({'objective.max_logit_scale': -1.0}, 'or 0 for no limit'),
    ({'model.patch_dropout': 1.0}, 'must be at least 0 and below 1'),
    ({'optimizer.nu_dtype': 'int8'}, "optimizer.nu_dtype='int8'"),
  ],
)  # fmt: skip
def test_what_cannot_work_is_one_line_before_anything_is_made(changes, message):
  config = tiny_config()
  config.update_from_flattened_dict(changes)
  with pytest.raises(UsageError, match=re.escape(message)) as caught:
    build(config, TINY)
  assert '\n' not in str(caught.value)


def test_patches_of_a_resnet_are_not_left_out():
  config = tiny_config()
  config.model.patch_dropout = 0.5
  with pytest.raises(UsageError, match='is for a ViT'):
    build(config, TINY_RESNET)
