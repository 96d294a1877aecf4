"""What of this process is in memory, as Linux counts it."""

from pathlib import Path

import pytest

_STATUS = Path('/proc/self/status')


def resident_bytes(field: str = 'VmRSS') -> int:
  """Memory now; of 'VmHWM', the most so far. Pages of files count."""
  if not _STATUS.exists():
    pytest.skip('only Linux tells how much memory a process has')
  for line in _STATUS.read_text().splitlines():
    name, _, value = line.partition(':')
    if name == field:
      return int(value.split()[0]) * 1024
  raise KeyError(field)
