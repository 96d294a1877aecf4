"""A run that goes on from another model's weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.data.images import Preprocessing
from clip_jax.errors import UsageError
from clip_jax.models.positions import resize_model
from clip_jax.training.initialization import first_state
from clip_jax.training.program import make_program
from tests.tiny import tiny_config
from tests.tiny_run import tiny_description, tiny_params, write_run


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  return str(write_run(tmp_path_factory.mktemp('trained')))


def program_of(image=None, **changes):
  """A run's program for the trained model, with fields of it replaced."""
  model = tiny_description().model
  model = dataclasses.replace(
    model, image=dataclasses.replace(model.image, **(image or {})), **changes
  )
  config = tiny_config()
  config.mesh.fsdp = 2
  size = model.image.image_size
  return make_program(
    config, model, Preprocessing(image_size=size), jax.devices()[:2]
  )


def test_the_weights_are_those_of_the_reference_and_the_rest_is_new(trained):
  program = program_of()
  state = first_state(program, 0, trained)
  jax.tree.map(np.testing.assert_array_equal, state.params, tiny_params())
  assert int(state.step) == 0
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
  assert moments and not any(jnp.any(moment) for moment in moments)
  placed = jax.tree.map(lambda leaf: leaf.sharding, program.state.params)
  assert jax.tree.map(lambda leaf: leaf.sharding, state.params) == placed


def test_positions_are_interpolated_for_larger_pictures(trained):
  state = first_state(program_of(image={'image_size': 32}), 0, trained)
  resized, _ = resize_model(
    {'params': tiny_params()}, tiny_description().model, image_size=32
  )
  assert state.params['image']['position_embedding'].shape == (17, 32)
  jax.tree.map(np.testing.assert_array_equal, state.params, resized['params'])


def test_without_a_reference_the_weights_are_random():
  state = first_state(program_of(), 0, '')
  kernel = state.params['image_projection']['kernel']
  assert not np.allclose(kernel, tiny_params()['image_projection']['kernel'])
  assert np.std(kernel) == pytest.approx(32**-0.5, rel=0.2)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'image': {'depth': 3}}, r'its image.depth is 2, and model.image.depth'),
    ({'image': {'activation': 'gelu'}}, r'its image.activation is quick_gelu'),
    ({'embed_dim': 8}, r'its embed_dim is 16'),
    ({'initial_logit_bias': -10.0}, r'its logit_bias is not there'),
  ],
)
def test_another_model_is_refused_in_one_line(trained, changes, message):
  with pytest.raises(UsageError, match=message):
    first_state(program_of(**changes), 0, trained)


def test_a_reference_to_nothing_is_refused(tmp_path):
  with pytest.raises(UsageError, match='does not exist'):
    first_state(program_of(), 0, str(tmp_path / 'none'))
