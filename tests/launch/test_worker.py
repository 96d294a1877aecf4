"""launch/worker.sh with real processes: a stand-in trains, and is ended."""

import signal

import pytest

from tests.launch.conftest import one_error_line
from tests.waiting import until

# Trains until it is told to stop, and says with what it was called.
TRAINS = """#!/usr/bin/env bash
echo "called with $*, on ${JAX_PLATFORMS}"
trap 'echo saved; exit 75' TERM
touch started
while true; do sleep 0.05; done
"""


class Worker:
  """A machine of the pod."""

  def __init__(self, project):
    self.project = project
    project.environment['STOP_SECONDS'] = '10'

  def __call__(self, *words):
    return self.project.run('bash', 'launch/worker.sh', *words)

  def train(self, program):
    """Starts `program` in place of clip-jax, and returns when it runs."""
    self.project.put('.venv/bin/clip-jax', program)
    done = self('start', '--config=configs/emoji.py', '--config.x=a b')
    assert done.returncode == 0, done.stderr
    return done

  def kill(self, number):
    """Sends a signal to the training process, from outside."""
    until((self.project.folder / 'started').exists)
    pid = (self.project.folder / 'runs/worker/training_pid').read_text()
    self.project.run('bash', '-c', f'kill -{int(number)} {pid}')


@pytest.fixture
def worker(project):
  worker = Worker(project)
  yield worker
  worker('stop')


@pytest.mark.parametrize('code', [0, 1, 2])
def test_wait_prints_the_log_and_exits_with_the_code_of_training(worker, code):
  worker.train(f'#!/usr/bin/env bash\necho "$@"; sleep 0.2; exit {code}\n')
  done = worker('wait')
  assert done.returncode == code
  assert done.stdout == (
    'train --stopped_exit_code=75 --config=configs/emoji.py --config.x=a b\n'
  )
  assert worker('running').returncode == 1


def test_training_outlives_who_started_it_and_starts_once(worker):
  worker.train(TRAINS)
  until((worker.project.folder / 'started').exists)
  assert worker('running').returncode == 0
  assert 'runs here already' in worker('start', '--config=other').stderr
  log = (worker.project.folder / 'runs/worker/log').read_text()
  assert log.count('called with') == 1
  assert log.rstrip().endswith('on tpu,cpu')


def test_a_stop_that_was_asked_for_is_no_reason_to_start_again(worker):
  worker.train(TRAINS)
  until((worker.project.folder / 'started').exists)
  assert worker('stop').returncode == 0
  assert worker('running').returncode == 1
  done = worker('wait')
  assert done.returncode == 0
  assert 'saved' in done.stdout


def test_a_stop_from_outside_is(worker):
  worker.train(TRAINS)
  worker.kill(signal.SIGTERM)
  assert worker('wait').returncode == 75


def test_a_machine_that_shuts_down_is_a_stop_from_outside(worker):
  """All processes are told, this script's too; saving takes its time."""
  worker.train(TRAINS.replace('echo saved', 'sleep 0.5; echo saved'))
  until((worker.project.folder / 'started').exists)
  group = (worker.project.folder / 'runs/worker/pid').read_text()
  worker.project.run('bash', '-c', f'kill -TERM -- -{group}')
  done = worker('wait')
  assert done.returncode == 75
  assert 'saved' in done.stdout


def test_a_killed_process_has_failed(worker):
  worker.train(TRAINS)
  worker.kill(signal.SIGKILL)
  assert worker('wait').returncode == 128 + signal.SIGKILL


def test_what_does_not_stop_is_killed(worker):
  worker.project.environment['STOP_SECONDS'] = '1'
  worker.train(TRAINS.replace('echo saved; exit 75', 'true'))
  until((worker.project.folder / 'started').exists)
  worker('stop')
  until(lambda: worker('running').returncode)


def test_it_starts_again_after_a_stop(worker):
  worker.train(TRAINS)
  until((worker.project.folder / 'started').exists)
  worker('stop')
  worker.train('#!/usr/bin/env bash\necho again; exit 1\n')
  done = worker('wait')
  assert done.returncode == 1
  assert done.stdout.endswith('again\n')


def test_stop_where_nothing_runs(worker):
  assert worker('stop').returncode == 0


def test_install_takes_a_python_that_is_new_enough(worker):
  worker.project.put('launch/setup.sh', 'echo "$PYTHON $1"\n')
  worker.project.command('python3', 'exit 1')
  worker.project.command('python3.12', 'exit 0')
  done = worker('install')
  assert done.stdout == f'{worker.project.bin}/python3.12 tpu\n'


def test_install_brings_a_python_where_there_is_none(worker):
  worker.project.put('launch/setup.sh', 'echo "$PYTHON $1"\n')
  # Too old; it has pip, and pip brings uv.
  worker.project.command(
    'python3',
    'case "$*" in -c*) exit 1 ;; *"python find"*) echo /uv/python3.11 ;; esac',
  )
  assert worker('install').stdout == '/uv/python3.11 tpu\n'


def test_install_without_any_python(worker):
  worker.project.command('python3', 'exit 1')
  done = worker('install')
  assert done.returncode == 1
  assert 'no Python 3.11' in one_error_line(done)


def test_a_wrong_word(worker):
  done = worker('trian')
  assert done.returncode == 2
  assert "not 'trian'" in one_error_line(done)


def test_wait_before_start(worker):
  done = worker('wait')
  assert done.returncode == 1
  assert 'not started here' in one_error_line(done)
