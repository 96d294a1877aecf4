"""Sets JAX up on this machine: devices, memory, and the compilation cache.

All but the cache is settled before JAX starts its threads.
"""

import ctypes
import glob
import os
from collections.abc import Callable
from pathlib import Path

from clip_jax.errors import UsageError
from clip_jax.files import typed_path

# The kernel's names of TPUs, then of GPUs.
DEVICE_FILES = (
  *('/dev/accel*', '/dev/vfio/[0-9]*'),
  *('/dev/nvidia[0-9]*', '/dev/kfd'),
)
# Constants of glibc's malloc.h; mallopt(3) says what they do.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8
# Whoever sets one of these has chosen an allocator, or its settings.
_ALLOCATOR_VARIABLES = ('LD_PRELOAD', 'GLIBC_TUNABLES')
_ALLOCATOR_PREFIX = 'MALLOC_'

_CACHE_DIR = 'jax_compilation_cache_dir'
_CACHE_MIN_SECONDS = 'jax_persistent_cache_min_compile_time_secs'


def has_accelerator() -> bool:
  """Returns whether this machine has a device file of a TPU or a GPU."""
  return any(glob.glob(pattern) for pattern in DEVICE_FILES)


def use_cpu_devices(count: int) -> None:
  """Makes the CPU provide `count` devices; accelerators are not affected.

  On a laptop, a device for each core keeps the cores busier than one device
  with many threads, and the gather of the loss is a real one. A count in the
  environment (XLA_FLAGS or JAX_NUM_CPU_DEVICES) wins.

  Several CPU devices leave the compilation cache aside: those of a program that
  jaxlib 0.10.2 reads from there may exchange arrays in different orders, and
  wait for each other until XLA ends the process.

  Raises:
    UsageError: the count is below 1.
  """
  if count < 1:
    raise UsageError(f'mesh.cpu_devices={count} must be at least 1.')
  import jax

  flags = os.environ.get('XLA_FLAGS', '')
  if (
    'JAX_NUM_CPU_DEVICES' not in os.environ
    and '--xla_force_host_platform_device_count' not in flags
  ):
    jax.config.update('jax_num_cpu_devices', count)
  if count > 1 and _computes_on_cpu():
    jax.config.update('jax_enable_compilation_cache', False)


def keep_freed_memory() -> bool:
  """Lets a process that computes on a CPU keep the memory that it frees.

  XLA's CPU client takes the temporaries of every step from malloc and frees
  them after it. The C library gives so much back to the kernel at once, and
  the next step faults each page in again, zeroed. Kept, the pages cost this
  once: 90 steps of configs/emoji.py on two cores took 115 CPU seconds and
  0.4 million page faults instead of 151 and 10.6 million, with a peak of 1.25
  GB where others had 1.0 to 1.5. `bench encode`, which frees less, gains
  nothing. An environment variable would do the same only where a launcher sets
  it.

  Call it before JAX starts its threads: each would get an arena of its own,
  from which large blocks are mapped whatever the other settings say. An
  allocator chosen in the environment (LD_PRELOAD, GLIBC_TUNABLES, MALLOC_…) is
  left alone, as is every C library but glibc.

  Returns:
    Whether it was set.
  """
  is_chosen = any(
    name in _ALLOCATOR_VARIABLES or name.startswith(_ALLOCATOR_PREFIX)
    for name in os.environ
  )
  mallopt = _mallopt()
  if is_chosen or mallopt is None or not _computes_on_cpu():
    return False
  settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
  return all([mallopt(name, value) for name, value in settings])


def _mallopt() -> Callable[[int, int], int] | None:
  """Returns the function of glibc, or None where another C library is."""
  try:
    glibc = ctypes.CDLL(None)
    return glibc.mallopt if hasattr(glibc, 'gnu_get_libc_version') else None
  except (OSError, TypeError):  # TypeError: on Windows
    return None


def _computes_on_cpu() -> bool:
  """Returns whether JAX will compute on a CPU, without starting it."""
  import jax

  platforms = jax.config.values['jax_platforms']
  if platforms:
    return platforms.split(',')[0] == 'cpu'
  return not has_accelerator()


def use_compilation_cache() -> None:
  """Lets JAX keep what it compiles in the user's cache folder.

  A verb then starts at once the second time. JAX_COMPILATION_CACHE_DIR, if
  set, has been obeyed already (empty: nothing is kept), but for a `~` in it. A
  folder that cannot be written is left alone.

  In a program of your own, set that variable, and
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.
  """
  folder = os.environ.get(_CACHE_DIR.upper())
  if folder is None or folder.startswith('~'):
    folder = _writable_cache(folder)
  if not folder:
    return

  import jax

  jax.config.update(_CACHE_DIR, os.fspath(folder))
  # Unless told otherwise, JAX keeps only what took a second to compile, and a
  # verb's many small programs, most of its start on a fast machine, would be
  # compiled each time.
  if _CACHE_MIN_SECONDS.upper() not in os.environ:
    jax.config.update(_CACHE_MIN_SECONDS, 0.0)


def _writable_cache(chosen: str | None) -> Path | None:
  """Returns the chosen folder or the user's own, or None if it is read-only."""
  try:
    root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    folder = typed_path(chosen or os.path.join(root, 'clip_jax', 'xla'))
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, UsageError):  # UsageError: there is no home
    return None
  return folder if os.access(folder, os.W_OK) else None
