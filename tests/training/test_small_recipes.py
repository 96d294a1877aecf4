"""Recipes in small that have no other test: the loss of each falls.

Their data are classes of two drawings each, one of which is held out.
"""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from clip_jax.training.loop import train
from clip_jax.training.writers import default_outputs
from configs import finetune, flags, siglip_b16
from tests.tiny import tiny_config, tiny_siglip_config, write_word_tokenizer
from tests.training.logged import losses

NO_REPORT = dataclasses.replace(default_outputs(), report=None)
COLOURS = ('red', 'green', 'blue', 'yellow', 'black')
BY_FAR = 0.3  # where chance is 0.05
CLASSES = [f'{a} over {b}' for a in COLOURS for b in COLOURS if a != b]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A folder of two splits: flags of two stripes, sharp ones and soft ones."""
  folder = tmp_path_factory.mktemp('flags')
  for name in CLASSES:
    upper, lower = name.split(' over ')
    image = Image.new('RGB', (32, 32), lower)
    image.paste(Image.new('RGB', (32, 16), upper))
    soft = image.resize((8, 8), Image.Resampling.BILINEAR)
    for split, drawing in (('train', image), ('test', soft)):
      (folder / split / name).mkdir(parents=True)
      drawing.save(folder / split / name / 'flag.png')
  return f'folder:{folder}'


def shrunken(config, data, **fields):
  """A recipe for these data, of a few seconds."""
  config.update(total_steps=60, log_every_steps=1)
  config.model.dtype = 'float32'
  config.data.update(train=f'{data}#train', batch_size=16, workers=0)
  config.evaluation.update(
    every_steps=0,
    tasks=('zero_shot',),
    data=f'{data}#test',
    train_sample=False,
  )
  config.optimizer.update(learning_rate=3e-3, warmup_steps=5)
  config.update_from_flattened_dict(fields)
  return config


def falls(config, workdir):
  """The first and the last losses of a run, and its outcome."""
  outcome = train(config, workdir, NO_REPORT)
  logged = [loss for _, loss in losses(workdir)]
  assert len(logged) == config.total_steps
  first, last = np.mean(logged[:5]), np.mean(logged[-5:])
  assert last < 0.7 * first
  return first, outcome.metrics['eval/zero_shot/top1']


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
  captions = [f'a photo of the {name} {name}.' for name in CLASSES]
  return write_word_tokenizer(tmp_path_factory.mktemp('words'), captions)


@pytest.fixture(scope='module')
def scratch(data, vocabulary, tmp_path_factory):
  """The run of `configs/flags.py:scratch`, and its first losses."""
  small = {'width': 32, 'depth': 2, 'heads': 2}
  config = shrunken(flags.get_config('scratch'), data, tokenizer=vocabulary)
  config.model.embed_dim = 32
  config.model.image.update(small)
  config.model.text.update(small)
  workdir = tmp_path_factory.mktemp('scratch')
  first, top1 = falls(config, workdir)
  assert top1 > BY_FAR
  return workdir, first


@pytest.mark.slow
def test_flags_are_learned_anew_and_by_a_model_that_has_learned(
  data, vocabulary, scratch, tmp_path
):
  start, first = scratch
  config = shrunken(
    flags.get_config(),
    data,
    **{
      'initialize_from': str(start),
      'tokenizer': vocabulary,
      'total_steps': 20,
      'optimizer.learning_rate': 1e-3,
    },
  )
  outcome = train(config, tmp_path, NO_REPORT)
  logged = [loss for _, loss in losses(tmp_path)]
  assert np.mean(logged[:3]) < 0.5 * first
  assert np.mean(logged[-5:]) < 0.4 * first
  assert outcome.metrics['eval/zero_shot/top1'] > BY_FAR


@pytest.mark.slow
@pytest.mark.parametrize('rank', [0, 4])
def test_prompts_around_classes_fine_tune_a_model(
  rank, data, scratch, tmp_path
):
  """With all parameters, and with low-rank adapters."""
  config = shrunken(
    finetune.get_config(),
    data,
    **{'initialize_from': str(scratch[0]), 'model.lora.rank': rank},
  )
  _, top1 = falls(config, tmp_path / 'run')
  assert top1 > BY_FAR


@pytest.mark.slow
def test_siglip_learns_by_pairs(data, vocabulary, tmp_path):
  config = shrunken(siglip_b16.get_config(), data, tokenizer=vocabulary)
  config.model = tiny_siglip_config().model
  config.data.update(image_size=None, augment=tiny_config().data.augment)
  _, top1 = falls(config, tmp_path / 'run')
  assert top1 > BY_FAR
