"""One run as several real processes: they train as one, and end as one."""

import json
import shutil
import signal
import subprocess

import numpy as np
import pytest

from clip_jax.checkpoints.reading import steps_of
from clip_jax.training.metrics import read_metrics
from tests.data.indexing.archives import archive, pairs
from tests.processes import start_together
from tests.tiny import write_pairs
from tests.training.logged import logged, losses
from tests.waiting import until

pytestmark = pytest.mark.slow

STEPS = 12


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """A function that starts a run's processes, two devices together."""
  data = write_pairs(tmp_path_factory.mktemp('pairs') / 'pictures')
  started = []

  def start(workdir, count, *extra, devices=2):
    words = [
      '-m', 'clip_jax', 'train', '--config=tests/tiny.py',
      f'--workdir={workdir}', f'--config.data.train={data}',
      f'--config.total_steps={STEPS}', '--config.log_every_steps=1',
      f'--config.evaluation.data={data}', *extra,
    ]  # fmt: skip
    started.extend(
      start_together(count, devices, *words, stderr=subprocess.STDOUT)
    )
    return started[-count:]

  yield start
  for process in started:
    process.kill()


@pytest.fixture(scope='module')
def alone(tmp_path_factory, start):
  """The whole run in one process; it evaluates at the end."""
  workdir = tmp_path_factory.mktemp('alone')
  end(*start(workdir, 1, "--config.evaluation.tasks=('retrieval',)"))
  return workdir


def end(*processes):
  """Waits for the processes, which succeed; their outputs."""
  outputs = [process.communicate(timeout=300)[0] for process in processes]
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode == 0, output
  return outputs


def wait_for(workdir, step, processes):
  """Returns once `step` was logged, while all processes run."""

  def reached():
    if any(process.poll() is not None for process in processes):
      raise AssertionError([process.communicate()[0] for process in processes])
    return any(row['step'] >= step for row in read_metrics(workdir))

  until(reached)


def recalls(workdir):
  name = 'eval/retrieval/text_to_image_r10'
  return [value for _, value in logged(workdir, name)]


def assert_same_losses(workdir, alone):
  assert [step for step, _ in losses(workdir)] == list(range(1, STEPS + 1))
  np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-5)


def test_sigterm_to_one_stops_two_and_one_goes_on(tmp_path, start, alone):
  # So that there are steps left, however fast they are.
  processes = start(tmp_path, 2, '--config.checkpoint.every_steps=1')
  wait_for(tmp_path, 2, processes)
  processes[1].send_signal(signal.SIGTERM)
  first, second = end(*processes)
  stopped = steps_of(tmp_path)[0]
  assert f'stopped and saved at step {stopped}; the same' in first
  assert 'saved' not in second  # one speaks
  assert losses(tmp_path)[-1][0] == stopped < STEPS
  end(*start(tmp_path, 1))
  assert_same_losses(tmp_path, alone)


def test_one_stops_and_two_go_on_and_evaluate(tmp_path, start, alone):
  workdir = tmp_path / 'run'
  shutil.copytree(alone, workdir)
  (workdir / 'report.html').unlink()
  newest, _, oldest = steps_of(workdir)
  for step in (newest, oldest):
    shutil.rmtree(workdir / 'checkpoints' / str(step))
  # A step of two devices a process takes seconds: these four are enough.
  tasks = "--config.evaluation.tasks=('retrieval',)"
  end(*start(workdir, 2, tasks, devices=4))
  assert_same_losses(workdir, alone)
  assert recalls(workdir) == recalls(alone)
  assert (workdir / 'report.html').is_file()
  config = json.loads((workdir / 'config.json').read_text())
  assert config['total_steps'] == STEPS


# The home folder of a process is another: `python -c CODE HOME WORDS…`.
WITH_HOME = """
import os, runpy, sys
os.environ['HOME'], sys.argv = sys.argv[1], sys.argv[3:]
runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
"""


@pytest.mark.parametrize('field', ['data.train', 'evaluation.data'])
def test_a_process_that_sees_other_records_ends_the_run(tmp_path, field):
  for home, shards in (('first', 3), ('second', 2)):
    (tmp_path / home).mkdir()
    for shard in range(shards):
      data = archive(pairs(20, 20 * shard))
      (tmp_path / home / f'{shard}.tar').write_bytes(data)
  words = [
    '-m', 'clip_jax', 'train', '--config=tests/tiny.py',
    f'--workdir={tmp_path / "run"}', '--config.data.train=wds:~/0.tar',
    '--config.evaluation.data=wds:~/0.tar', f'--config.{field}=wds:~/*.tar',
  ]  # fmt: skip
  homes = {
    i: ('-c', WITH_HOME, str(tmp_path / home))
    for i, home in enumerate(('first', 'second'))
  }
  processes = start_together(
    2, 2, *words, stderr=subprocess.STDOUT, first=homes
  )
  for process in processes:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2, output
    assert f'{field} has other records in process 1 than in process 0' in (
      output
    )
