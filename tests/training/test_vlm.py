"""The recipe of a vision-language model, shrunken: a decoder reads a CLIP."""

import json
import re

import numpy as np
import pytest

from clip_jax.__main__ import main
from clip_jax.checkpoints.reading import load_variables
from clip_jax.errors import UsageError
from clip_jax.inference.export import export
from clip_jax.inference.loading import load
from clip_jax.models.counting import abstract_variables
from clip_jax.planning.compiling import planned_model
from clip_jax.training.config import (
  check_config,
  check_objective,
  optimizer_fields,
)
from clip_jax.training.loop import train
from clip_jax.training.optimizer import make_optimizer
from clip_jax.training.run import complete_config, make_model_config
from clip_jax.trees import flat
from configs import vlm_emoji
from tests.tiny_run import CAPTIONS, tiny_model, tiny_params, write_run
from tests.training.logged import losses
from tests.training.test_locked_image import write_colours


def recipe(folder, variant='second-to-last block'):
  """The recipe for few images, and the tiny model that is read."""
  c = vlm_emoji.get_config(variant)
  c.initialize_from = str(write_run(folder / 'model'))
  c.total_steps = 100
  c.log_every_steps = 10
  c.model.decoder.update(width=32, depth=1, heads=4)
  c.mesh.cpu_devices = 1
  c.data.train = write_colours(folder / 'colours')
  c.data.batch_size = 16
  c.data.augment.plain = 1.0
  c.optimizer.update(warmup_steps=4, learning_rate=1e-2)
  c.evaluation.data = c.data.train
  c.evaluation.tasks = ('captioning',)
  c.evaluation.every_steps = 0
  return c


@pytest.mark.slow
def test_a_decoder_learns_to_name_what_a_frozen_tower_sees(tmp_path, capsys):
  config = recipe(tmp_path)
  outcome = train(config, tmp_path / 'run')
  lines = capsys.readouterr().err.splitlines()
  logged = [loss for _, loss in losses(tmp_path / 'run')]
  assert logged[-1] < 0.1 * logged[0]
  assert any('the caption decoder begins anew' in line for line in lines)
  assert any('reads tokens after the image' in line for line in lines)

  # Nothing frozen has changed by a bit.
  params = flat(load_variables(tmp_path / 'run')[0]['params'])
  for name, before in flat(tiny_params()).items():
    np.testing.assert_array_equal(params[name], before, err_msg=name)

  model = load(tmp_path / 'run')
  files = sorted((tmp_path / 'colours').glob('*.png'))
  tokens = model.tokenizer(CAPTIONS)  # one is too long for a row
  written = [model.tokenizer.decode(row).strip() for row in tokens]
  right = np.mean(np.array(written) == CAPTIONS)
  assert 0.9 < right < 1
  assert model.caption(files) == written
  assert outcome.metrics['eval/captioning/exact_match'] == right
  scores = model.caption_scores(files, CAPTIONS)
  np.testing.assert_array_equal(scores.argmax(axis=1), np.arange(len(files)))
  np.testing.assert_allclose(
    model.image_tokens(files[:2]), tiny_model().image_tokens(files[:2])
  )

  assert main(['info', f'--model={tmp_path / "run"}', '--json']) == 0
  facts = json.loads(capsys.readouterr().out)
  decoder = sum(v.size for k, v in params.items() if k.startswith('decoder/'))
  assert facts['decoder_parameters'] == decoder
  assert facts['config']['decoder']['image_layer'] == -2
  call = ['eval', '--task=captioning', f'--data={config.data.train}', '--json']
  assert main([*call, f'--model={tmp_path / "run"}']) == 0
  metrics = json.loads(capsys.readouterr().out)['metrics']
  assert metrics['exact_match'] == right
  assert main([*call, f'--model={tmp_path / "model"}']) == 2
  assert 'has no caption decoder' in capsys.readouterr().err

  export(model, tmp_path / 'exported', platforms=('cpu',))
  assert 'decoder was left out' in capsys.readouterr().err
  np.testing.assert_allclose(
    load(tmp_path / 'exported').encode_image(files),
    tiny_model().encode_image(files),
    atol=1e-5,
  )


@pytest.mark.parametrize('variant', vlm_emoji.VARIANTS)
def test_variants_are_runs_that_train_the_decoder_alone(variant):
  config = vlm_emoji.get_config(variant.replace(' ', '_'))
  check_config(config)
  model = planned_model(config)
  check_objective(config, model)
  assert model.decoder.only
  layer = vlm_emoji.VARIANTS[variant]['model.decoder.image_layer']
  assert model.decoder.image_layer == layer
  rule = optimizer_fields(config, model)
  optimizer, _ = make_optimizer(config.total_steps, **rule)
  params = abstract_variables(model)['params']
  partition = optimizer.partition(params)
  assert partition.locked() == ('image', 'text')
  assert set(partition.trained(params)) == {'decoder'}
  assert any(variant in own for own in vlm_emoji.STUDIES.values())


def test_an_unknown_variant_and_a_missing_model_are_refused():
  with pytest.raises(ValueError, match="no variant 'x': one of second-to-"):
    vlm_emoji.get_config('x')
  config = vlm_emoji.get_config()
  config.initialize_from = 'nowhere'
  with pytest.raises(UsageError, match='nowhere'):
    complete_config(config)
  config.model.decoder.image_layer = 4
  message = 'image_layer=4: the image tower has 4 blocks'
  with pytest.raises(UsageError, match=re.escape(message)):
    make_model_config(config, 64, 1, 14)
