"""A run distils from teachers' stored features of the views that it draws."""

import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from clip_jax.checkpoints.reading import load_variables
from clip_jax.data.pipeline import captioned_sources
from clip_jax.data.sources import open_source
from clip_jax.errors import UsageError
from clip_jax.inference.embed_views import ViewsJob, embed_views
from clip_jax.inference.model import Model
from clip_jax.progress import no_progress
from clip_jax.training.config import (
  check_config,
  preprocessing_of,
  views_of,
  with_defaults,
)
from clip_jax.training.loop import train
from clip_jax.training.metrics import read_metrics
from clip_jax.training.run import (
  augmentation_of,
  complete_config,
  prepare_run,
)
from clip_jax.training.run_summary import describe_run
from clip_jax.training.workdir import open_workdir
from clip_jax.training.writers import default_outputs
from configs import distill_emoji, mobileclip_b16
from tests.tiny import tiny_config, write_pairs
from tests.tiny_run import tiny_description, tiny_model, tiny_params

NO_REPORT = dataclasses.replace(default_outputs(), report=None)


@pytest.fixture(scope='module')
def models():
  """Two teachers, whose images are of the student's size."""
  params = jax.tree.map(lambda x: -x, tiny_params())
  params['logit_scale'] = tiny_params()['logit_scale']
  return tiny_model(), Model(tiny_description(), {'params': params})


@pytest.fixture(scope='module')
def config(tmp_path_factory, models):
  """MobileCLIP's recipe for a tiny student, with both teachers."""
  folder = tmp_path_factory.mktemp('distillation')
  config, recipe = tiny_config(), mobileclip_b16.get_config()
  for name in ('form', 'weight', 'added'):
    config.objective[name] = recipe.objective[name]
  config.data.update(
    train=write_pairs(folder / 'pairs', 16), views=3, view_seed=7
  )
  config.data.augment.update(rotate=15.0, noise=8.0)
  config.data.teachers = tuple(str(folder / x) for x in ('a', 'b'))
  completed = with_defaults(config)
  for model, out in zip(models, config.data.teachers, strict=True):
    job = ViewsJob(
      model=model,
      dtype='float32',
      sources=captioned_sources([open_source(config.data.train)]),
      captions=config.data.captions,
      rule=None,
      views=views_of(config),
      augmentation=augmentation_of(config),
      preprocessing=preprocessing_of(completed, model.config),
      decode='fast',
      max_corrupt=0,
      part_rows=10,
    )
    embed_views(job, folder / out, progress=no_progress, say=lambda line: None)
  return config


def prepared(config, workdir):
  with open_workdir(workdir) as directory:
    return prepare_run(complete_config(config, directory).config)


def test_a_batch_has_what_each_teacher_says_of_its_views(
  config, models, tmp_path
):
  run = prepared(config, tmp_path)
  batches = list(itertools.islice(run.batches(0), 4))
  texts = list(run.sources[0].texts())
  tokens = run.tokenizer(texts)
  for batch in batches:
    captions = [
      texts[int(np.flatnonzero((tokens == row).all(1))[0])]
      for row in batch['tokens']
    ]
    for number, model in enumerate(models):
      np.testing.assert_allclose(
        batch[f'teacher_{number}_images'],
        model.encode_pixels(batch['image']),
        atol=1e-6,
      )
      np.testing.assert_allclose(
        batch[f'teacher_{number}_texts'],
        model.encode_text(captions),
        atol=1e-6,
      )
  # A run that resumes sees the same.
  again = next(run.batches(2))
  for name, array in batches[2].items():
    np.testing.assert_array_equal(again[name], array)


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory):
  """A run of thirty steps, and its workdir."""
  config = config.copy_and_resolve_references()
  config.update(total_steps=30, log_every_steps=1)
  config.checkpoint.every_steps = 20
  config.optimizer.update(learning_rate=1e-2, weight_decay=0.0)
  workdir = tmp_path_factory.mktemp('trained')
  train(config, workdir, NO_REPORT)
  return config, workdir


