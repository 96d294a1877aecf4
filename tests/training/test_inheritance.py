"""A run that goes on from another model: what it takes, and what it refuses."""

import copy
import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from clip_jax.checkpoints.reading import load_variables
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.errors import UsageError
from clip_jax.inference.loading import read_model
from clip_jax.models.config import DecoderConfig
from clip_jax.models.positions import resize_model
from clip_jax.tokenizers import sentence_piece
from clip_jax.training.config import check_devices
from clip_jax.training.inheritance import inherit
from clip_jax.training.loop import train
from clip_jax.training.program import build_train_program
from clip_jax.training.run import complete_config, initial_state, prepare_run
from configs import base
from tests.tiny import TINY_SIGLIP, tiny_config, write_pairs
from tests.tiny_run import (
  CAPTIONS,
  tiny_description,
  tiny_params,
  write_run,
)

NEW = '--config.initialize_new_vocabulary=True'
OWN = '--config.tokenizer=initialize_from'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  return str(write_run(tmp_path_factory.mktemp('trained')))


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  return write_pairs(tmp_path_factory.mktemp('pairs') / 'images')


def fine_tuning(config, trained, pairs=''):
  config.initialize_from = trained
  config.data.train = pairs
  config.data.batch_size = 16
  return config


def start_of(config, stated=(), description=None, **fields):
  """The config of a run that starts from the tiny model, or another."""
  config = copy.deepcopy(config)
  config.update_from_flattened_dict(fields)
  description = description or tiny_description()
  weights = read_model(TRAINED[0])._replace(description=description)
  return inherit(config, description, 'initialize_from=REF', stated, weights)


TRAINED: list[str] = []


@pytest.fixture(autouse=True)
def _trained(trained):
  TRAINED[:] = [trained]


def notes_of(start):
  return '\n'.join(start.notes)


def write_vocabulary(path, captions=CAPTIONS, size=25):
  sentence_piece.train(captions, size, path)
  return f'sentencepiece:{path}'


# The model's shapes, tokenizer and preprocessing.


def test_a_config_that_says_nothing_takes_all(trained, pairs):
  config = fine_tuning(base.get_config(), trained, pairs)
  before = config.to_json_best_effort()
  start = complete_config(config)
  assert config.to_json_best_effort() == before
  assert start.notes == [
    f'initialize_from={trained} (step 7): weights, tokenizer, model and '
    'preprocessing are taken from there.'
  ]
  run = prepare_run(start.config, start.inherited)
  assert run.description == tiny_description()
  recorded = run.config.to_dict()
  assert recorded['tokenizer'] == 'initialize_from'
  assert recorded['model']['image']['width'] == 32
  assert recorded['model']['text']['context_length'] == 16
  assert recorded['data']['background'] == ''
  state = initial_state(run.program, 0, start)
  jax.tree.map(np.testing.assert_array_equal, state.params, tiny_params())
  assert start.weights is None  # not kept while the run lasts


def test_what_is_completed_is_complete(trained, pairs):
  start = complete_config(fine_tuning(base.get_config(), trained, pairs))
  again = complete_config(start.config)
  assert again.config.to_json_best_effort() == (
    start.config.to_json_best_effort()
  )
  assert again.notes == start.notes


def test_preprocessing_is_the_models_where_the_config_is_silent():
  own = Preprocessing(
    image_size=16,
    resize_mode='squash',
    interpolation='bilinear',
    mean=(0.5, 0.5, 0.5),
    std=(0.4, 0.5, 0.6),
    convention='transformers',
    resize_to=20,
  )
  description = dataclasses.replace(tiny_description(), preprocessing=own)
  config = start_of(base.get_config(), description=description).config
  taken = {name: config.data[name] for name in own.to_dict()}
  assert taken == {**own.to_dict(), 'background': '', 'resize_to': (20,)}
  larger = start_of(
    base.get_config(), description=description, **{'data.image_size': 32}
  )
  assert larger.config.data.resize_to == (40,)
  start = start_of(
    base.get_config(),
    description=description,
    **{'data.resize_mode': 'longest'},
  )
  assert start.config.data.resize_mode == 'longest'
  assert start.config.data.mean == (0.5, 0.5, 0.5)
  assert start.config.data.resize_to == ()  # it was the other mode's
  assert "data.resize_mode='longest' (the model had 'squash')" in notes_of(
    start
  )


