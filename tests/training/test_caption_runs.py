"""Runs that learn captions: the recipes in small, from data to zero-shot."""

import importlib
import json
import re

import numpy as np
import pytest
from PIL import Image

from clip_jax.errors import UsageError
from clip_jax.evaluation import Options, find_evaluator
from clip_jax.evaluation.datasets.opening import open_dataset
from clip_jax.inference.export import export
from clip_jax.inference.loading import load, read_model
from clip_jax.interop.converting import convert
from clip_jax.training.config import check_config, check_objective
from clip_jax.training.loop import train
from clip_jax.training.run import make_model_config
from clip_jax.training.writers import Outputs
from tests.tiny import tiny_config, write_pairs, write_word_tokenizer
from tests.training.logged import losses

COLOURS = {'a red square': 'red', 'blue sky': 'blue', 'a lot of grass': 'green'}
OBJECTIVES = {
  'captioning': {'reads': 'tokens', 'width': 32, 'depth': 1, 'heads': 2},
  'bag_of_words': {'reads': 'pooled_image'},
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('colours')
  rng = np.random.default_rng(0)
  for name, colour in COLOURS.items():
    (folder / name).mkdir()
    for i in range(8):
      pixels = np.asarray(Image.new('RGB', (20, 20), colour), float)
      noisy = np.clip(pixels + rng.normal(0, 30, pixels.shape), 0, 255)
      image = Image.fromarray(noisy.astype(np.uint8))
      image.save(folder / name / f'{i}.png')
  return f'folder:{folder}'


def config_of(data, objective, decoder, **fields):
  config = tiny_config()
  config.total_steps = 40
  config.data.train = data
  config.data.batch_size = 24
  config.objective.name = objective
  config.model.decoder.update(decoder)
  config.optimizer.learning_rate = 5e-3
  config.evaluation.data = data
  config.evaluation.tasks = ('zero_shot',)
  config.evaluation.every_steps = 0
  config.checkpoint.every_steps = 100
  config.update_from_flattened_dict(fields)
  return config


@pytest.mark.slow
@pytest.mark.parametrize('objective', OBJECTIVES)
def test_a_predictive_run_learns_and_classifies(
  objective, data, tmp_path, capsys
):
  config = config_of(data, objective, OBJECTIVES[objective])
  config.tokenizer = write_word_tokenizer(tmp_path / 'tokenizer', COLOURS)
  outcome = train(config, tmp_path / 'run', Outputs())
  logged = [loss for _, loss in losses(tmp_path / 'run')]
  # A bag of three words cannot be told with less than log(3), of log(10).
  assert logged[-1] < 0.6 * logged[0]
  assert outcome.metrics['eval/zero_shot/top1'] == 1.0
  assert not [name for name in outcome.metrics if 'eval/loss' in name]

  model = load(tmp_path / 'run')
  evaluation = find_evaluator('zero_shot')(
    model, open_dataset(data), Options(templates=('{}', '{} '))
  )
  assert evaluation.metrics['top1'] == 1.0
  with pytest.raises(UsageError, match='was trained to predict captions'):
    model.encode_text(['a cat'])
  pixels = np.asarray(Image.new('RGB', (16, 16), 'blue'))
  scores = model.caption_scores([pixels], list(COLOURS))
  assert list(COLOURS)[int(scores.argmax())] == 'blue sky'

  capsys.readouterr()
  loaded = read_model(tmp_path / 'run')
  converted = convert(
    loaded.description, loaded.variables, 'open_clip', tmp_path / 'open_clip'
  )
  assert 'decoder was left out' in ' '.join(converted.differences)
  assert 'not trained' in converted.differences[-1]
  export(model, tmp_path / 'exported', platforms=('cpu',))
  assert capsys.readouterr().err.count('decoder was left out') == 1
  for path in ('open_clip', 'exported'):
    again = load(tmp_path / path)
    assert again.config.decoder is None
    np.testing.assert_allclose(
      again.encode_image([pixels]), model.encode_image([pixels]), atol=1e-5
    )


def coca(**shape):
  """The recipe, with shapes of a few seconds."""
  config = importlib.import_module('configs.coca_base').get_config()
  config.total_steps, config.log_every_steps = 30, 5
  config.model.dtype, config.model.embed_dim = 'float32', 32
  for part in ('image', 'text', 'decoder'):
    config.model[part].update(width=32, depth=2, heads=2)
  config.model.image.update(image_size=16, patch_size=8)
  config.model.text.context_length = 16
  config.tokenizer = 'clip'
  config.data.update(batch_size=24, workers=0)
  config.optimizer.update(learning_rate=3e-3, warmup_steps=3)
  config.evaluation.every_steps = 0
  config.update_from_flattened_dict(shape)
  return config


@pytest.mark.slow
def test_coca_learns_to_compare_and_to_caption(tmp_path):
  config = coca(**{'model.text.context_length': 8, 'data.batch_size': 16})
  config.data.train = data = write_pairs(tmp_path / 'pairs')
  captions = [f'picture number {i}' for i in range(24)]
  config.tokenizer = write_word_tokenizer(tmp_path / 'tokenizer', captions)
  config.objective.micro_batch = 8
  config.total_steps = 60
  train(config, tmp_path / 'run', Outputs())
  rows = [
    json.loads(line)
    for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()
  ]
  rows = [row for row in rows if 'train/loss' in row]
  for name in ('loss', 'loss_contrastive', 'loss_captioning'):
    assert rows[-1][f'train/{name}'] < 0.9 * rows[0][f'train/{name}'], name
  assert rows[0]['train/loss'] == pytest.approx(
    rows[0]['train/loss_contrastive'] + 2 * rows[0]['train/loss_captioning']
  )
  model = load(tmp_path / 'run')
  assert not model.classifies_by_captions
  assert model.encode_text(['a red square']).shape == (1, 32)
  # A caption that it knows is likelier than one that it has never seen.
  image = tmp_path / 'pairs' / '000.png'
  known, other = model.caption_scores([image], ['picture number 0', 'a cat'])[0]
  assert known > other + 1

  # From there, with another objective, the decoder goes or stays.
  tuned = tiny_config()
  tuned.tokenizer = config.tokenizer
  tuned.initialize_from = str(tmp_path / 'run')
  tuned.data.train, tuned.data.batch_size, tuned.total_steps = data, 24, 2
  for part in ('image', 'text'):
    for name in tuned.model[part]:
      tuned.model[part][name] = None
  tuned.model.embed_dim = None
  tuned.optimizer.warmup_steps = 1
  train(tuned, tmp_path / 'plain', Outputs())
  assert load(tmp_path / 'plain').config.decoder is None
  tuned.objective.added.captioning = 1.0
  train(tuned, tmp_path / 'captions', Outputs())
  assert load(tmp_path / 'captions').config.decoder == model.config.decoder


def model_of(config):
  return make_model_config(config, 64, 1, 16)


@pytest.mark.parametrize(
  'objective, decoder, fields, message',
  [
    ('captioning', {}, {}, "objective.name='captioning' needs a decoder: say"),
    (
      'captioning',
      {'reads': 'pooled_image'},
      {},
      "needs model.decoder.reads='tokens' or 'text_tower' or 'image_prefix', "
      "not 'pooled_image'",
    ),
    (
      'bag_of_words',
      OBJECTIVES['captioning'],
      {},
      "needs model.decoder.reads='pooled_image', not 'tokens'",
    ),
    (
      'softmax',
      {},
      {'objective.added.captioning': 2.0},
      'objective.added.captioning=2.0 needs a decoder',
    ),
    ('softmax', {'reads': 'pooled_image'}, {}, 'nothing trains the decoder'),
    (
      'captioning',
      OBJECTIVES['captioning'],
      {'objective.added.captioning': 2.0},
      'terms are added to a contrastive loss',
    ),
    (
      'softmax',
      OBJECTIVES['captioning'],
      {'objective.added.captioning': 1.0, 'objective.weight': 0.0},
      "to predict captions alone, take objective.name='captioning'",
    ),
    (
      'softmax',
      {},
      {'objective.added.captioning': -1.0},
      'objective.added.captioning=-1.0 must be a weight of at least 0',
    ),
    (
      'bag_of_words',
      OBJECTIVES['bag_of_words'],
      {'evaluation.tasks': ('zero_shot', 'retrieval')},
      "trains no text features, which 'retrieval' of evaluation.tasks needs",
    ),
    (
      'bag_of_words',
      OBJECTIVES['bag_of_words'],
      {'checkpoint.best_metric': 'eval/loss/loss'},
      'has no contrastive loss',
    ),
  ],
)
def test_an_objective_and_its_decoder_have_to_fit(
  objective, decoder, fields, message
):
  config = config_of('folder:x', objective, decoder, **fields)
  with pytest.raises(UsageError, match=re.escape(message)):
    check_config(config)
    check_objective(config, model_of(config))


def test_a_predictive_run_says_so_in_its_model():
  config = config_of('folder:x', 'captioning', OBJECTIVES['captioning'])
  assert model_of(config).decoder.only
  assert not model_of(coca()).decoder.only
  assert model_of(tiny_config()).decoder is None
