"""The late part of SigLIP 2: its begin, its teacher, and what it leaves."""

import functools
import json
import math
import re
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from clip_jax.checkpoints.reading import load_variables, restore_numpy
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.errors import UsageError
from clip_jax.inference.export import export
from clip_jax.inference.loading import load
from clip_jax.parallel.mesh import batch_sharding
from clip_jax.training.config import check_config, check_devices
from clip_jax.training.loop import train
from clip_jax.training.program import build_train_program
from clip_jax.training.state import sharded_init
from clip_jax.training.writers import Outputs
from clip_jax.trees import flat
from configs import siglip2_b16
from tests.tiny import (
  TINY,
  TINY_RESNET,
  TINY_SIGLIP,
  tiny_siglip_config,
  write_pairs,
  write_word_tokenizer,
)
from tests.training.test_step import tiny_batch

BEGIN, TOTAL = 2, 10
DECAY, CENTRE_DECAY = 0.75, 0.5


def config_of(**fields):
  """A tiny run whose teacher begins after two steps."""
  config = tiny_siglip_config()
  config.total_steps = TOTAL
  config.objective.name = 'sigmoid'
  config.objective.added.update(self_distillation=1.0, masked_prediction=0.5)
  config.objective.self_distillation.update(
    begin=BEGIN / TOTAL,
    local_views=2,
    local_size=8,
    hidden=16,
    features=8,
    prototypes=32,
    teacher_decay=DECAY,
    centre_decay=CENTRE_DECAY,
  )
  config.update_from_flattened_dict(fields)
  return config


def build(config, model=TINY_SIGLIP):
  check_config(config)
  size = model.image.image_size
  mesh = check_devices(config, jax.devices()[: config.mesh.cpu_devices])
  return build_train_program(config, mesh, model, Preprocessing(size))


@functools.cache
def steps(micro_batch=0, devices=1):
  """The states of four steps, as numpy arrays, and the metrics of each."""
  program = build(
    config_of(
      **{'objective.micro_batch': micro_batch, 'mesh.cpu_devices': devices}
    )
  )
  state = sharded_init(program.module, program.optimizer, program.mesh, seed=3)
  states, metrics = [jax.tree.map(np.array, state)], []
  for done in range(4):
    batch = jax.device_put(tiny_batch(done), batch_sharding(program.mesh))
    state, measured = program.step_after(done)(state, batch)
    states.append(jax.tree.map(np.array, state))
    metrics.append({name: float(value) for name, value in measured.items()})
  return states, metrics


def heads(tree):
  return {k: v for k, v in flat(tree).items() if 'self_distillation/' in k}


@pytest.mark.slow
def test_nothing_is_computed_or_changed_before_the_teacher_begins():
  states, metrics = steps()
  for state, measured in zip(states[1:], metrics[:BEGIN], strict=False):
    assert not [name for name in measured if name.startswith('loss_')]
    for name, value in heads(state.params).items():
      np.testing.assert_array_equal(value, heads(states[0].params)[name])
    for value in heads(state.opt_state).values():
      assert not value.any()
    jax.tree.map(
      np.testing.assert_array_equal, state.teacher, states[0].teacher
    )
  for measured in metrics[BEGIN:]:
    assert {name for name in measured if name.startswith('loss_')} == {
      'loss_contrastive', 'loss_self_distillation', 'loss_masked_prediction',
    }  # fmt: skip
    assert measured['loss'] == pytest.approx(
      measured['loss_contrastive']
      + measured['loss_self_distillation']
      + 0.5 * measured['loss_masked_prediction']
    )


