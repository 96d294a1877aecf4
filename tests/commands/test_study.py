"""A study trains each variant once per seed, and goes on where it was."""

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from clip_jax.__main__ import main
from clip_jax.benchmarks.study import Curve, images_to_reach, read_curve
from clip_jax.models.counting import (
  abstract_variables,
  count_parameters,
  image_flops,
)
from clip_jax.report.study import draw_curves, write_figure
from clip_jax.training.config import (
  check_config,
  check_objective,
  optimizer_fields,
)
from clip_jax.training.metrics import MetricsFile
from clip_jax.training.optimizer import make_optimizer
from clip_jax.training.run import make_model_config
from clip_jax.trees import flat
from configs import ablation
from tests.tiny import tiny_config

CONFIG = 'configs/ablation.py'
SMALL = (
  '--config.total_steps=4', '--config.log_every_steps=1',
  '--config.data.batch_size=8', '--config.data.augment.plain=1.0',
  '--config.model.image.width=12', '--config.model.image.depth=1',
  '--config.model.text.width=12', '--config.model.text.depth=1',
  '--config.tokenizer=clip', '--config.evaluation.every_steps=2',
  '--config.optimizer.warmup_steps=1', '--config.checkpoint.every_steps=2',
  '--config.mesh.cpu_devices=1',
)  # fmt: skip


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('colours')
  for name in ('red', 'green', 'blue'):
    (folder / name).mkdir()
    for i in range(4):
      image = Image.new('RGB', (32, 32), name)
      image.putpixel((i, i), (0, 0, 0))
      image.save(folder / name / f'{i}.png')
  return f'folder:{folder}'


def study(workdir, data, *more):
  return main(
    [
      'study', f'--config={CONFIG}', f'--workdir={workdir}', *SMALL,
      f'--config.data.train={data}', f'--config.evaluation.data={data}', *more,
    ]
  )  # fmt: skip


@pytest.fixture(autouse=True)
def devices_in_use(monkeypatch):
  """Asks for no number of devices: those of this process may be in use."""
  monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '8')


@pytest.mark.slow
def test_one_command_trains_all_and_draws(data, tmp_path, capsys):
  assert study(tmp_path, data, '--seeds=1') == 0
  first = capsys.readouterr()
  assert 'run 3 of 3: captioning, seed 0' in first.err
  for name in ('contrastive', 'bag of words', 'captioning'):
    assert re.search(rf'  {name} +[\d.]+ %', first.out)
  results = json.loads((tmp_path / 'results.json').read_text())
  assert len(results['objective']) == 3
  for curve in results['objective']:
    assert curve['images'] == [16, 32]
    assert curve['seeds'] == 1
  with Image.open(tmp_path / 'objective.png') as image:
    assert image.format == 'PNG' and min(image.size) > 400

  # All is there: nothing is trained again.
  before = [file.read_bytes() for file in tmp_path.rglob('metrics.jsonl')]
  assert study(tmp_path, data, '--seeds=1', '--json') == 0
  assert json.loads(capsys.readouterr().out) == results
  after = [file.read_bytes() for file in tmp_path.rglob('metrics.jsonl')]
  assert len(before) == 3 and after == before
  # Another config is refused, as a run's is.
  assert study(tmp_path, data, '--config.total_steps=3') == 2
  assert 'total_steps can be raised, not lowered' in capsys.readouterr().err


@pytest.mark.parametrize(
  'words, message',
  [
    (('--study=nothing',), '--study=nothing: choose some of objective,'),
    (('--config=configs/emoji.py',), 'configs/emoji.py has no STUDIES'),
    (('--seeds=0',), 'seeds'),
    (('--config=configs/ablation.py:captioning',), 'leave out :captioning'),
    (
      ('--config.evaluation.tasks=("retrieval",)',),
      "variant 'contrastive' has evaluation.tasks=('retrieval',)",
    ),
    (('extra',), 'extra'),
  ],
)
def test_a_wrong_call_is_one_line(words, message, tmp_path, capsys):
  named = words[0].startswith('--config=')
  config = () if named else (f'--config={CONFIG}',)
  assert main(['study', *config, f'--workdir={tmp_path}', *words]) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert line.startswith('error: ') and message in line


def test_an_unknown_variant_is_refused_with_those_that_there_are():
  with pytest.raises(ValueError, match=r"no variant 'x': one of contrastive"):
    ablation.get_config('x')


def test_it_is_refused_on_the_command_line_without_a_traceback(capsys):
  call = ['train', f'--config={CONFIG}:x', '--workdir=nowhere']
  assert main(call) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert line.startswith(
    f"error: config file {CONFIG} cannot be run: no variant 'x': one of contr"
  )