def test_a_recipe_for_other_shapes_gives_way_with_a_word():
  config = tiny_config()
  config.model.image.update(image_size=64, patch_size=16, width=48, depth=3)
  config.model.text.context_length = 9
  config.data.image_size = 64
  start = start_of(config)
  assert start.config.model.image.width == 32
  assert start.config.model.text.context_length == 16
  assert start.config.data.image_size == 16
  assert (
    'model of other shapes (image.depth=3, image.patch_size=16, image.width=48)'
    in notes_of(start)
  )


def test_a_preset_of_other_shapes_gives_way_too():
  config = base.get_config()
  for preset in ('ViT-B/32', 'RN50'):
    config.model.preset = preset
    start = start_of(config)
    assert start.config.model.preset == ''
    assert start.config.model.image.layers is None
    assert start.config.model.text.context_length == 16
    assert 'model of other shapes' in notes_of(start)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'model.image.depth': 3}, r'its image.depth is 2, and the command line'),
    ({'model.image.activation': 'gelu'}, 'its image.activation is quick_gelu'),
    ({'model.embed_dim': 8}, 'its embed_dim is 16'),
    ({'model.text.vocab_size': 99}, 'its text.vocab_size is 25'),
    ({'model.image.layers': (1, 1, 1, 1)}, 'its image.layers is not there'),
    ({'model.preset': 'ViT-B/32'}, r'\(model.preset=ViT-B/32\): leave that'),
  ],
)
def test_a_command_line_that_contradicts_the_weights_is_refused(
  fields, message
):
  with pytest.raises(UsageError, match=message) as caught:
    start_of(base.get_config(), stated=set(fields), **fields)
  assert '\n' not in str(caught.value)


def test_sizes_are_the_command_lines_then_the_recipes_then_the_models():
  def sizes(**options):
    config = start_of(**options).config
    assert config.data.image_size == config.model.image.image_size
    return config.data.image_size, config.model.text.context_length

  recipe = tiny_config()
  assert sizes(config=base.get_config()) == (16, 16)
  recipe.model.text.context_length = 20
  recipe.data.image_size = recipe.model.image.image_size = 32
  assert sizes(config=recipe) == (32, 20)
  typed = {'data.image_size': 48, 'model.text.context_length': 24}
  assert sizes(config=recipe, stated=set(typed), **typed) == (48, 24)
  typed = {'model.image.image_size': 24}
  assert sizes(config=recipe, stated=set(typed), **typed) == (24, 20)
  typed = {'model.image.image_size': 24, 'data.image_size': 48}
  with pytest.raises(UsageError, match='contradict each other: leave one'):
    sizes(config=recipe, stated=set(typed), **typed)


# Tokenizers are compared by content.


def test_a_recipes_vocabulary_of_the_same_size_is_refused(tmp_path):
  """The fault: it was trained, or taken, under the old weights."""
  config = tiny_config()
  other = [caption.replace('e', 'o') for caption in CAPTIONS]
  path = tmp_path / 'pieces.model'
  config.tokenizer = write_vocabulary(path, other, 25)
  for stated in ((), ('tokenizer',)):
    with pytest.raises(UsageError, match='another vocabulary') as caught:
      start_of(config, stated)
    said = str(caught.value)
    assert str(path) in said and OWN in said and NEW in said
    assert '\n' not in said
  config.tokenizer = 'initialize_from'
  assert start_of(config).inherited == tiny_description()


def test_one_of_the_same_content_is_welcome_wherever_it_is(tmp_path):
  config = tiny_config()
  config.tokenizer = write_vocabulary(tmp_path / 'elsewhere.model')
  start = start_of(config)
  assert start.config.tokenizer == config.tokenizer
  assert 'tokenizer' not in notes_of(start)