@pytest.mark.slow
def test_the_teacher_begins_as_the_student_and_follows_it():
  states, _ = steps()
  expected = flat(states[BEGIN].params)
  for state in states[BEGIN + 1 :]:
    for name, new in flat(state.params).items():
      expected[name] = DECAY * expected[name] + (1 - DECAY) * new
    teacher = flat(state.teacher['params'])
    assert {name.split('/')[0] for name in teacher} == {
      'image', 'self_distillation',
    }  # fmt: skip
    for name, mean in teacher.items():
      np.testing.assert_allclose(mean, expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_the_centre_is_a_running_mean_of_cosines():
  first, second = (state.teacher['centre'] for state in steps()[0][-2:])
  for head, centre in first.items():
    # First a mean of cosines itself, then half of it and half of another.
    assert 0.1 < np.abs(centre).max() <= 1
    assert not np.allclose(centre, second[head])
    assert np.abs(2 * second[head] - centre).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize('micro_batch, devices', [(4, 1), (8, 8)])
def test_micro_batches_and_devices_change_nothing(micro_batch, devices):
  expected, metrics = steps()
  states, measured = steps(micro_batch, devices)
  for ours, theirs in zip(measured, metrics, strict=True):
    for name, value in theirs.items():
      np.testing.assert_allclose(ours[name], value, rtol=2e-4, err_msg=name)
  for ours, theirs in zip(
    jax.tree.leaves(states[-1].teacher),
    jax.tree.leaves(expected[-1].teacher),
    strict=True,
  ):
    np.testing.assert_allclose(ours, theirs, atol=3e-4)


@pytest.mark.slow
def test_a_skipped_step_leaves_the_teacher_as_it_was():
  """Also the first one, which copies the student."""
  program = build(config_of())
  states, _ = steps()
  for done in (BEGIN, BEGIN + 1):
    state = states[done]
    text = jax.tree.map(
      lambda x: np.full_like(x, np.nan), state.params['text_projection']
    )
    broken = {**state.params, 'text_projection': text}
    shardings = jax.tree.map(lambda x: x.sharding, program.state)
    given = jax.device_put(state.replace(params=broken), shardings)
    result, metrics = program.step_after(done)(given, tiny_batch(done))
    assert metrics['skipped'] == 1.0
    wanted = state.teacher['params']
    if done == BEGIN:
      wanted = {
        part: {k: state.params[part][k] for k in wanted[part]}
        for part in wanted
      }
    jax.tree.map(
      np.testing.assert_array_equal, result.teacher['params'], wanted
    )


def test_a_teacher_that_begins_at_once_has_one_program():
  program = build(config_of(**{'objective.self_distillation.begin': 0.0}))
  assert program.later is None
  assert program.step_after(0) is program.step_after(5)


@pytest.mark.parametrize('term', ['self_distillation', 'masked_prediction'])
def test_one_term_alone_has_one_head(term):
  other = {'self_distillation', 'masked_prediction'} - {term}
  program = build(config_of(**{f'objective.added.{other.pop()}': 0.0}))
  own = program.state.params['self_distillation']
  is_patches = term == 'masked_prediction'
  wanted = {'patch_head', 'mask_embedding'} if is_patches else {'image_head'}
  assert set(own) == wanted
  assert len(program.state.teacher['centre']) == 1
  batch = tiny_batch(0)
  program.step_after(BEGIN).lower(program.state, batch)


@pytest.mark.parametrize(
  'fields, model, message',
  [
    (
      {'objective.name': 'softmax'},
      TINY_RESNET,
      'is for a ViT, and the image tower is a ResNet',
    ),
    (
      {'objective.self_distillation.local_size': 20},
      TINY_SIGLIP,
      'local_size=20 must be a multiple of model.image.patch_size=8, such as '
      '16',
    ),
    (
      {'objective.self_distillation.begin': 1.0},
      TINY,
      'objective.self_distillation.begin=1.0 must be at least 0 and below 1',
    ),
    (
      {'objective.weight': 0.0},
      TINY,
      'objective.weight=0 leaves no loss that compares images with texts',
    ),
    (
      {'objective.name': 'captioning'},
      TINY,
      'terms are added to a contrastive loss',
    ),
    (
      {'data.sequence_lengths': (4, 8), 'data.resize_mode': 'native'},
      TINY_SIGLIP,
      'makes crops of squares, and data.sequence_lengths=(4, 8) patches',
    ),
  ],
)
def test_what_cannot_work_is_one_line(fields, model, message):
  with pytest.raises(UsageError, match=re.escape(message)) as caught:
    build(config_of(**fields), model)
  assert '\n' not in str(caught.value)


# Whole runs of the recipe, shrunken.


def recipe(data, tokenizer, **fields):
  """SigLIP 2's, with shapes of a few seconds and half of its steps late."""
  config = siglip2_b16.get_config()
  config.total_steps, config.log_every_steps = 40, 1
  config.model.preset, config.model.dtype = '', 'float32'
  config.model.update(
    embed_dim=32, initial_logit_scale=10.0, initial_logit_bias=-10.0,
    remat='none',
  )  # fmt: skip
  for part in ('image', 'text', 'decoder'):
    config.model[part].update(width=32, depth=1, heads=2)
  config.model.image.update(
    patch_size=8, pooling='attention', class_token=False, pre_norm=False,
    projection='none',
  )  # fmt: skip
  config.model.text.update(context_length=8, pooling='last', causal=False)
  config.tokenizer = tokenizer
  config.data.update(batch_size=16, workers=0, image_size=16, train=data)
  # A ring's program of several CPU devices cannot be read from the compilation
  # cache, which `use_cpu_devices` explains.
  config.objective.form = 'all_gather'
  config.objective.self_distillation.update(
    begin=0.5, local_views=2, local_size=8, hidden=16, features=8,
    prototypes=32,
  )  # fmt: skip
  config.optimizer.update(learning_rate=3e-3, warmup_steps=3)
  config.evaluation.every_steps = 0
  config.checkpoint.update(every_steps=10, keep=10)
  config.mesh.fsdp = 1
  config.update_from_flattened_dict(fields)
  return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A finished run, and its config."""
  folder = tmp_path_factory.mktemp('siglip2')
  captions = [f'picture number {i}' for i in range(16)]
  config = recipe(
    write_pairs(folder / 'pairs', 16),
    write_word_tokenizer(folder / 'tokenizer', captions),
  )
  config.evaluation.data = config.data.train
  config.evaluation.tasks = ('retrieval',)
  train(config, folder / 'run', Outputs())
  return folder / 'run', config


def logged(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return [row for row in rows if 'train/loss' in row]


@pytest.mark.slow
def test_each_loss_of_the_recipe_falls(run):
  rows = logged(run[0])
  begin = [row['step'] for row in rows].index(21)
  for name in ('contrastive', 'captioning'):
    key = f'train/loss_{name}'
    assert rows[-1][key] < 0.9 * rows[0][key], name
  for name in ('self_distillation', 'masked_prediction'):
    key = f'train/loss_{name}'
    assert not any(key in row for row in rows[:begin])
    assert rows[-1][key] < 0.9 * rows[begin][key], name
  last = {k.removeprefix('train/loss_'): v for k, v in rows[-1].items()}
  assert rows[-1]['train/loss'] == pytest.approx(
    last['contrastive'] + last['captioning']
    + last['self_distillation'] / 4 + last['masked_prediction'] / 16
  )  # fmt: skip


def arrays_of(workdir, step):
  """All arrays of a checkpoint, by item and path."""
  folder = epath.Path(workdir) / 'checkpoints' / str(step)
  return {
    f'{item}/{name}': array
    for item in ('params', 'opt_state', 'teacher')
    for name, array in flat(restore_numpy(folder / item)).items()
  }


@pytest.mark.slow
@pytest.mark.parametrize('step', [10, 20, 30])
def test_a_resumed_run_ends_with_the_same_bits(run, step, tmp_path):
  """Before the teacher begins, when it is to begin, and after that."""
  workdir, config = run
  again = tmp_path / 'run'
  shutil.copytree(workdir, again)
  for later in range(step + 10, 41, 10):
    shutil.rmtree(again / 'checkpoints' / str(later))
  assert train(config, again, Outputs()).finished
  expected = arrays_of(workdir, 40)
  resumed = arrays_of(again, 40)
  assert resumed.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(resumed[name], array, err_msg=name)


@pytest.mark.slow
def test_a_loaded_model_has_no_heads(run, tmp_path):
  workdir, config = run
  variables = load_variables(workdir)[0]
  assert set(variables['params']) >= {'image', 'text', 'decoder'}
  assert 'self_distillation' not in variables['params']
  model = load(workdir)
  features = model.encode_text(['picture number 3'])
  export(model, tmp_path / 'exported', platforms=('cpu',))
  again = load(tmp_path / 'exported').encode_text(['picture number 3'])
  np.testing.assert_allclose(features, again, atol=1e-5)

  # From there, the heads begin anew, and the teacher at once.
  more = recipe(config.data.train, config.tokenizer, total_steps=2)
  more.optimizer.warmup_steps = 1
  more.initialize_from = str(workdir)
  more.objective.self_distillation.begin = 0.0
  train(more, tmp_path / 'more', Outputs())
  rows = logged(tmp_path / 'more')
  assert math.isfinite(rows[0]['train/loss_masked_prediction'])
  image = load_variables(tmp_path / 'more')[0]['params']['image']
  before = variables['params']['image']
  assert flat(image).keys() == flat(before).keys()
