"""Supervises a process of a multi-process run, and explains how it ended.

XLA aborts a process whose peers are lost, from a thread of its own and with
pages of log lines, before Python hears of it; and a process that runs out of
memory cannot print anything. So where a run has several processes, the one that
a person started only supervises a child that does the work. It also reads the
child's log lines: nowhere else does JAX say which process was lost.
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
_KEPT_BYTES = 2**16  # of the last native output

# The log lines about a lost process begin with these.
_LOG_START = re.compile(
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


def run_supervised(index: int, count: int, advice: str) -> None:
  """Forks, and returns in the child only, which the parent supervises.

  The parent passes signals on, and waits. Python's output is not changed.
  Native output goes through the parent to stderr, without the log lines about
  a lost process. Call it while there is one thread only.

  Args:
    index: of this process.
    count: of the run's processes.
    advice: what to do after one was lost.
  Raises:
    SystemExit: (in the parent) the child's exit code.
    FailureError: (in the parent) a signal ended the child. Where another
      process was lost, all remaining processes raise the same message.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  parent = os.getpid()
  source, target = os.pipe()
  child = os.fork()
  if not child:
    os.close(source)
    _die_with_parent(parent)
    _divert_native_output(target)
    return
  os.close(target)
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: os.kill(child, signal.SIGTERM))
  output = _NativeOutput(source)
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  last = output.rest()
  lost = ''
  if code == -signal.SIGABRT:
    lost = describe_lost(last.decode(errors='replace'), index, count)
  if not lost:
    output.forward(last)
  if code >= 0:
    raise SystemExit(code)
  lost = lost or f'process {index} of {count} {_signal_reason(-code)}.'
  raise FailureError(f'{lost} {advice}')


def describe_lost(log: str, index: int, count: int) -> str:
  """Returns which processes were lost, or '' where the log does not say.

  Args:
    log: what the native code of process `index` wrote before it aborted.
  """
  _, marker, verdict = log.partition(_VERDICT)
  if not marker:
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
  return f'{_list_processes(who)} of {count} {fate}.'


def _numbers(lines: str) -> set[int]:
  return {int(line) for line in lines.split()}


def _list_processes(processes: Collection[int]) -> str:
  """Returns 'process 1', or 'processes 1, 3 and 5'."""
  *others, last = sorted(processes)
  if not others:
    return f'process {last}'
  return f'processes {", ".join(map(str, others))} and {last}'


class _NativeOutput:
  """Passes on the child's native output, except log lines about a loss."""

  def __init__(self, source: int):
    self._source = source
    self._kept = b''
    self._reader = threading.Thread(target=self._read, daemon=True)
    self._reader.start()

  def rest(self) -> bytes:
    """Returns what was kept back, once the child has ended."""
    # Processes that it started itself may keep the other end open.
    self._reader.join(1)
    return self._kept

  def forward(self, text: bytes) -> None:
    """Writes to stderr, unless that is closed."""
    with contextlib.suppress(OSError):
      os.write(sys.stderr.fileno(), text)

  def _read(self) -> None:
    while text := os.read(self._source, _KEPT_BYTES):
      text = self._kept + text
      log = _LOG_START.search(text)
      start = log.start() if log else len(text)
      start = max(start, len(text) - _KEPT_BYTES)
      self.forward(text[:start])
      self._kept = text[start:]


def _divert_native_output(target: int) -> None:
  """Sends native output to `target`; Python's own output is not changed.

  Native output to stdout goes there, too: Gloo's messages are no result.
  """
  for name, number in (('stdout', 1), ('stderr', 2)):
    stream = getattr(sys, name)
    stream_copy = os.fdopen(
      os.dup(number), 'w', encoding=stream.encoding, errors=stream.errors
    )
    unbuffered = name == 'stderr' or stream.write_through  # python -u
    stream_copy.reconfigure(line_buffering=stream.line_buffering or unbuffered)
    setattr(sys, name, stream_copy)
    os.dup2(target, number)
  os.close(target)


def _die_with_parent(parent: int) -> None:
  """Asks the kernel to kill this process when its parent dies (Linux only)."""
  if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
      os._exit(1)


def _signal_reason(number: int) -> str:
  if number == signal.SIGABRT:
    return 'was aborted (JAX says more above)'
  if number == signal.SIGKILL:
    return 'was killed from outside, or by the system for want of memory'
  return f'was ended by {signal.Signals(number).name}'
