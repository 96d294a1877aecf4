"""Training on images of native aspect: the recipe, steps, resuming."""

import dataclasses
import functools
import importlib
import math

import jax
import numpy as np
import pytest
from PIL import Image

from clip_jax.data.preprocessing import Preprocessing
from clip_jax.errors import UsageError
from clip_jax.inference.model import Model
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.objectives.objective import make_objective
from clip_jax.objectives.registry import make_loss
from clip_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh
from clip_jax.training.config import (
  check_config,
  preprocessing_of,
  with_defaults,
)
from clip_jax.training.inheritance import inherit
from clip_jax.training.optimizer import make_optimizer
from clip_jax.training.program import jit_train_step
from clip_jax.training.run import initial_state, prepare_run
from clip_jax.training.state import abstract_state, sharded_init
from clip_jax.training.step import make_train_step
from configs import base
from tests.tiny import (
  TINY_SIGLIP,
  tiny_config,
  tiny_siglip_config,
  write_word_tokenizer,
)

SIZES = ((8, 8), (40, 8), (8, 40), (24, 24), (60, 16), (16, 60))
COLOURS = {'red': (220, 30, 30), 'green': (30, 200, 30), 'blue': (30, 30, 220)}


def write_shapes(folder):
  """Images of several shapes in three colours, with captions."""
  folder.mkdir()
  for i, size in enumerate(SIZES * 3):
    name = list(COLOURS)[i // len(SIZES)]
    Image.new('RGB', size, COLOURS[name]).save(folder / f'{i}.png')
    (folder / f'{i}.txt').write_text(f'{name} {size[0]} by {size[1]}')
  return f'folder:{folder}'


@functools.cache
def tiny_recipe():
  """The recipe, shrunken to a few seconds."""
  recipe = importlib.import_module('configs.naflex_b16').get_config()
  recipe.model = tiny_siglip_config().model
  recipe.model.image.update(image_size=16, patch_size=4)
  recipe.tokenizer = 'clip'
  recipe.total_steps = 40
  recipe.data.update(batch_size=16, sequence_lengths=(6, 16), workers=0)
  recipe.objective.update(micro_batch=0)
  recipe.optimizer.update(learning_rate=3e-3, warmup_steps=2)
  return recipe


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  config, folder = tiny_recipe(), tmp_path_factory.mktemp('data')
  config.data.train = write_shapes(folder / 'shapes')
  captions = [path.read_text() for path in folder.glob('shapes/*.txt')]
  config.tokenizer = write_word_tokenizer(folder / 'tokenizer', captions)
  return prepare_run(with_defaults(config))


def train(run, state, first, last):
  """The state after steps first + 1 to last, and their losses."""
  batches, losses = run.batches(first), []
  split = batch_sharding(run.program.mesh)
  for _ in range(first, last):
    batch = jax.device_put(dict(next(batches)), split)
    state, metrics = run.program.train_step(state, batch)
    losses.append(float(metrics['loss']))
  batches.close()
  return state, losses


@pytest.mark.slow
def test_the_recipe_learns_with_a_program_a_length_and_resumes_exactly(run):
  state, losses = train(run, initial_state(run.program, seed=0), 0, 30)
  middle, placed = (
    jax.device_get(state),
    jax.tree.map(lambda x: x.sharding, state),
  )
  assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
  assert run.program.train_step._cache_size() == 2
  whole, rest = train(run, state, 30, 36)
  resumed = jax.device_put(jax.tree.map(np.array, middle), placed)
  again, same = train(run, resumed, 30, 36)
  assert rest == same
  jax.tree.map(np.testing.assert_array_equal, whole.params, again.params)
  # What it learned is used on images of any shape.
  model = Model(run.description, whole.variables)
  assert model.preprocessing.max_patches == 16
  images = [Image.new('RGB', (33, 9), colour) for colour in COLOURS.values()]
  texts = [f'{name} 40 by 8' for name in COLOURS]
  assert model.classify(images, texts).argmax(1).tolist() == [0, 1, 2]


def native_batch(length=6):
  rng = np.random.default_rng(0)
  tokens = rng.integers(2, 64, (16, 8), dtype=np.int32)
  tokens[:, -1] = 1
  grids = np.int32([(1, 1), (2, 3), (5, 1), (2, 2)] * 4)
  pixels = rng.integers(0, 256, (16, length, 8, 8, 3), dtype=np.uint8)
  return {'image': pixels, 'grid': grids, 'tokens': tokens}


def one_step(sizes, **options):
  """The metrics and the parameters of a step on a mesh."""
  mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
  module = DualEncoder(TINY_SIGLIP)
  optimizer, schedule = make_optimizer(100, **tiny_config().optimizer)
  step = jit_train_step(
    make_train_step(
      module,
      optimizer,
      schedule,
      make_objective(make_loss('sigmoid', 'ring', mesh, BATCH_AXES, 2)),
      Preprocessing.native(8, 6),
      mesh,
      **options,
    ),
    abstract_state(module, optimizer, mesh),
    mesh,
  )
  state = sharded_init(module, optimizer, mesh, seed=3)
  batch = jax.device_put(native_batch(), batch_sharding(mesh))
  state, metrics = step(state, batch)
  return {name: float(x) for name, x in metrics.items()}, state.params


@pytest.mark.slow
@pytest.mark.parametrize(
  ('sizes', 'options'),
  [
    ((8, 1, 1), {}),
    ((2, 2, 2), {'micro_batch': 8}),
    ((1, 1, 1), {'micro_batch': 4}),
  ],
)
def test_meshes_and_micro_batches_train_as_one_device(sizes, options):
  """With patch dropout, whose draws are replayed."""
  expected, params = one_step((1, 1, 1), patch_dropout=0.4)
  metrics, ours = one_step(sizes, patch_dropout=0.4, **options)
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=2e-4, err_msg=name)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), ours, params
  )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(sequence_lengths=(16, 0)), 'give different numbers of patches'),
    (dict(sequence_lengths=(16, 16)), 'give different numbers of patches'),
    (dict(resize_mode='squash'), "'native' and lengths; squares have neither"),
    (dict(sequence_lengths=(), resize_mode='native'), 'squares have neither'),
  ],
)
def test_impossible_lengths_are_refused_in_a_line(fields, message):
  config = tiny_recipe().copy_and_resolve_references()
  config.data.update(train='folder:x', **fields)
  with pytest.raises(UsageError, match=message):
    check_config(with_defaults(config))


