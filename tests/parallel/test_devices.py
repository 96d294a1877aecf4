"""The number of devices that a CPU stands for."""

import os
import subprocess
import sys

import pytest

from clip_jax.errors import UsageError
from clip_jax.parallel.devices import use_cpu_devices

COUNT = (
  'from clip_jax.parallel.devices import use_cpu_devices\n'
  'use_cpu_devices(3)\n'
  'import jax; print(jax.device_count())'
)


@pytest.mark.parametrize(
  'environment, expected',
  [
    ({}, 3),
    ({'XLA_FLAGS': '--xla_force_host_platform_device_count=5'}, 5),
    ({'JAX_NUM_CPU_DEVICES': '2'}, 2),
  ],
)
def test_the_environment_wins_over_the_config(environment, expected):
  clean = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  done = subprocess.run(
    [sys.executable, '-c', COUNT],
    env=clean | {'JAX_PLATFORMS': 'cpu'} | environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert int(done.stdout) == expected


@pytest.mark.parametrize('count, kept', [(1, 'True'), (2, 'False')])
def test_programs_of_several_cpu_devices_are_not_kept(count, kept):
  words = (
    'from clip_jax.parallel.devices import use_cpu_devices\n'
    f'use_cpu_devices({count})\n'
    'import jax; print(jax.config.jax_enable_compilation_cache)'
  )
  done = subprocess.run(
    [sys.executable, '-c', words],
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == kept


def test_no_device_is_refused():
  with pytest.raises(UsageError, match='cpu_devices=0 must be at least 1'):
    use_cpu_devices(0)
