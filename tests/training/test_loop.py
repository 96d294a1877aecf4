"""Runs as people start them: real processes, killed and started again."""

import json
import os
import random
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from clip_jax.checkpoints.reading import load_variables, steps_of
from clip_jax.errors import FailureError, UsageError
from clip_jax.tokenizers import sentence_piece
from clip_jax.training import evaluations
from clip_jax.training.loop import train
from clip_jax.training.metrics import read_metrics
from clip_jax.training.stop_signal import StopSignal
from clip_jax.training.writers import Outputs
from tests.tiny import tiny_config, write_pairs
from tests.training.logged import logged, losses
from tests.waiting import until

STEPS = 60


def command(workdir, data, *extra):
  return [
    sys.executable, '-m', 'clip_jax', 'train', '--config=tests/tiny.py',
    f'--workdir={workdir}', f'--config.data.train={data}',
    f'--config.total_steps={STEPS}', '--config.log_every_steps=1',
    '--config.checkpoint.every_steps=7', '--config.data.cache=True',
    '--config.data.augment.rotate=10.0', '--config.data.augment.noise=5.0',
    f'--config.evaluation.data={data}', '--config.evaluation.every_steps=20',
    "--config.evaluation.tasks=('retrieval',)", *extra,
  ]  # fmt: skip


def environment(devices=2):
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} '
    f'--xla_force_host_platform_device_count={devices}',
  }


def finish(workdir, data, *extra):
  """Runs to the end; the process's output."""
  return subprocess.run(
    command(workdir, data, *extra),
    env=environment(),
    capture_output=True,
    text=True,
    check=False,
  )


def start_until(workdir, data, step, devices=2):
  """A process that has logged `step`, still running."""
  process = subprocess.Popen(
    command(workdir, data),
    env=environment(devices),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )

  def reached():
    assert process.poll() is None, process.stdout.read()
    rows = read_metrics(workdir)
    return bool(rows) and rows[-1]['step'] >= step

  until(reached)
  return process


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return write_pairs(tmp_path_factory.mktemp('pairs') / 'pictures')


@pytest.fixture(scope='module')
def whole(tmp_path_factory, data):
  """A run that nothing interrupted."""
  workdir = tmp_path_factory.mktemp('whole')
  done = finish(workdir, data)
  assert done.returncode == 0, done.stderr
  return workdir


def recalls(workdir):
  return logged(workdir, 'eval/retrieval/image_to_text_r1')


def assert_same_end(workdir, whole):
  ours, _, step = load_variables(workdir)
  theirs, _, _ = load_variables(whole)
  assert step == STEPS
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  assert losses(workdir) == losses(whole)
  assert [step for step, _ in losses(workdir)] == list(range(1, STEPS + 1))
  assert recalls(workdir) == recalls(whole)
  assert [step for step, _ in recalls(workdir)] == [20, 40, 60]


@pytest.mark.slow
def test_a_run_killed_three_times_ends_with_the_same_bits(
  tmp_path, data, whole
):
  rng = random.Random(0)
  moments = sorted(rng.randrange(1, STEPS - 5) for _ in range(3))
  for moment in moments:
    latest = max(steps_of(tmp_path), default=0)
    process = start_until(tmp_path, data, max(moment, latest + 1))
    process.kill()
    process.wait()
  done = finish(tmp_path, data)
  assert done.returncode == 0, (moments, done.stderr)
  assert_same_end(tmp_path, whole)


@pytest.mark.slow
def test_sigterm_saves_says_so_and_exits_with_0(tmp_path, data, whole):
  process = start_until(tmp_path, data, 10)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate()
  assert process.returncode == 0, output
  stopped = steps_of(tmp_path)[0]
  assert 10 <= stopped < STEPS
  assert f'SIGTERM: saved step {stopped} in {tmp_path}' in output
  assert f'stopped and saved at step {stopped}' in output
  assert finish(tmp_path, data).returncode == 0
  assert_same_end(tmp_path, whole)


