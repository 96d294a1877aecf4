"""`clip-jax interpolate` as it is typed."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from clip_jax import load
from clip_jax.inference.interpolation import write_model
from tests.golden_models import GOLDENS
from tests.report.html_page import Page
from tests.tiny_run import tiny_description, tiny_params


@pytest.fixture(scope='module')
def tuned(tmp_path_factory):
  """What training would have made of the model of `workdir`."""
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: np.asarray(x + 0.1 * rng.normal(size=x.shape), np.float32),
    tiny_params(),
  )
  out = tmp_path_factory.mktemp('tuned') / 'run'
  write_model(out, tiny_description(), {'params': params}, {})
  return out


def check_between(out, a, b, alpha):
  def check(x, y, z):
    np.testing.assert_allclose(z, (1 - alpha) * x + alpha * y, atol=1e-6)

  jax.tree.map(check, load(a).params, load(b).params, load(out).params)


def test_two_models_meet_half_way(clip_jax, workdir, tuned, tmp_path):
  out = tmp_path / 'out'
  result = clip_jax(
    'interpolate', workdir, tuned, '--alpha=0.5', f'--out={out}', '--json'
  )
  assert result.code == 0, result
  assert result.json == {
    'models': [str(workdir), str(tuned)],
    'points': [{'alpha': 0.5, 'out': str(out)}],
  }
  check_between(out, workdir, tuned, 0.5)
  record = json.loads((out / 'interpolation.json').read_text())
  assert record['models'] == [str(workdir), str(tuned)]
  assert record['alpha'] == 0.5
  assert clip_jax('info', f'--model={out}').code == 0
  # What was written is a model like another, and so is a checkpoint.
  step, again = workdir / 'checkpoints' / '7', tmp_path / 'again'
  result = clip_jax('interpolate', step, out, '--alpha=0.5', f'--out={again}')
  assert result.code == 0, result
  assert result.out == f'alpha 0.5   -> {again}\n'
  check_between(again, workdir, tuned, 0.25)


def test_kinds_may_differ(clip_jax, workdir, tuned, tmp_path):
  exported, out = tmp_path / 'exported', tmp_path / 'out'
  result = clip_jax(
    'export', f'--model={tuned}', '--platforms=cpu', f'--out={exported}'
  )
  assert result.code == 0, result
  result = clip_jax(
    'interpolate', workdir, exported, '--alpha=0.25', f'--out={out}'
  )
  assert result.code == 0, result
  check_between(out, workdir, tuned, 0.25)


def test_a_published_model_with_itself_is_itself(clip_jax, tmp_path):
  model, out = GOLDENS / 'open_clip_vit_gelu', tmp_path / 'out'
  result = clip_jax('interpolate', model, model, '--alpha=0.3', f'--out={out}')
  assert result.code == 0, result
  jax.tree.map(
    np.testing.assert_array_equal, load(out).params, load(model).params
  )
  assert load(out).preprocessing == load(model).preprocessing


def test_a_curve(clip_jax, workdir, tuned, photos, tmp_path):
  other = tmp_path / 'other'
  shutil.copytree(photos, other)
  (other / 'red_square' / '0.png').unlink()
  out = tmp_path / 'out'
  data, others = f'folder:{photos}', [f'folder:{other}']
  result = clip_jax(
    'interpolate', workdir, tuned, '--alpha=1,0,0.5', f'--data={data}',
    f'--others={others[0]}', f'--out={out}', '--json',
  )  # fmt: skip
  assert result.code == 0, result
  curve = json.loads((out / 'curve.json').read_text())
  assert result.json == curve | {'curve': str(out / 'curve.html')}
  points = curve['points']
  assert [point['alpha'] for point in points] == [0, 0.5, 1]
  assert {*os.listdir(out)} == {
    'alpha_0', 'alpha_0.5', 'alpha_1', 'curve.html', 'curve.json'
  }  # fmt: skip
  for model, point in ((workdir, points[0]), (tuned, points[2])):
    assert [*point['accuracy']] == [data, *others]
    for name, accuracy in point['accuracy'].items():
      call = ('eval', '--task=zero_shot', f'--data={name}', '--json')
      metrics = clip_jax(*call, f'--model={model}').json['metrics']
      assert accuracy == {
        'top1': metrics['top1'],
        'low': metrics['top1_low'],
        'high': metrics['top1_high'],
      }
  page = Page((out / 'curve.html').read_text())
  assert page.tags('svg')
  for point in points:
    assert f'{100 * point["accuracy"][data]["top1"]:.1f} %' in page.text()


def test_soups(clip_jax, workdir, tuned, photos, tmp_path):
  out = tmp_path / 'uniform'
  models = (workdir, tuned, tuned)
  result = clip_jax('interpolate', *models, '--soup=uniform', f'--out={out}')
  assert result.code == 0, result
  check_between(out, workdir, tuned, 2 / 3)
  out = tmp_path / 'greedy'
  result = clip_jax(
    'interpolate', *models, '--soup=greedy', f'--data=folder:{photos}',
    f'--out={out}', '--json',
  )  # fmt: skip
  assert result.code == 0, result
  said = result.json
  assert said['top1'] >= max(said['top1_of_each'])
  assert (
    json.loads((out / 'interpolation.json').read_text())['weights']
    == said['weights']
  )
  assert sum(said['weights']) == pytest.approx(1)
  check_between(out, workdir, tuned, sum(said['weights'][1:]))


def test_wrong_calls_are_one_line(refused, workdir, tuned, photos, tmp_path):
  out = f'--out={tmp_path / "out"}'
  two = ('interpolate', workdir, tuned)
  half, data = '--alpha=0.5', f'--data=folder:{photos}'
  refused('no --out', *two, half)
  refused('--alpha=NUMBER or --soup', *two, out)
  refused('--alpha=NUMBER or --soup', *two, half, '--soup=uniform', out)
  refused('there are 1: name A and B', 'interpolate', workdir, half, out)
  refused('there are 3: name A and B', *two, tuned, half, out)
  refused('--alpha=1.5: use a number from 0 to 1', *two, '--alpha=1.5', out)
  refused('--alpha=half: use a number', *two, '--alpha=half', out)
  refused('--alpha=nan: use a number', *two, '--alpha=nan', out)
  refused('a number comes twice', *two, '--alpha=0.5,0.50', out)
  refused("soup='best': choose one of uniform", *two, '--soup=best', out)
  refused('a soup of 1 models', 'interpolate', tuned, '--soup=uniform', out)
  refused('needs held-out --data', *two, '--soup=greedy', out)
  refused('and --soup=uniform none', *two, '--soup=uniform', data, out)
  refused('a curve needs both', *two, '--alpha=0,1', data, out)
  refused(
    'twice: name different data',
    *two, '--alpha=0,1', data, f'--others={data[7:]}', out,
  )  # fmt: skip
  refused('makes no curve', *two, half, data, '--others=digits', out)
  refused('no model in', 'interpolate', workdir, tmp_path, half, out)
  resnet = GOLDENS / 'open_clip_resnet'
  refused('only models of one desc', 'interpolate', workdir, resnet, half, out)
  refused('not an empty folder', *two, half, f'--out={photos}')
  assert os.listdir(tmp_path) == []
