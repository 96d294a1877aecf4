"""What a page was made on."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence

import jax

PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'numpy',
)


def machine(packages: Sequence[str] = PACKAGES) -> list[tuple[str, str]]:
  """Names and values: the machine and the versions that this process has."""
  kinds = [device.device_kind for device in jax.devices()]
  devices = ', '.join(
    f'{kinds.count(kind)} × {kind}' for kind in dict.fromkeys(kinds)
  )
  found = [
    ('devices', f'{devices} ({jax.default_backend()})'),
    ('processes', str(jax.process_count())),
    ('CPU cores', str(os.cpu_count())),
    ('system', f'{platform.system()} {platform.machine()}'),
    ('Python', platform.python_version()),
  ]
  for package in ('clip-jax', *packages):
    try:
      found.append((package, importlib.metadata.version(package)))
    except importlib.metadata.PackageNotFoundError:
      continue
  return found
