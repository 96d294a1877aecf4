"""Tells what devices this machine has, and how many the CPU provides.

Both are called before JAX starts.
"""

import glob
import os

from clip_jax.errors import UsageError

# The kernel's names of TPUs, then of GPUs.
DEVICE_FILES = (
  *('/dev/accel*', '/dev/vfio/[0-9]*'),
  *('/dev/nvidia[0-9]*', '/dev/kfd'),
)


def has_accelerator() -> bool:
  """Returns whether this machine has a device file of a TPU or a GPU."""
  return any(glob.glob(pattern) for pattern in DEVICE_FILES)


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
    import jax

    jax.config.update('jax_num_cpu_devices', count)


def _in_environment() -> bool:
  flags = os.environ.get('XLA_FLAGS', '')
  return (
    'JAX_NUM_CPU_DEVICES' in os.environ
    or '--xla_force_host_platform_device_count' in flags
  )
