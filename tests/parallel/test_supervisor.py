"""The process that waits says how the one that works ended."""

import signal
import subprocess
import sys

import pytest

from clip_jax.parallel.supervisor import describe_lost
from tests.waiting import PATIENCE, until

PROGRAM = """
import os, signal, sys, time
from clip_jax.errors import FailureError
from clip_jax.parallel.supervisor import run_supervised
try:
  run_supervised(1, 2, 'Run it again.')
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
    ('SIGABRT', 'was aborted (JAX says more above)'),
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


# As jaxlib 0.10 has them.
FATAL = (
  'F1130 00:55:52.640301    9441 client.h:80] Terminating process because the '
  'JAX distributed service detected fatal errors. This most likely indicates '
  'that another task died; see the other task logs for more details. '
  'absl::Status: '
)
RPC = '\nRPC: /xla.coordination.CoordinationService/'
SILENT = (
  'UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):'
  '\n{}\nThe tasks have crashed. Check the task logs for an earlier error.\n'
  f'{RPC}PollForError'
)
LATE = (
  'DEADLINE_EXCEEDED: Barrier timed out. Id: '
  '[Init]Wait_for_all_tasks_to_register::0.\n# of tasks that reached the '
  'barrier: 2/4.\nThe first task at the barrier: 0. Some timed out task names:'
  f'\n3\n1\n\n{RPC}RegisterTask'
)
SERVICE_GONE = (
  'UNAVAILABLE: Failed to send RPC to coordination service. Either the leader '
  'task was preempted/died/restarted unexpectedly or this task is experiencing '
  'network issues.\nAdditional GRPC error information from remote target '
  'coordination_service while calling '
  '/xla.coordination.CoordinationService/PollForError:\n'
)
LOST = 'lost: it died, or cannot be reached.'


@pytest.mark.parametrize(
  'status, said',
  [
    (SILENT.format('1'), f'process 1 of 4 was {LOST}'),
    (SILENT.format('3\n1'), f'processes 1 and 3 of 4 were {LOST}'),
    (SILENT.format('3\n0\n1'), f'processes 0, 1 and 3 of 4 were {LOST}'),
    # It was stopped for long, and so none of the others spoke to it.
    (SILENT.format('1\n2'), f'process 1 of 4 was {LOST}'),
    (SILENT.format('2'), f'process 2 of 4 was {LOST}'),
    (SERVICE_GONE, f'process 0 of 4 was {LOST}'),
    (f'DEADLINE_EXCEEDED: Deadline Exceeded\n{RPC}Heartbeat',
     f'process 0 of 4 was {LOST}'),
    (LATE, 'processes 1 and 3 of 4 did not start, or cannot be reached.'),
    (f'DEADLINE_EXCEEDED: Deadline Exceeded\n{RPC}RegisterTask',
     'process 0 of 4 did not start, or cannot be reached.'),
    ('ABORTED: 3 unexpectedly tried to connect with a different incarnation.',
     'process 3 of 4 was lost: it died, and was started again.'),
    ('INTERNAL: something else', ''),
  ],
)  # fmt: skip
def test_the_lost_process_is_read_from_what_jax_says(status, said):
  pages = f'E1130 00:55:52.6 9452 other.cc:1] 9\n{FATAL}{status}\n*** Check'
  assert describe_lost(pages, index=2, count=4) == said


def test_what_is_no_verdict_names_nobody():
  assert not describe_lost(SILENT.format('1'), index=2, count=4)


def test_pages_about_a_loss_become_one_line_and_other_words_pass():
  pages = f'{FATAL}{SILENT.format(0)}\n*** Check failure stack trace: ***\n'
  done = run(
    'print("of Python", file=sys.stderr); os.write(2, b"of C\\n"); '
    f'os.write(1, b"of Gloo\\n"); os.write(2, {pages.encode()!r}); os.abort()'
  )
  assert done.returncode == 1
  assert sorted(done.stderr.splitlines()[:-1]) == [
    'of C', 'of Gloo', 'of Python',
  ]  # fmt: skip
  last = done.stderr.splitlines()[-1]
  assert last == f'error: process 0 of 2 was {LOST} Run it again.'
  assert done.stdout.strip().isdecimal()  # the child's id


def test_pages_that_were_no_loss_are_shown_in_the_end():
  page = 'W1130 00:55:52.6 9452 preemption_sync_manager.cc:147] Failed\n'
  done = run(f'os.write(2, {page.encode()!r}); sys.exit(3)')
  assert done.returncode == 3
  assert done.stderr == page


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
  assert process.wait(PATIENCE) == 7
  process.stdout.close()


@pytest.mark.skipif(sys.platform != 'linux', reason='a service of Linux')
def test_the_child_dies_with_its_parent():
  process, child = start('time.sleep(60)')
  process.kill()
  process.wait()
  until(lambda: not _runs(child))


def _runs(pid):
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False
