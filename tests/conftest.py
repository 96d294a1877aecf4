"""Eight pretend devices, and jaxtyping's shapes checked at every call."""

import collections
import importlib.util
import os
import signal
import subprocess
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# A test compiles for seconds what runs for milliseconds. Without the emitters
# of fusions that go by way of MLIR, a train step compiles three times as fast;
# test_step.py compares a step with one that is compiled as usual.
os.environ['XLA_FLAGS'] = ' '.join(
  [
    '--xla_backend_optimization_level=0',
    '--xla_cpu_use_fusion_emitters=false',
    os.environ.get('XLA_FLAGS', ''),
  ]
).strip()
# What one test of a session compiles, its other tests, workers and processes
# read: the workers get the folder from the process that started them, which
# deletes it at its end. Set the variable to keep it from session to session.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  SESSION = tempfile.TemporaryDirectory(prefix='clip_jax_compiled_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = SESSION.name
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

import jax
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# A busy machine is no failure of what is tested.
settings.register_profile(
  'tests',
  deadline=None,
  derandomize=True,
  suppress_health_check=[HealthCheck.too_slow],
  print_blob=True,
)
settings.load_profile('tests')
jax.config.update('jax_num_cpu_devices', 8)
# A shell's background job ignores it, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Kept to the end of the session: modules are checked as they are imported.
install_import_hook('clip_jax', 'beartype.beartype')


def pytest_collection_modifyitems(items):
  """Skips tests of engines that are missing, and puts slow files first.

  The file with the most slow tests comes first, so that no worker is left alone
  with a long one at the end.
  """
  engines = ('apache_beam', 'img2dataset', 'ray')
  if not all(map(importlib.util.find_spec, engines)):
    missing = pytest.mark.skip(reason='run by launch/test.sh engines')
    for item in items:
      if item.get_closest_marker('engines'):
        item.add_marker(missing)
  slow = collections.Counter(
    item.path for item in items if item.get_closest_marker('slow')
  )
  items.sort(key=lambda item: -slow[item.path])


@pytest.fixture
def small_disk(tmp_path):
  """A file system of one megabyte."""
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(disk)]
  if os.geteuid() or subprocess.run(mount, check=False).returncode:
    pytest.skip('mounting a small disk takes root')
  yield disk
  # Lazily: a thread whose write failed may still hold its file.
  subprocess.run(['umount', '--lazy', str(disk)], check=True)
