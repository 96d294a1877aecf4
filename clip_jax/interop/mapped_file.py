"""A file as memory, of which no more stays resident than is being read."""

import mmap
import os
from pathlib import Path

import numpy as np

from clip_jax.files import open_regular


class MappedFile:
  """The bytes of a file, which are read when they are touched.

  The file must not shrink while it is mapped; replacing it does no harm. The
  map lasts as long as an array that looks into it.

  Attributes:
    bytes: uint8 [size], read-only.
  """

  def __init__(self, path: Path):
    self._map: mmap.mmap | None = None
    self.bytes = np.zeros(0, np.uint8)
    with open_regular(path) as file:
      if os.fstat(file.fileno()).st_size:  # an empty file cannot be mapped
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.bytes = np.frombuffer(self._map, np.uint8)

  def release(self) -> None:
    """Takes the pages read so far out of the process's memory.

    Arrays that look into the file stay valid: what they touch again comes
    back, mostly from the system's cache.
    """
    if self._map is not None and hasattr(self._map, 'madvise'):
      self._map.madvise(mmap.MADV_DONTNEED)