@pytest.mark.slow
def test_eight_devices_train_as_two(tmp_path, data, whole):
  process = start_until(tmp_path, data, 10, devices=8)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate()
  assert process.returncode == 0, output
  eight = losses(tmp_path)
  assert len(eight) >= 10
  np.testing.assert_allclose(eight, losses(whole)[: len(eight)], rtol=1e-3)


@pytest.mark.slow
def test_a_finished_run_is_left_alone(data, whole):
  before = (whole / 'metrics.jsonl').read_bytes()
  done = finish(whole, data)
  assert done.returncode == 0
  assert 'is trained already; nothing to do' in done.stderr
  assert (whole / 'metrics.jsonl').read_bytes() == before


@pytest.mark.slow
def test_another_config_is_refused_by_name(data, whole):
  done = finish(whole, data, '--config.optimizer.b2=0.9')
  assert done.returncode == 2
  assert done.stderr.startswith('error: ')
  assert 'optimizer.b2=0.9 (the run has 0.98)' in done.stderr
  assert done.stderr.count('\n') == 1


@pytest.mark.slow
def test_the_run_directory_is_as_designed(whole):
  names = {path.name for path in whole.iterdir()}
  assert {
    'config.json', 'metrics.jsonl', 'checkpoints', 'tensorboard',
    'report.html',
  } <= names  # fmt: skip
  config = json.loads((whole / 'config.json').read_text())
  assert config['optimizer']['b2'] == 0.98
  for name in (
    'loss', 'learning_rate', 'logit_scale', 'grad_norm',
    'examples_per_second', 'input_wait_fraction',
  ):  # fmt: skip
    assert f'train/{name}' in read_metrics(whole)[0]


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_one_line(small_disk, data):
  done = finish(small_disk / 'run', data)
  assert done.returncode == 1
  error = done.stderr.splitlines()[-1]
  assert error.startswith('error: a checkpoint could not be written to')
  assert 'the disk is full' in error
  assert 'it goes on from the start' in error
  assert 'Traceback' not in done.stderr


def corrupt_pairs(folder, count):
  spec = write_pairs(folder)
  for i in range(count):
    (folder / f'{i:03}.png').write_bytes(b'junk')
  return spec


@pytest.mark.slow
def test_corrupt_records_are_counted_named_and_skipped(tmp_path, caplog):
  config = tiny_config()
  config.data.train = corrupt_pairs(tmp_path / 'pictures', 2)
  outcome = train(config, tmp_path / 'run')
  assert outcome.finished
  assert read_metrics(tmp_path / 'run')[-1]['train/corrupt_records'] == 2
  assert '000.png' in caplog.text
  assert '001.png' in caplog.text


def test_too_many_corrupt_records_end_the_run(tmp_path):
  config = tiny_config()
  config.data.train = corrupt_pairs(tmp_path / 'pictures', 3)
  config.data.max_corrupt_records = 2
  with pytest.raises(FailureError, match='max_corrupt_records=2 records are'):
    train(config, tmp_path / 'run')


@pytest.mark.slow
def test_a_run_that_diverges_stops_and_names_the_records(tmp_path):
  config = tiny_config()
  config.data.train = write_pairs(tmp_path / 'pictures')
  config.log_every_steps = 1
  config.max_skipped_steps = 3
  config.checkpoint.every_steps = 1
  config.optimizer.update(learning_rate=1e38, warmup_steps=0)
  with pytest.raises(FailureError, match='not finite in 3 steps in a row'):
    train(config, tmp_path / 'run')
  lines = (tmp_path / 'run' / 'bad_steps.jsonl').read_text().splitlines()
  bad = [json.loads(line) for line in lines]
  first = bad[0]['step']
  assert [row['step'] for row in bad] == [first, first + 1, first + 2]
  names = [f'{i:03}.png' for i in range(24)]
  for row in bad:
    assert len(row['ids']) == config.data.batch_size
    assert all(os.path.basename(key) in names for key in row['ids'])
  assert read_metrics(tmp_path / 'run')[-1]['train/skipped_steps'] >= 1
  # What was saved last is what the last good step made.
  last, _, step = load_variables(tmp_path / 'run')
  assert step >= first - 1
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(last))