def test_a_vocabulary_that_would_be_trained_is_the_models(
  trained, pairs, tmp_path, monkeypatch
):
  """A recipe's relative path, where the command is run for the first time."""
  monkeypatch.chdir(tmp_path)
  config = fine_tuning(tiny_config(), trained, pairs)
  config.tokenizer = 'sentencepiece:runs/pieces.model'
  config.tokenizer_training.vocab_size = 25
  start = complete_config(config)
  assert f'({tmp_path}/runs/pieces.model): the model' in notes_of(start)
  run = prepare_run(start.config, start.inherited)
  assert run.description.tokenizer == tiny_description().tokenizer
  assert not list(tmp_path.iterdir())
  with pytest.raises(UsageError, match=r'no .*/runs/pieces.model\. Leave it'):
    complete_config(config, stated={'tokenizer'})


def test_a_new_vocabulary_begins_anew_on_request(trained, pairs, tmp_path):
  config = fine_tuning(tiny_config(), trained, pairs)
  config.tokenizer = f'sentencepiece:{tmp_path / "pieces.model"}'
  config.tokenizer_training.vocab_size = 24
  config.initialize_new_vocabulary = True
  start = complete_config(config)
  assert 'new vocabulary: the token embedding begins anew' in notes_of(start)
  run = prepare_run(start.config, start.inherited)
  assert run.description.model.text.vocab_size == 24
  params = initial_state(run.program, 0, start).params
  embedding = params['text'].pop('token_embedding')['embedding']
  assert embedding.shape == (24, 32)
  assert np.std(embedding) == pytest.approx(0.02, rel=0.2)
  old = copy.deepcopy(tiny_params())
  del old['text']['token_embedding']
  jax.tree.map(np.testing.assert_array_equal, params, old)


def test_a_new_vocabulary_ends_texts_where_its_end_token_is():
  """Not at the highest id, which ended those of the old one."""
  description = tiny_description()
  text = dataclasses.replace(description.model.text, pooling='highest')
  model = dataclasses.replace(description.model, text=text)
  description = dataclasses.replace(description, model=model)
  config = tiny_config()
  config.update(tokenizer='clip', initialize_new_vocabulary=True)
  assert (
    start_of(config, description=description).config.model.text.pooling == 'end'
  )


def test_a_model_without_a_tokenizer_needs_one_of_its_size(tmp_path):
  description = dataclasses.replace(tiny_description(), tokenizer=None)
  config = tiny_config()
  with pytest.raises(UsageError, match='came without a tokenizer: name'):
    start_of(config, description=description)
  with pytest.raises(UsageError, match='another vocabulary than tokenizer=cl'):
    start_of(config, description=description, tokenizer='clip')
  spec = write_vocabulary(tmp_path / 'pieces.model')
  assert (
    start_of(config, description=description, tokenizer=spec).inherited
    == description
  )


@pytest.mark.parametrize(
  'fields',
  [{'tokenizer': 'initialize_from'}, {'initialize_new_vocabulary': True}],
)
def test_ways_to_start_from_a_model_need_one(fields):
  config = tiny_config()
  config.update(fields)
  with pytest.raises(UsageError, match='name that in initialize_from'):
    complete_config(config)


def test_a_new_vocabulary_has_to_be_named():
  with pytest.raises(UsageError, match='needs the new one: name it in tok'):
    start_of(base.get_config(), initialize_new_vocabulary=True)


# The loss.


def test_a_sigmoid_loss_from_a_softmax_model_starts_its_bias(trained, pairs):
  config = fine_tuning(base.get_config(), trained, pairs)
  config.objective.name = 'sigmoid'
  start = complete_config(config)
  assert 'which a model of the softmax loss has not: it starts at -10' in (
    notes_of(start)
  )
  run = prepare_run(start.config, start.inherited)
  params = initial_state(run.program, 0, start).params
  assert float(params.pop('logit_bias')) == -10
  jax.tree.map(np.testing.assert_array_equal, params, tiny_params())
  config.model.initial_logit_bias = -3.0
  start = complete_config(config)
  assert 'note: the logit bias starts at -3.' in start.notes
  assert start.config.model.initial_logit_bias == -3


def siglip():
  return dataclasses.replace(
    tiny_description(),
    model=dataclasses.replace(
      TINY_SIGLIP, text=dataclasses.replace(TINY_SIGLIP.text, vocab_size=25)
    ),
  )


