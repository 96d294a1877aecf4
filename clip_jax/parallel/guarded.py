"""A process that outlives its work, to say how that ended.

XLA aborts a process whose peers are gone, from a thread of its own and with
pages of its own words, before Python hears of it; and nobody can speak after
running out of memory. So where a run has several processes, the one that a
person started only waits for the one that works. It reads those pages, too:
nowhere else does JAX say who is gone.
"""

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
from collections.abc import Collection

from clip_jax.errors import FailureError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_HELD = 2**16  # bytes of the last words that are kept

# How the pages begin: a line that XLA's coordination service logs.
_PAGES = re.compile(
  rb'^[WEF]\d{4} [^\n\]]*'
  rb'\b(?:coordination_service\w*|preemption_sync_manager|client)\.(?:cc|h):',
  re.MULTILINE,
)
_VERDICT = 'the JAX distributed service detected fatal errors'
_NEVER_CAME = re.compile(r'timed out task names:\n((?:\d+\n)+)')
_SILENT = re.compile(r'stopped sending heartbeats\):\n((?:\d+\n)+)')
_RESTARTED = re.compile(r'(\d+) unexpectedly tried to connect')
_NO_ANSWER = 'xla.coordination.CoordinationService/'  # of process 0, to a call
_FIRST_CALL = f'{_NO_ANSWER}RegisterTask'


def guarded(index: int, count: int, advice: str) -> None:
  """Returns in a child process; the parent passes signals on, and waits.

  What Python writes goes where it went. What native code writes goes through
  the parent to stderr, but for pages about a lost process. Call it while there
  is one thread only.

  Args:
    index: of this process.
    count: of the run's processes.
    advice: what to do after one was lost.
  Raises:
    SystemExit: (in the parent) the child's exit code.
    FailureError: (in the parent) a signal ended the child. Where another
      process was lost, all that are left say the same of it.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  parent = os.getpid()
  source, target = os.pipe()
  child = os.fork()
  if not child:
    os.close(source)
    _end_with(parent)
    _divert_native_output(target)
    return
  os.close(target)
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: os.kill(child, signal.SIGTERM))
  words = _Words(source)
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  last = words.last()
  lost = ''
  if code == -signal.SIGABRT:
    lost = describe_lost(last.decode(errors='replace'), index, count)
  if not lost:
    words.forward(last)
  if code >= 0:
    raise SystemExit(code)
  lost = lost or f'process {index} of {count} {_reason(-code)}.'
  raise FailureError(f'{lost} {advice}')


def describe_lost(pages: str, index: int, count: int) -> str:
  """Returns who was lost, as XLA's last words have it, or an empty text.

  Args:
    pages: what the native code of process `index` wrote before it aborted.
  """
  _, found, verdict = pages.partition(_VERDICT)
  if not found:
    return ''
  if match := _NEVER_CAME.search(verdict):
    who, fate = _numbers(match[1]), 'did not start, or cannot be reached'
  elif match := _SILENT.search(verdict):
    # A process that was stopped for long may find itself among them.
    others = _numbers(match[1]) - {index}
    who, fate = others or {index}, 'lost: it died, or cannot be reached'
  elif match := _RESTARTED.search(verdict):
    who, fate = {int(match[1])}, 'lost: it died, and was started again'
  elif _FIRST_CALL in verdict:
    who, fate = {0}, 'did not start, or cannot be reached'
  elif _NO_ANSWER in verdict:
    who, fate = {0}, 'lost: it died, or cannot be reached'
  else:
    return ''
  if fate.startswith('lost'):
    fate = f'{"was" if len(who) == 1 else "were"} {fate}'
  return f'{_name(who)} of {count} {fate}.'


def _numbers(lines: str) -> set[int]:
  return {int(line) for line in lines.split()}


def _name(processes: Collection[int]) -> str:
  """'process 1', or 'processes 1, 3 and 5'."""
  *others, last = sorted(processes)
  if not others:
    return f'process {last}'
  return f'processes {", ".join(map(str, others))} and {last}'


class _Words:
  """The child's native output: passed on, but for pages about a loss."""

  def __init__(self, source: int):
    self._source = source
    self._held = b''
    self._reader = threading.Thread(target=self._read, daemon=True)
    self._reader.start()

  def last(self) -> bytes:
    """What was held back, once the child has ended."""
    # Processes that it started itself may keep the other end open.
    self._reader.join(1)
    return self._held

  def forward(self, text: bytes) -> None:
    """Writes to stderr; where that is closed, nothing is said."""
    with contextlib.suppress(OSError):
      os.write(sys.stderr.fileno(), text)

  def _read(self) -> None:
    while text := os.read(self._source, _HELD):
      text = self._held + text
      pages = _PAGES.search(text)
      start = pages.start() if pages else len(text)
      start = max(start, len(text) - _HELD)
      self.forward(text[:start])
      self._held = text[start:]


def _divert_native_output(target: int) -> None:
  """Native code writes to `target` from now on; Python where it did.

  Of stdout, too: what Gloo says there is no part of a result.
  """
  for name, number in (('stdout', 1), ('stderr', 2)):
    stream = getattr(sys, name)
    ours = os.fdopen(
      os.dup(number), 'w', encoding=stream.encoding, errors=stream.errors
    )
    at_once = name == 'stderr' or stream.write_through  # as python -u has it
    ours.reconfigure(line_buffering=stream.line_buffering or at_once)
    setattr(sys, name, ours)
    os.dup2(target, number)
  os.close(target)


def _end_with(parent: int) -> None:
  """Lets the system kill this process when its parent dies (Linux only)."""
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
      os._exit(1)


def _reason(number: int) -> str:
  if number == signal.SIGABRT:
    return 'was aborted (JAX says more above)'
  if number == signal.SIGKILL:
    return 'was killed from outside, or by the system for want of memory'
  return f'was ended by {signal.Signals(number).name}'