@pytest.mark.slow
def test_tasks_are_evaluated_in_the_loop(tmp_path):
  config = tiny_config()
  config.data.train = write_pairs(tmp_path / 'pictures')
  config.evaluation.update(
    every_steps=5, tasks=('retrieval',), data=config.data.train
  )
  outcome = train(config, tmp_path / 'run')
  rows = [
    row
    for row in read_metrics(tmp_path / 'run')
    if 'eval/retrieval/image_to_text_r1' in row
  ]
  assert [row['step'] for row in rows] == [5, 10, 12]
  name = 'eval/retrieval/text_to_image_r10'
  assert outcome.metrics[name] == rows[-1][name]
  # The data are the same: so are the numbers of training pairs, all of them.
  for name in ('loss/loss', 'retrieval/image_to_text_r1'):
    assert rows[-1][f'eval/{name}'] == rows[-1][f'eval/train_{name}']
  assert rows[-1]['eval/retrieval/image_to_text_r1_chance'] == (
    pytest.approx(1 / 24)
  )


def evaluated_config(tmp_path, **fields):
  config = tiny_config()
  config.data.train = write_pairs(tmp_path / 'pictures')
  config.evaluation.update(every_steps=4, data=config.data.train)
  config.checkpoint.update(fields)
  return config


def evaluated_steps(workdir):
  return [step for step, _ in logged(workdir, 'eval/loss/loss')]


@pytest.mark.slow
def test_a_step_is_saved_before_its_evaluation_can_fail(tmp_path, monkeypatch):
  config = evaluated_config(tmp_path)
  config.total_steps = 4
  workdir = tmp_path / 'run'

  def fail(run, model):
    raise FailureError(f'step {model.step} cannot be evaluated')

  with monkeypatch.context() as patch:
    patch.setattr(evaluations, 'evaluate', fail)
    with pytest.raises(FailureError, match='step 4 cannot be evaluated'):
      train(config, workdir)
  assert steps_of(workdir) == [4]
  assert evaluated_steps(workdir) == []
  outcome = train(config, workdir)
  assert evaluated_steps(workdir) == [4]
  assert outcome.metrics['eval/loss/loss']
  assert (workdir / 'report.html').exists()


@pytest.mark.slow
@pytest.mark.parametrize('best_metric', ['', 'eval/loss/loss'])
def test_a_run_that_is_to_stop_evaluates_later(
  tmp_path, monkeypatch, best_metric
):
  config = evaluated_config(tmp_path, best_metric=best_metric)
  workdir = tmp_path / 'run'
  with monkeypatch.context() as patch:
    patch.setattr(StopSignal, 'requested', lambda self, step: step == 4)
    patch.setattr(StopSignal, 'name', 'SIGTERM')
    assert not train(config, workdir, Outputs()).finished
  assert steps_of(workdir) == [4]
  assert evaluated_steps(workdir) == []
  assert train(config, workdir, Outputs()).finished
  assert evaluated_steps(workdir) == [4, 8, 12]


def test_another_tokenizer_is_refused(tmp_path):
  """The file that the config names may change; the checkpoint knows."""
  config = tiny_config()
  config.data.train = write_pairs(tmp_path / 'pictures')
  path = tmp_path / 'pieces.model'
  config.tokenizer = f'sentencepiece:{path}'
  captions = [f'picture number {i}' for i in range(24)]
  sentence_piece.train(captions, 24, path)
  config.total_steps = 4
  train(config, tmp_path / 'run')
  sentence_piece.train(captions, 25, path)  # a table of another size
  with pytest.raises(UsageError, match='written with another model, tokenizer'):
    train(config, tmp_path / 'run')
