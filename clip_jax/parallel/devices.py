"""How many devices a CPU stands for: a choice made before JAX starts."""

import os

import jax

from clip_jax.errors import UsageError

_FLAG = 'xla_force_host_platform_device_count'


def use_cpu_devices(count: int) -> None:
  """Lets the CPU stand for `count` devices; accelerators are not concerned.

  On a laptop, a device for each core keeps the cores busier than one device
  with many threads, and the gather of the loss is a real one. A count given
  in XLA_FLAGS wins.

  Raises:
    UsageError: the count is below 1.
  """
  if count < 1:
    raise UsageError(f'mesh.cpu_devices={count} must be at least 1.')
  if _FLAG not in os.environ.get('XLA_FLAGS', ''):
    jax.config.update('jax_num_cpu_devices', count)