@pytest.mark.parametrize('name', ablation.VARIANTS)
def test_variants_are_runs_that_see_as_many_images(name):
  config = ablation.get_config(name.replace(' ', '_'))
  check_config(config)
  length = config.model.text.context_length
  check_objective(config, make_model_config(config, 1500, 1, length))
  images = config.total_steps * config.data.batch_size
  assert images == ablation.STEPS * ablation.BATCH_SIZE
  assert config.total_steps % config.evaluation.every_steps == 0


def test_every_variant_is_in_a_study():
  named = {name for own in ablation.STUDIES.values() for name in own}
  assert named == set(ablation.VARIANTS)


def model_of(name):
  return make_model_config(ablation.get_config(name), 1500, 1, 14)


def test_a_fixed_temperature_is_all_that_is_frozen():
  config = ablation.get_config('fixed_temperature')
  model = model_of('fixed temperature')
  rule = optimizer_fields(config, model)
  optimizer, _ = make_optimizer(config.total_steps, **rule)
  params = abstract_variables(model)['params']
  trained = flat(optimizer.partition(params).trained(params))
  assert set(flat(params)) - set(trained) == {'logit_scale'}


def test_towers_are_compared_at_equal_compute():
  vit, resnet = (image_flops(model_of(x)) for x in ('contrastive', 'ResNet'))
  assert resnet == pytest.approx(vit, rel=0.05)


def test_the_language_model_is_about_as_large_as_the_text_tower():
  count = count_parameters(model_of('captioning'))
  assert count.text < count.decoder < 2 * count.text


def rows_of(workdir, name, seed, accuracies, every=10):
  with MetricsFile(workdir / name / f'seed_{seed}') as file:
    for i, accuracy in enumerate(accuracies, start=1):
      file.write(every * i, {'train/examples_per_second': 100 + seed})
      file.write(every * i, {'eval/zero_shot/top1': accuracy})


def test_a_curve_is_of_finished_runs_with_an_interval_over_seeds(tmp_path):
  config = tiny_config()
  config.total_steps, config.data.batch_size = 20, 4
  assert read_curve(tmp_path, 'a b', config, range(3)) is None
  rows_of(tmp_path, 'a_b', 0, [0.1, 0.4])
  curve = read_curve(tmp_path, 'a b', config, range(3))
  assert (curve.images, curve.mean, curve.low) == ([40, 80],) + (
    [0.1, 0.4],
  ) * 2
  rows_of(tmp_path, 'a_b', 1, [0.3, 0.6])
  rows_of(tmp_path, 'a_b', 2, [0.9])  # has not ended
  curve = read_curve(tmp_path, 'a b', config, range(3))
  assert curve.seeds == 2
  np.testing.assert_allclose(curve.mean, [0.2, 0.5])
  # 12.706 is the 97.5 % quantile of t with one degree of freedom.
  np.testing.assert_allclose(curve.high, [1.4706, 1.7706], rtol=1e-4)
  np.testing.assert_allclose(curve.low, [-1.0706, -0.7706], rtol=1e-4)
  assert curve.examples_per_second == 100.5
  # A run that was measured more often is compared where all were.
  rows_of(tmp_path, 'a_b', 2, [0.1, 0.2, 0.3, 0.4], every=5)
  curve = read_curve(tmp_path, 'a b', config, range(3))
  assert (curve.seeds, curve.images) == (3, [40, 80])
  np.testing.assert_allclose(curve.mean, [0.2, 1.4 / 3])


def test_a_figure_has_a_line_for_each_of_any_number_of_variants():
  values = {'mean': [0.2, 0.4], 'low': [0.1, 0.3], 'high': [0.3, 0.5]}
  curves = [{'variant': str(i), 'images': [1, 2], **values} for i in range(7)]
  [axes] = draw_curves(curves).axes
  looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
  assert len(looks) == len(axes.lines) == 7


def test_images_to_reach_an_accuracy_are_interpolated(tmp_path):
  curve = Curve('a', [100, 200], [0.1, 0.5], [0.0, 0.4], [0.2, 0.6], 2, 1.0)
  assert images_to_reach(curve, 0.05) == pytest.approx(50)
  assert images_to_reach(curve, 0.3) == pytest.approx(150)
  assert images_to_reach(curve, 0.6) is None
  flat = Curve('b', [100, 200], [0.0, 0.0], [0.0] * 2, [0.0] * 2, 1, 1.0)
  assert images_to_reach(flat, 0.0) == 0
  write_figure(tmp_path / 'a.png', [dataclasses.asdict(curve)])
  assert (tmp_path / 'a.png').stat().st_size > 1000
