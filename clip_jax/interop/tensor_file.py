"""An opened weight file: what it holds, and a way to read one tensor."""

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from clip_jax.errors import FailureError, UsageError

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
  """What is known of a tensor before it is read."""

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
  """A tensor's description, if an array can be like that.

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
  """C-contiguous and aligned: the same array where it is so already."""
  return np.require(array, requirements=['C', 'A'])


def damaged(path: Path, what: str) -> FailureError:
  """The error for a file whose content is not what its format demands."""
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