def test_the_divergence_falls(trained, models):
  config, workdir = trained
  rows = read_metrics(workdir)
  for name in ('loss', 'loss_distillation'):
    losses = [row[f'train/{name}'] for row in rows if f'train/{name}' in row]
    assert len(losses) == config.total_steps
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5]), name
  first = rows[0]
  assert first['train/loss'] == pytest.approx(
    0.25 * first['train/loss_contrastive']
    + 0.75 * first['train/loss_distillation'],
    rel=1e-5,
  )
  saved = json.loads((workdir / 'config.json').read_text())
  np.testing.assert_allclose(
    saved['objective']['teacher_scales'],
    [model.logit_scale for model in models],
    rtol=1e-6,
  )


def test_a_resumed_run_ends_with_the_same_bits(trained, tmp_path):
  config, workdir = trained
  resumed = tmp_path / 'resumed'
  shutil.copytree(workdir, resumed)
  shutil.rmtree(resumed / 'checkpoints/30')
  train(config, resumed, NO_REPORT)
  ours, _, step = load_variables(resumed)
  theirs, _, _ = load_variables(workdir)
  assert step == config.total_steps
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_the_loss_of_the_demos_student_falls(config, tmp_path):
  config = config.copy_and_resolve_references()
  for name, value in distill_emoji.get_config().objective.items():
    config.objective[name] = value
  config.data.teachers = config.data.teachers[:1]
  config.update(total_steps=30, log_every_steps=1)
  config.optimizer.update(learning_rate=1e-2, weight_decay=0.0)
  train(config, tmp_path, NO_REPORT)
  rows = read_metrics(tmp_path)
  for name in ('loss', 'loss_distillation'):
    losses = [row[f'train/{name}'] for row in rows if f'train/{name}' in row]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:2]), name


def test_the_contrastive_loss_can_be_left_out(config, tmp_path):
  config = config.copy_and_resolve_references()
  config.objective.weight = 0.0
  run = prepared(config, tmp_path)
  batch = next(run.batches(0))
  state = run.program.state
  _, metrics = jax.eval_shape(run.program.train_step, state, batch)
  assert 'loss_contrastive' not in metrics


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'objective.added.distillation': 0.0}, 'distillation needs both'),
    ({'data.teachers': ()}, 'distillation needs both'),
    ({'data.views': 0, 'data.view_seed': 0}, r'need data\.views'),
    ({'data.views': -1}, r'data\.views=-1'),
    (
      {'data.sequence_lengths': (4,), 'data.resize_mode': 'native'},
      'have seen squares',
    ),
    ({'objective.teacher_scales': (50.0,)}, r'\(50\.0,\) for 2 data\.teachers'),
    ({'objective.teacher_scales': (50.0, 0.0)}, 'use a number above 0'),
    ({'objective.weight': -1.0}, r'objective\.weight=-1\.0 must be'),
    (
      {
        'objective.weight': 0.0,
        'objective.added.distillation': 0.0,
        'data.teachers': (),
      },
      'leaves no loss that compares images with texts',
    ),
  ],
)
def test_impossible_fields_are_refused(config, changes, message):
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(changes)
  with pytest.raises(UsageError, match=message):
    check_config(config)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'data.augment.rotate': 3.0}, r'data\.augment\.rotate=3.0, 15.0 there'),
    ({'data.view_seed': 8}, r'data\.view_seed=8, 7 there'),
    ({'data.views': 4}, 'has 3 views'),
    ({'data.teachers': ('x', 'y')}, 'x: no features of a teacher'),
  ],
)
def test_teachers_of_something_else_are_refused(
  config, changes, message, tmp_path
):
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(changes)
  with pytest.raises(UsageError, match=message):
    prepared(config, tmp_path)


def test_a_run_says_what_it_learns_from(config, tmp_path):
  run = prepared(config, tmp_path)
  with open_workdir(tmp_path) as workdir:
    lines = describe_run(run, workdir, 0, ['a'], True).splitlines()
  lines = dict(line.split(None, 1) for line in lines)
  folders = ', '.join(config.data.teachers)
  assert lines['views'] == (
    f'3 of each image, as seen by {folders}; logit scales 12.54, 12.54'
  )
  assert lines['model'].endswith('0.25 softmax + 0.75 distillation loss')
