"""Whether this machine has a TPU or a GPU, before JAX is there to be asked."""

import glob

# The kernel's names of TPUs, then of GPUs.
DEVICE_FILES = (
  *('/dev/accel*', '/dev/vfio/[0-9]*'),
  *('/dev/nvidia[0-9]*', '/dev/kfd'),
)


def are_here() -> bool:
  """Whether there is a device file of one."""
  return any(glob.glob(pattern) for pattern in DEVICE_FILES)
