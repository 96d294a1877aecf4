"""Memory that is freed stays with a process that trains on a CPU."""

import os
import subprocess
import sys

import jax
import pytest

from clip_jax.parallel import devices
from clip_jax.parallel.devices import keep_freed_memory

# Prints the page faults of a block of 64 MB, taken by a thread for the second
# time.
FAULTS = """
import ctypes, resource, sys, threading
from clip_jax.parallel.devices import keep_freed_memory

if sys.argv[1] == 'keep' and not keep_freed_memory():
  sys.exit('it cannot be kept')
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
SIZE = 64 << 20

def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  block = libc.malloc(ctypes.c_size_t(SIZE))
  ctypes.memset(block, 1, SIZE)
  libc.free(block)
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def twice():
  faults()
  print(faults())

thread = threading.Thread(target=twice)
thread.start()
thread.join()
"""
PAGES = (64 << 20) // os.sysconf('SC_PAGE_SIZE')


@pytest.fixture
def clean(monkeypatch):
  """An environment that chooses no allocator, and JAX on a CPU."""
  before = jax.config.values['jax_platforms']
  for name in list(os.environ):
    if name.startswith('MALLOC_') or name in devices._ALLOCATOR_VARIABLES:
      monkeypatch.delenv(name)
  jax.config.update('jax_platforms', 'cpu')
  yield
  jax.config.update('jax_platforms', before)


@pytest.fixture
def settings(clean, monkeypatch):
  """What is set, without setting it in the process of these tests."""
  made = []
  monkeypatch.setattr(
    devices, '_mallopt', lambda: lambda *setting: made.append(setting) or 1
  )
  return made


def second_faults(how):
  run = subprocess.run(
    [sys.executable, '-c', FAULTS, how],
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=True,
  )
  return int(run.stdout)


@pytest.mark.skipif(devices._mallopt() is None, reason='not glibc')
def test_kept_memory_is_not_faulted_in_again(clean):
  assert second_faults('plain') >= PAGES // 2
  assert second_faults('keep') < PAGES // 100


def test_a_cpu_keeps_its_memory(settings):
  assert keep_freed_memory()
  assert settings == [(-8, 1), (-4, 0), (-1, -1)]


@pytest.mark.parametrize(
  'name', ['LD_PRELOAD', 'GLIBC_TUNABLES', 'MALLOC_ARENA_MAX']
)
def test_a_choice_in_the_environment_wins(settings, monkeypatch, name):
  monkeypatch.setenv(name, '4')
  assert not keep_freed_memory()
  assert not settings


def test_hosts_of_accelerators_are_left_alone(settings, monkeypatch, tmp_path):
  jax.config.update('jax_platforms', 'tpu,cpu')
  assert not keep_freed_memory()
  # Where JAX has not been told, the devices of the machine decide.
  jax.config.update('jax_platforms', None)
  monkeypatch.setattr(devices, 'DEVICE_FILES', (f'{tmp_path}/accel*',))
  (tmp_path / 'accel0').touch()
  assert not keep_freed_memory()
  assert not settings
  (tmp_path / 'accel0').unlink()
  assert keep_freed_memory()


def test_another_c_library_is_left_alone(clean, monkeypatch):
  monkeypatch.setattr(devices, '_mallopt', lambda: None)
  assert not keep_freed_memory()
