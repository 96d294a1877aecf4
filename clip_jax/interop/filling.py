"""Arrays that a device takes as they are, filled in pieces.

A CPU device takes an aligned array without a copy; and a source that is mapped
from a file is in memory only a piece at a time, however large it is.
"""

import math
from collections.abc import Callable

import numpy as np

from clip_jax.interop.tensor_file import Tensors

PIECE = 8 * 2**20  # bytes
_ALIGNMENT = 64  # bytes


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """An array, not filled yet, that starts where XLA's own buffers may."""
  size = math.prod(shape) * dtype.itemsize
  memory = np.empty(size + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  return memory[start : start + size].view(dtype).reshape(shape)


def fill(
  place: np.ndarray, source: np.ndarray, release: Callable[[], None]
) -> None:
  """Copies numbers, in the place's dtype.

  Args:
    place, source: of one shape.
    release: called after each piece, to let go of the source's memory.
  """
  if not source.ndim or not source.size:
    place[...] = source
    return
  # Along the axis that is outermost in the source's memory, whose order the
  # place need not have: a piece is then one stretch of a file.
  axis = int(np.argmax(np.abs(source.strides)))
  step = max(1, PIECE * source.shape[axis] // source.nbytes)
  for begin in range(0, source.shape[axis], step):
    piece = (slice(None),) * axis + (slice(begin, begin + step),)
    place[piece] = source[piece]
    release()


def read_aligned(
  tensors: Tensors, name: str, dtype: np.dtype | None = None
) -> np.ndarray:
  """One tensor of a file in memory of its own; `dtype` None is the file's."""
  info = tensors.infos[name]
  array = aligned(info.shape, dtype or info.dtype)
  fill(array, tensors.read(name), tensors.release)
  return array