def test_a_softmax_loss_from_a_sigmoid_model_leaves_its_bias_out():
  start = start_of(base.get_config(), description=siglip())
  assert start.config.model.initial_logit_bias is None
  assert 'has no use for the logit bias' in notes_of(start)
  goes_on = start_of(
    base.get_config(), description=siglip(), **{'objective.name': 'sigmoid'}
  )
  assert goes_on.config.model.initial_logit_bias == -10
  assert 'bias' not in notes_of(goes_on)


def test_the_bias_that_is_left_out_is_not_in_the_state(pairs):
  start = start_of(
    base.get_config(), **{'data.train': pairs, 'data.batch_size': 16}
  )
  weights = start.weights
  params = {**weights.variables['params'], 'logit_bias': np.float32(-9)}
  start.weights = weights._replace(variables={'params': params})
  run = prepare_run(start.config, start.inherited)
  assert 'logit_bias' not in initial_state(run.program, 0, start).params


def test_a_logit_scale_above_the_limit_is_said():
  assert 'logit scale' not in notes_of(start_of(base.get_config()))
  start = start_of(base.get_config(), **{'objective.max_logit_scale': 5.0})
  assert 'falls to objective.max_logit_scale=5 at the first step' in (
    notes_of(start)
  )


@pytest.mark.parametrize(('stated', 'scale'), [((), None), ((1,), 20.0)])
def test_an_initial_scale_counts_where_the_command_line_says_it(
  pairs, stated, scale
):
  name = 'model.initial_logit_scale'
  fields = {name: 20.0, 'data.train': pairs, 'data.batch_size': 16}
  start = start_of(base.get_config(), [name for _ in stated], **fields)
  run = prepare_run(start.config, start.inherited)
  actual = initial_state(run.program, 0, start).params['logit_scale']
  expected = np.log(scale) if scale else tiny_params()['logit_scale']
  assert float(actual) == pytest.approx(float(expected))


# The state.


def program_of(image_size=16, context_length=16, **changes):
  """A run's program for the trained model, with fields of it replaced."""
  model = tiny_description().model
  model = dataclasses.replace(
    model,
    image=dataclasses.replace(model.image, image_size=image_size),
    text=dataclasses.replace(model.text, context_length=context_length),
    **changes,
  )
  config = tiny_config()
  config.mesh.fsdp = 2
  return build_train_program(
    config,
    check_devices(config, jax.devices()[:2]),
    model,
    Preprocessing(image_size=image_size),
  )


def test_the_weights_are_those_of_the_reference_and_the_rest_is_new():
  program = program_of()
  state = initial_state(program, 0, start_of(base.get_config()))
  jax.tree.map(np.testing.assert_array_equal, state.params, tiny_params())
  assert int(state.step) == 0
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
  assert moments and not any(jnp.any(moment) for moment in moments)
  placed = jax.tree.map(lambda leaf: leaf.sharding, program.state.params)
  assert jax.tree.map(lambda leaf: leaf.sharding, state.params) == placed


def test_image_positions_are_interpolated_for_larger_images():
  start = start_of(base.get_config(), **{'data.image_size': 32})
  assert 'its image positions are interpolated' in notes_of(start)
  state = initial_state(program_of(image_size=32), 0, start)
  resized, _ = resize_model(
    {'params': tiny_params()}, tiny_description().model, image_size=32
  )
  assert state.params['image']['position_embedding'].shape == (17, 32)
  jax.tree.map(np.testing.assert_array_equal, state.params, resized['params'])


def test_text_positions_are_kept_and_new_ones_appended():
  start = start_of(base.get_config(), **{'model.text.context_length': 21})
  assert (
    'its 16 text positions are kept, and 5 new ones, copies of the last'
    in notes_of(start)
  )
  state = initial_state(program_of(context_length=21), 0, start)
  positions = state.params['text']['position_embedding']
  old = tiny_params()['text']['position_embedding']
  np.testing.assert_array_equal(positions[:16], old)
  np.testing.assert_array_equal(positions[16:], np.repeat(old[-1:], 5, axis=0))


def test_text_positions_are_interpolated_on_request():
  start = start_of(
    base.get_config(),
    initialize_text_positions='interpolate',
    **{'model.text.context_length': 21},
  )
  assert 'interpolated, so that all of them move' in notes_of(start)
  state = initial_state(program_of(context_length=21), 0, start)
  old = tiny_params()['text']['position_embedding']
  positions = state.params['text']['position_embedding']
  assert np.abs(positions[1:16] - old[1:]).max() > 0.01


