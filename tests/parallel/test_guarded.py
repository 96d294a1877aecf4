"""The process that waits says how the one that works ended."""

import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import os, signal, sys, time
from clip_jax.errors import FailureError
from clip_jax.parallel.guarded import guarded
try:
  guarded('process 1 of 2', 'Run it again.')
except FailureError as error:
  print(f'error: {error}', file=sys.stderr)
  sys.exit(1)
print(os.getpid(), flush=True)
"""


def run(work):
  return subprocess.run(
    [sys.executable, '-c', PROGRAM + work],
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize('code', [0, 1, 2])
def test_an_exit_code_is_passed_on(code):
  done = run(f'sys.exit({code})')
  assert done.returncode == code
  assert not done.stderr


@pytest.mark.parametrize(
  'number, message',
  [
    ('SIGABRT', 'another process of the run died'),
    ('SIGKILL', 'for want of memory'),
    ('SIGSEGV', 'was ended by SIGSEGV'),
  ],
)
def test_a_signal_is_explained_in_one_line(number, message):
  done = run(f'os.kill(os.getpid(), signal.{number})')
  assert done.returncode == 1
  assert done.stderr.startswith('error: process 1 of 2 was ')
  assert message in done.stderr
  assert done.stderr.endswith('. Run it again.\n')
  assert done.stderr.count('\n') == 1


def start(work):
  """A running parent, and its child's id."""
  process = subprocess.Popen(
    [sys.executable, '-c', PROGRAM + work], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout is not None
  return process, int(process.stdout.readline())


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_end_is_passed_on(number):
  process, _ = start(
    'signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); '
    'print("ready", flush=True); time.sleep(60)'
  )
  assert process.stdout is not None
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(number)
  assert process.wait(30) == 7
  process.stdout.close()


@pytest.mark.skipif(sys.platform != 'linux', reason='a service of Linux')
def test_the_child_dies_with_its_parent():
  process, child = start('time.sleep(60)')
  process.kill()
  process.wait()
  end = time.monotonic() + 10
  while _runs(child) and time.monotonic() < end:
    time.sleep(0.05)
  assert not _runs(child)


def _runs(pid):
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False
