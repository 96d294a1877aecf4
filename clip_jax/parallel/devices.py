"""Chooses how many devices the CPU provides, before JAX starts."""

import os

import jax

from clip_jax.errors import UsageError


def use_cpu_devices(count: int) -> None:
  """Makes the CPU provide `count` devices; accelerators are not affected.

  On a laptop, a device for each core keeps the cores busier than one device
  with many threads, and the gather of the loss is a real one. A count in the
  environment (XLA_FLAGS or JAX_NUM_CPU_DEVICES) wins.

  Raises:
    UsageError: the count is below 1.
  """
  if count < 1:
    raise UsageError(f'mesh.cpu_devices={count} must be at least 1.')
  if not _in_environment():
    jax.config.update('jax_num_cpu_devices', count)


def _in_environment() -> bool:
  flags = os.environ.get('XLA_FLAGS', '')
  return (
    'JAX_NUM_CPU_DEVICES' in os.environ
    or '--xla_force_host_platform_device_count' in flags
  )