def test_a_decoder_that_would_read_padding_is_refused(run):
  config = tiny_recipe().copy_and_resolve_references()
  config.data.train = run.config.data.train
  config.model.decoder.update(reads='text_tower', width=32, depth=1, heads=4)
  config.objective.added.captioning = 1.0
  config.model.text.causal = True
  with pytest.raises(UsageError, match='would read the padding'):
    prepare_run(with_defaults(config))


@pytest.mark.parametrize(
  ('given', 'lengths'), [(None, (16,)), ((4, 9), (4, 9)), ((), ())]
)
def test_lengths_that_are_left_open_are_those_of_the_model(run, given, lengths):
  config = base.get_config()
  config.data.sequence_lengths = given
  if given == ():
    config.data.resize_mode = 'squash'
  start = inherit(config, run.description, 'a model of native aspect')
  data = start.config.data
  assert data.sequence_lengths == lengths
  assert data.resize_mode == ('native' if lengths else 'squash')
  assert data.interpolation == 'bilinear'
  check_config(start.config)


def test_a_model_of_squares_goes_on_with_native_aspect(run):
  squares = dataclasses.replace(
    run.description, preprocessing=Preprocessing(16, resize_mode='squash')
  )
  config = base.get_config()
  config.data.sequence_lengths = (4, 9)
  start = inherit(config, squares, 'a model of squares')
  preprocessing = preprocessing_of(start.config, run.description.model)
  assert preprocessing == Preprocessing.native(4, 9)
