"""A process that outlives its work, to say how that ended.

XLA aborts a process whose peers are gone, from a thread of its own and with
pages of its own words, before Python hears of it; and nobody can speak after
running out of memory. So where a run has several processes, the one that a
person started only waits for the one that works.
"""

import ctypes
import os
import signal
import sys

from clip_jax.errors import FailureError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def guarded(name: str, advice: str) -> None:
  """Returns in a child process; the parent passes signals on, and waits.

  Call it while there is one thread only.

  Args:
    name: of this process, for its message.
    advice: what to do after it was lost.
  Raises:
    SystemExit: (in the parent) the child's exit code.
    FailureError: (in the parent) a signal ended the child.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  parent = os.getpid()
  child = os.fork()
  if not child:
    _end_with(parent)
    return
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: os.kill(child, signal.SIGTERM))
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  if code >= 0:
    raise SystemExit(code)
  raise FailureError(f'{name} {_reason(-code)}. {advice}')


def _end_with(parent: int) -> None:
  """Lets the system kill this process when its parent dies (Linux only)."""
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
      os._exit(1)


def _reason(number: int) -> str:
  if number == signal.SIGABRT:
    return (
      'was aborted: another process of the run died, or cannot be reached '
      '(JAX says more above)'
    )
  if number == signal.SIGKILL:
    return 'was killed from outside, or by the system for want of memory'
  return f'was ended by {signal.Signals(number).name}'