def test_without_a_reference_the_weights_are_random():
  state = initial_state(program_of(), 0)
  kernel = state.params['image_projection']['kernel']
  assert not np.allclose(kernel, tiny_params()['image_projection']['kernel'])
  assert np.std(kernel) == pytest.approx(32**-0.5, rel=0.2)


def test_arrays_of_other_shapes_are_refused_in_one_line():
  """Where a description does not say what the arrays are."""
  with pytest.raises(UsageError, match=r'its image_projection/kernel is \['):
    initial_state(program_of(embed_dim=8), 0, start_of(base.get_config()))


def test_a_reference_to_nothing_is_refused(tmp_path):
  config = fine_tuning(base.get_config(), str(tmp_path / 'none'))
  with pytest.raises(UsageError, match='does not exist'):
    complete_config(config)


# The whole of it.


@pytest.mark.slow
def test_a_run_goes_on_when_its_model_is_gone(tmp_path, pairs, capsys):
  """With the same bits, and config.json says what ran."""

  def config(steps):
    c = fine_tuning(base.get_config(), str(tmp_path / 'model'), pairs)
    c.total_steps = steps
    c.optimizer.update(schedule='constant', warmup_steps=1)
    c.checkpoint.every_steps = 2
    c.model.text.context_length = 18
    return c

  stated = ('model.text.context_length', 'total_steps')
  write_run(tmp_path / 'model')
  train(config(6), tmp_path / 'whole', stated=stated)
  said = capsys.readouterr().err
  assert '(step 7): weights, tokenizer, model and preprocessing' in said
  assert 'its 16 text positions are kept' in said
  train(config(3), tmp_path / 'parts', stated=stated)
  (tmp_path / 'model').rename(tmp_path / 'gone')
  capsys.readouterr()
  train(config(6), tmp_path / 'parts', stated=stated)
  said = capsys.readouterr().err
  assert 'total_steps raised from 3 to 6: the learning rate stays' in said
  assert 'are taken from there' not in said
  (ours, description, step), (theirs, _, _) = (
    load_variables(tmp_path / name) for name in ('parts', 'whole')
  )
  assert step == 6
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  assert description.tokenizer == {
    **tiny_description().tokenizer,
    'context_length': 18,
  }
  recorded = json.loads((tmp_path / 'parts' / 'config.json').read_text())
  assert recorded['total_steps'] == 6
  assert recorded['model']['image']['width'] == 32
  assert recorded['tokenizer'] == 'initialize_from'
  ConfigDict(recorded)
  other = config(6)
  other.model.text.context_length = 20
  with pytest.raises(UsageError, match=re.escape('context_length=20 (the run')):
    train(other, tmp_path / 'parts', stated=stated)
  # A directory that has lost its config.json, and with it the older schedule.
  (tmp_path / 'parts' / 'config.json').unlink()
  with pytest.raises(UsageError, match='step 6, beyond total_steps=2'):
    train(config(2), tmp_path / 'parts', stated=stated)
  assert not (tmp_path / 'parts' / 'config.json').exists()


def test_a_caption_decoder_is_kept_where_captions_are_trained():
  own = DecoderConfig('text_tower', width=32, depth=2, heads=4)
  described = tiny_description()
  found = dataclasses.replace(
    described, model=dataclasses.replace(described.model, decoder=own)
  )
  captioning = {'objective.added.captioning': 1.0}
  start = start_of(base.get_config(), description=found)
  assert start.config.model.decoder.reads is None
  assert "the model's caption decoder is left out" in notes_of(start)
  start = start_of(base.get_config(), description=found, **captioning)
  assert start.config.model.decoder.depth == 2
  assert not start.reinitialized
  with pytest.raises(UsageError, match=r'whose depth is 2, and the config'):
    start_of(
      base.get_config(),
      description=found,
      **captioning,
      **{'model.decoder.depth': 1},
    )
  new = {'model.decoder.reads': 'tokens', 'model.decoder.depth': 1}
  start = start_of(base.get_config(), **captioning, **new)
  assert start.reinitialized == {'decoder'}
  assert 'the caption decoder begins anew' in notes_of(start)
