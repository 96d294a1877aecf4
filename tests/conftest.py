"""Eight pretend devices, and jaxtyping's shapes checked at every call."""

import os
import signal
import subprocess

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# A test compiles for seconds what runs for milliseconds.
os.environ['XLA_FLAGS'] = ' '.join(
  ['--xla_backend_optimization_level=0', os.environ.get('XLA_FLAGS', '')]
).strip()

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update('jax_num_cpu_devices', 8)
# A busy machine is slow now and then, which is no fault of what is tested.
hypothesis.settings.register_profile('untimed', deadline=None)
hypothesis.settings.load_profile('untimed')
# A shell's background job ignores it, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Kept to the end of the session: modules are checked as they are imported.
install_import_hook('clip_jax', 'beartype.beartype')


@pytest.fixture
def small_disk(tmp_path):
  """A file system of one megabyte."""
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(disk)]
  if os.geteuid() or subprocess.run(mount, check=False).returncode:
    pytest.skip('mounting a small disk takes root')
  yield disk
  subprocess.run(['umount', str(disk)], check=True)
