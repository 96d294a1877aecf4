"""Ends all processes of a run when one of them fails, with the same reason.

A process that was *lost* (killed, out of memory, machine gone) says nothing:
XLA's coordination service misses its heartbeats and aborts all others, and
`supervisor.py` prints in each of them which process was lost. A process that
*failed* announces why, and each of the others prints that and ends.

In between, a process that waits for a lost one may see any exception, of any
class: from a collective, a barrier, or a checkpoint that all write.
`wait_if_peer_lost` is called before such an exception is blamed on anything
else.
"""

import atexit
import contextlib
import os
import sys
import threading
import time
from typing import Any

import jax

from clip_jax.errors import FailureError, UsageError, one_line

# A process without a heartbeat for so long is taken for dead, and all others
# end. A busy host may be silent for less than that.
HEARTBEAT_SECONDS = 30
_LISTEN_SECONDS = 1
_LEAVE_SECONDS = 5  # from a failure on, at most
_LAST_BARRIER_SECONDS = 10
# XLA aborts the processes that remain when process 0 has left.
_LAST_SECONDS = 2
_FOLDER = 'clip_jax/failure'  # of the key-value store of process 0

_has_peers = threading.Event()


def wait_if_peer_lost(error: BaseException) -> None:
  """Returns unless `error` was caused by the loss of another process.

  If it was, this process ends while it waits here. That cannot be known sooner:
  all that an exception says is that somebody could not be reached. The call
  returns immediately for errors that other processes cannot cause, and in a
  process without peers.

  Args:
    error: what would otherwise be reported as, say, a full disk or a damaged
      file.
  """
  if _has_peers.is_set() and not _is_local(error):
    time.sleep(2 * HEARTBEAT_SECONDS)


def _is_local(error: BaseException) -> bool:
  if isinstance(error, OSError):
    return error.errno is not None  # the system's word, not a library's
  return not isinstance(error, Exception) or isinstance(
    error, UsageError | FailureError | MemoryError
  )


class PeerFailures:
  """A context manager whose thread listens for failures of other processes."""

  def __init__(self, client: Any, index: int, count: int):
    """Starts nothing yet.

    Args:
      client: of JAX's coordination service.
      index: of this process.
      count: processes of the run.
    """
    self._client = client
    self._index = index
    self._count = count
    self._ended = threading.Event()
    self._reporting = threading.Lock()  # only one failure is reported
    self._listener = threading.Thread(target=self._listen, daemon=True)

  def __enter__(self) -> 'PeerFailures':
    _has_peers.set()
    self._listener.start()
    return self

  def __exit__(self, *exception: object) -> None:
    _has_peers.clear()
    self._ended.set()
    self._listener.join(_LISTEN_SECONDS)  # it would outlive Python, and crash

  def announce(self, error: BaseException, code: int) -> None:
    """Announces this process's failure to all others, and schedules its end.

    Args:
      error: the reason, which the caller prints in this process.
      code: the exit code of all processes.
    """
    self._reporting.acquire()  # never released
    reason = one_line(str(error))
    if not isinstance(error, UsageError | FailureError):
      reason = f'{type(error).__name__}: {reason}'
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one did
      self._client.key_value_set(
        f'{_FOLDER}/first', f'{code} {self._index} {reason}'
      )
    # JAX would wait for the others. Handlers run in the reverse order: this one
    # comes before JAX's.
    atexit.register(self._leave, code)
    # Threads that wait for others would keep this process from its end.
    leaving = threading.Timer(_LEAVE_SECONDS, self._leave, [code])
    leaving.daemon = True
    leaving.start()

  def _listen(self) -> None:
    # It ends early where process 0 was lost: then XLA ends this process.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      while not self._ended.wait(_LISTEN_SECONDS):
        self._check_peers()

  def _check_peers(self) -> None:
    """Ends this process if another one has announced a failure."""
    announced = self._client.key_value_dir_get(_FOLDER)
    if not announced:
      return
    self._reporting.acquire()
    code, index, reason = announced[0][1].split(' ', 2)
    print(
      f'error: process {index} of {self._count} failed: {reason}',
      file=sys.stderr,
    )
    self._leave(int(code))

  def _leave(self, code: int) -> None:
    """Ends this process once all have noticed, and process 0 as the last."""
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._client.wait_at_barrier(
        f'{_FOLDER}/heard', _LAST_BARRIER_SECONDS * 1000
      )
    if self._index == 0:
      time.sleep(_LAST_SECONDS)
    os._exit(code)
