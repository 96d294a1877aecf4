import os
import select
import signal
import subprocess
import sys

import pytest

from tests.data.images import captioned_folder
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.skipif(
  sys.platform != 'linux', reason='children are found in /proc'
)


@pytest.fixture
def reader(tmp_path):
  """A process that trains, as it were, with two reading processes."""
  source = tmp_path / 'source'
  source.mkdir()
  captioned_folder(source, 24)
  words = (f'folder:{source}', str(tmp_path), '0', '0', '1', '2')
  process = subprocess.Popen(
    [sys.executable, '-m', 'tests.data.read_steps', *words],
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )
  until(lambda: has_read(tmp_path, 2))
  yield process
  process.kill()
  process.wait()


def has_read(folder, step):
  return (folder / f'{step}-0-of-1.npz').exists()


def workers_of(process):
  """The numbers of the processes that read."""
  children = f'/proc/{process.pid}/task'
  found = []
  for thread in os.listdir(children):
    with open(f'{children}/{thread}/children') as file:
      found += map(int, file.read().split())
  return [pid for pid in found if b'resource_tracker' not in command_of(pid)]


def command_of(pid):
  with open(f'/proc/{pid}/cmdline', 'rb') as file:
    return file.read()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_to_all_processes_do_not_end_those_that_read(
  reader, tmp_path, number
):
  workers = workers_of(reader)
  assert len(workers) == 2
  for pid in workers:
    os.kill(pid, number)
  # More steps than were made ahead.
  until(lambda: reader.poll() is not None or has_read(tmp_path, 40))
  assert reader.poll() is None
  assert workers_of(reader) == workers


def test_a_killed_process_takes_those_that_read_with_it(reader):
  ends = [os.pidfd_open(pid) for pid in workers_of(reader)]
  assert len(ends) == 2
  reader.kill()
  for end in ends:
    assert select.select([end], [], [], PATIENCE)[0]
    os.close(end)
