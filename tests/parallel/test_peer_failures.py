"""Who asks whether an exception came of another process's loss, and who not."""

import errno
import time

import jax
import pytest

from clip_jax.errors import FailureError, UsageError
from clip_jax.parallel import peer_failures
from clip_jax.parallel.peer_failures import PeerFailures, wait_if_peer_lost

FULL = OSError(errno.ENOSPC, 'No space left on device')


class Service:
  """As the client of JAX's coordination service, of one process."""

  def __init__(self):
    self.kept = {}

  def key_value_set(self, key, value):
    self.kept[key] = value

  def key_value_dir_get(self, folder):
    return [(k, v) for k, v in self.kept.items() if k.startswith(folder)]

  def wait_at_barrier(self, name, milliseconds):
    del name, milliseconds


@pytest.fixture
def waited(monkeypatch):
  """The seconds that were waited."""
  seconds = []
  monkeypatch.setattr(time, 'sleep', seconds.append)
  return seconds


@pytest.mark.parametrize(
  'error',
  [
    # As a checkpoint that all write met it, when one of them was killed.
    ValueError('UNKNOWN: Gloo AllGather failed: Connection closed by peer'),
    jax.errors.JaxRuntimeError('INTERNAL: Gloo all-reduce failed'),
    TimeoutError('Timed out while waiting for async_commit_complete barrier.'),
    RuntimeError('anything'),
  ],
)
def test_what_may_come_of_others_waits_for_the_verdict(waited, error):
  wait_if_peer_lost(error)
  assert not waited  # alone
  with PeerFailures(Service(), 0, 2):
    wait_if_peer_lost(error)
  assert waited == [2 * peer_failures.HEARTBEAT_SECONDS]


@pytest.mark.parametrize(
  'error',
  [
    UsageError('u'),
    FailureError('f'),
    FULL,
    MemoryError(),
    KeyboardInterrupt(),
  ],
)
def test_what_is_our_own_is_said_at_once(waited, error):
  with PeerFailures(Service(), 0, 2):
    wait_if_peer_lost(error)
  assert not waited


def test_the_others_say_who_failed_and_end_alike(monkeypatch, capsys):
  service, codes = Service(), []
  monkeypatch.setattr(peer_failures, '_LISTEN_SECONDS', 0.01)
  monkeypatch.setattr(peer_failures.os, '_exit', codes.append)
  monkeypatch.setattr(peer_failures.atexit, 'register', lambda *_: None)
  monkeypatch.setattr(peer_failures.threading, 'Timer', Timer)
  failing = PeerFailures(service, 1, 4)
  failing.announce(UsageError('data.train is empty'), 2)
  other = PeerFailures(service, 2, 4)
  other._check_peers()
  assert codes == [2]
  assert capsys.readouterr().err == (
    'error: process 1 of 4 failed: data.train is empty\n'
  )


class Timer:
  """One that never rings."""

  daemon = False

  def __init__(self, *_):
    pass

  def start(self):
    pass
