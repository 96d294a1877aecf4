"""An open weight file: what it holds, a way to read one tensor, and memory.

A source that is mapped from a file is in memory only a piece at a time, however
large it is; and a CPU device takes an aligned array without a copy.
"""

import dataclasses
import math
import mmap
import os
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from clip_jax.errors import FailureError, UsageError
from clip_jax.files import open_regular

DTYPES = frozenset(
  np.dtype(kind)
  for kind in (
    *(np.float64, np.float32, np.float16, ml_dtypes.bfloat16),
    *(ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
    *(ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2fnuz),
    ml_dtypes.float8_e8m0fnu,
    *(np.int64, np.int32, np.int16, np.int8),
    *(np.uint64, np.uint32, np.uint16, np.uint8, np.bool_),
  )
)
MAX_RANK = 64  # numpy's
_MAX_MESSAGE = 300  # characters
_MAX_BYTES = 2**62


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """The shape and dtype of a tensor that is not read yet."""

  shape: tuple[int, ...]
  dtype: np.dtype  # one of DTYPES, in the machine's byte order

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass
class Tensors:
  """The tensors of one model; a context manager that lets go of its files.

  Attributes:
    path: of the file; for shards, of their index.
    format: the container.
    infos: every tensor's shape and dtype, by name, in the file's order.
    metadata: safetensors' `__metadata__`; the scalars beside a torch state
      dict (epoch, name, …); of a TorchScript, its root's scalar attributes.
    release: takes what was read of the mapped files out of memory again;
      arrays stay valid.
    notes: sentences on which tensors of the file these are.
  """

  path: Path
  format: Literal['safetensors', 'torch', 'torchscript', 'npz']
  infos: dict[str, TensorInfo]
  metadata: dict[str, Any]
  load: dataclasses.InitVar[Callable[[str], np.ndarray]]
  release: Callable[[], None]
  notes: tuple[str, ...] = ()

  def __post_init__(self, load: Callable[[str], np.ndarray]) -> None:
    self._load: Callable[[str], np.ndarray] | None = load

  def read(self, name: str) -> np.ndarray:
    """Reads that tensor alone.

    Returns:
      An array of the shape and dtype in `infos`, C-contiguous and aligned. It
      is a read-only view of the mapped file where the bytes lie there as
      needed, and stays valid after the file is closed; else, memory of its
      own. Copy it before writing.
    Raises:
      KeyError: there is no such tensor.
      FailureError: its bytes are damaged, or not as the header says.
    """
    if self._load is None:
      raise ValueError(f'{self.path} was closed before {name!r} was read')
    if name not in self.infos:
      raise KeyError(name)
    return self._load(name)

  def __enter__(self) -> 'Tensors':
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    self._load = None  # the last reference to the mapped file, but for arrays


def checked_info(
  path: Path, name: str, shape: tuple[Any, ...], dtype: np.dtype
) -> TensorInfo:
  """Returns a tensor's description, if an array can be like that.

  Raises:
    FailureError: a size is no natural number, or they are too many or large.
  """
  natural = all(type(size) is int and size >= 0 for size in shape)
  # Sizes beside a 0 count too: numpy cannot hold (0, 2**63).
  if (
    not natural
    or len(shape) > MAX_RANK
    or math.prod(size or 1 for size in shape) * dtype.itemsize > _MAX_BYTES
  ):
    raise damaged(path, f'the shape of {name!r} is impossible')
  return TensorInfo(shape, dtype)


def settled(array: np.ndarray) -> np.ndarray:
  """Returns an array C-contiguous and aligned: itself, if it is already."""
  return np.require(array, requirements=['C', 'A'])


def damaged(path: Path, what: str) -> FailureError:
  """Returns the error for a file that is not what its format demands."""
  if len(what) > _MAX_MESSAGE:  # names in it are of any length
    what = what[:_MAX_MESSAGE] + '…'
  end = '' if what.endswith('?') else '.'
  return FailureError(
    f'{path} is damaged or was made to deceive: {what}{end} Fetch it again '
    'from where it came from.'
  )


def check_any(path: Path, names: Mapping[str, Any]) -> None:
  """Raises UsageError where there is not one tensor."""
  if not names:
    raise UsageError(f'{path} is not a weight file: it holds no tensor.')


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


PIECE = 8 * 2**20  # bytes
_ALIGNMENT = 64  # bytes


def empty_aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Returns an empty array that starts where XLA's own buffers may."""
  size = math.prod(shape) * dtype.itemsize
  memory = np.empty(size + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  return memory[start : start + size].view(dtype).reshape(shape)


def fill(
  target: np.ndarray, source: np.ndarray, release: Callable[[], None]
) -> None:
  """Copies an array into another, piece by piece, in the dtype of the target.

  Args:
    target, source: of one shape.
    release: called after each piece, to let go of the source's memory.
  """
  if not source.ndim or not source.size:
    target[...] = source
    return
  # Along the axis that is outermost in the source's memory, whose order the
  # target need not have: a piece is then one stretch of a file.
  axis = int(np.argmax(np.abs(source.strides)))
  step = max(1, PIECE * source.shape[axis] // source.nbytes)
  for begin in range(0, source.shape[axis], step):
    piece = (slice(None),) * axis + (slice(begin, begin + step),)
    target[piece] = source[piece]
    release()


def read_aligned(
  tensors: Tensors, name: str, dtype: np.dtype | None = None
) -> np.ndarray:
  """Returns one tensor of a file in aligned memory of its own.

  Args:
    dtype: of the result; None is the file's.
  """
  info = tensors.infos[name]
  array = empty_aligned(info.shape, dtype or info.dtype)
  fill(array, tensors.read(name), tensors.release)
  return array
