"""When one of several processes fails: what it tells the others, and they say.

There are two ways to end. A process that was *lost* (killed, out of memory, its
machine gone) says nothing: XLA's coordination service misses its heartbeats and
aborts all others, and `guarded.py` says in each of them who was lost. A process
that *failed* tells the others why, and each of them says that and ends.

In between, whoever waits for the lost one may see any exception, of any class:
of a collective, of a barrier, of a checkpoint that all write. `wait_if_lost` is
where each of them goes before something else is blamed.
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

# A process that was not heard of for so long is taken for dead, and all others
# end: within a minute, and yet later than a busy host may be silent.
HEARTBEAT_SECONDS = 30
_LISTEN_SECONDS = 1
_LEAVE_SECONDS = 5  # from a failure on, at most
_LAST_MEETING_SECONDS = 10
# XLA aborts whoever is there yet when process 0 has gone.
_LAST_SECONDS = 2
_FOLDER = 'clip_jax/failure'  # of the key-value store of process 0

_several = threading.Event()  # whether this process is one of several


def wait_if_lost(error: BaseException) -> None:
  """Returns unless `error` came of another process's loss.

  If it did, this process ends while it waits here. It cannot be known sooner:
  all that an exception says is that somebody could not be reached. Errors that
  cannot come of others return at once, and all do in a process alone.

  Args:
    error: before it is taken for something else than a loss, such as a full
      disk or a damaged file.
  """
  if _several.is_set() and not _is_own(error):
    time.sleep(2 * HEARTBEAT_SECONDS)


def _is_own(error: BaseException) -> bool:
  if isinstance(error, OSError):
    return error.errno is not None  # the system's word, not a library's
  return not isinstance(error, Exception) or isinstance(
    error, UsageError | FailureError | MemoryError
  )


class Failures:
  """A context manager that listens, in a thread, for others that failed."""

  def __init__(self, client: Any, index: int, count: int):
    """
    Args:
      client: JAX's, of the coordination service.
      index: of this process.
      count: of all.
    """
    self._client = client
    self._index = index
    self._count = count
    self._ended = threading.Event()
    self._speaking = threading.Lock()  # one line is said of the end
    self._listener = threading.Thread(target=self._listen, daemon=True)

  def __enter__(self) -> 'Failures':
    _several.set()
    self._listener.start()
    return self

  def __exit__(self, *exception: object) -> None:
    _several.clear()
    self._ended.set()
    self._listener.join(_LISTEN_SECONDS)  # it would outlive Python, and crash

  def tell(self, error: BaseException, code: int) -> None:
    """Tells all others of this process's failure, of which it speaks itself.

    Args:
      error: why.
      code: to exit with, here and there.
    """
    self._speaking.acquire()  # for good
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
        self._hear()

  def _hear(self) -> None:
    """Ends this process if another one failed."""
    found = self._client.key_value_dir_get(_FOLDER)
    if not found:
      return
    self._speaking.acquire()
    code, index, reason = found[0][1].split(' ', 2)
    print(
      f'error: process {index} of {self._count} failed: {reason}',
      file=sys.stderr,
    )
    self._leave(int(code))

  def _leave(self, code: int) -> None:
    """Ends this process when all have heard, and process 0 as the last."""
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._client.wait_at_barrier(
        f'{_FOLDER}/heard', _LAST_MEETING_SECONDS * 1000
      )
    if self._index == 0:
      time.sleep(_LAST_SECONDS)
    os._exit(code)
