"""Training on a CPU keeps the memory that it frees.

XLA's CPU client takes the temporaries of every step from malloc and frees them
after it: 1.7 GB for ViT-B/32 at batch 16. The C library gives so much back to
the kernel at once, and the next step faults each page in again, zeroed, which
takes seconds of the kernel's time on a virtual machine. Kept, the pages cost
this once.
"""

import ctypes
import os
from collections.abc import Callable
from typing import Any

from clip_jax.parallel.devices import has_accelerator

# Constants of glibc's malloc.h; mallopt(3) says what they do.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8

# Somebody who sets one of these has made the choice.
_CHOICES = ('LD_PRELOAD', 'GLIBC_TUNABLES')
_CHOICE_PREFIX = 'MALLOC_'


def keep() -> bool:
  """Lets this process keep freed memory, where it computes on CPUs.

  Call it before JAX starts its threads: each would get an arena of its own,
  from which large blocks are mapped whatever the other settings say. Memory
  then stays at the highest that it was. An allocator chosen in the environment
  (LD_PRELOAD, GLIBC_TUNABLES, MALLOC_…) is left alone, as is every C library
  but glibc.

  Returns:
    Whether it was set.
  """
  if not _computes_on_cpu() or _is_chosen():
    return False
  mallopt = _mallopt()
  if mallopt is None:
    return False
  settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
  return all([mallopt(name, value) for name, value in settings])


def _computes_on_cpu() -> bool:
  """Returns whether JAX will compute on a CPU.

  JAX itself is not asked, for it would start its threads.
  """
  platforms = _platforms()
  if platforms:
    return platforms.split(',')[0] == 'cpu'
  return not has_accelerator()


def _platforms() -> str | None:
  """JAX_PLATFORMS, if that is set."""
  import jax

  config: Any = jax.config  # its annotation knows no names
  return config.jax_platforms


def _is_chosen() -> bool:
  return any(
    name in _CHOICES or name.startswith(_CHOICE_PREFIX) for name in os.environ
  )


def _mallopt() -> Callable[[int, int], int] | None:
  """Returns the function of glibc, or None where another C library is."""
  try:
    glibc = ctypes.CDLL(None)
    return glibc.mallopt if hasattr(glibc, 'gnu_get_libc_version') else None
  except (OSError, TypeError):  # TypeError: on Windows
    return None
