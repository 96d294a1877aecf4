"""Descriptions that stand for the objects in a torch pickle.

The tables here are all that a pickle may name. A name is looked up in them and
nowhere else.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import ml_dtypes
import numpy as np

from clip_jax.interop.tensor_file import MAX_RANK

_VALUES = {  # the class of a storage, or a dtype
  'torch.storage.UntypedStorage': np.dtype(np.uint8),  # its size is in bytes
  'torch.DoubleStorage': np.dtype(np.float64),
  'torch.FloatStorage': np.dtype(np.float32),
  'torch.HalfStorage': np.dtype(np.float16),
  'torch.BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'torch.LongStorage': np.dtype(np.int64),
  'torch.IntStorage': np.dtype(np.int32),
  'torch.ShortStorage': np.dtype(np.int16),
  'torch.CharStorage': np.dtype(np.int8),
  'torch.ByteStorage': np.dtype(np.uint8),
  'torch.BoolStorage': np.dtype(np.bool_),
  'torch.float64': np.dtype(np.float64),
  'torch.float32': np.dtype(np.float32),
  'torch.float16': np.dtype(np.float16),
  'torch.bfloat16': np.dtype(ml_dtypes.bfloat16),
  'torch.float8_e4m3fn': np.dtype(ml_dtypes.float8_e4m3fn),
  'torch.float8_e5m2': np.dtype(ml_dtypes.float8_e5m2),
  'torch.float8_e4m3fnuz': np.dtype(ml_dtypes.float8_e4m3fnuz),
  'torch.float8_e5m2fnuz': np.dtype(ml_dtypes.float8_e5m2fnuz),
  'torch.float8_e8m0fnu': np.dtype(ml_dtypes.float8_e8m0fnu),
  'torch.int64': np.dtype(np.int64),
  'torch.int32': np.dtype(np.int32),
  'torch.int16': np.dtype(np.int16),
  'torch.int8': np.dtype(np.int8),
  'torch.uint64': np.dtype(np.uint64),
  'torch.uint32': np.dtype(np.uint32),
  'torch.uint16': np.dtype(np.uint16),
  'torch.uint8': np.dtype(np.uint8),
  'torch.bool': np.dtype(np.bool_),
}


class PickleError(Exception):
  """A pickle that is damaged, or asks for more than descriptions."""


@dataclasses.dataclass(frozen=True, eq=False)
class Name:
  """A class or function that the pickle names; it is never looked up."""

  name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
  """The storage of tensors: consecutive elements, the member data/KEY."""

  key: str
  dtype: np.dtype
  size: int  # elements


@dataclasses.dataclass(frozen=True, eq=False)
class TensorView:
  """A tensor: a storage, seen with a shape and strides."""

  storage: Storage
  dtype: np.dtype
  offset: int  # all three in elements of `dtype`
  shape: tuple[int, ...]
  strides: tuple[int, ...]


@dataclasses.dataclass(eq=False)
class Module:
  """An object of a TorchScript class: its attributes, and no behaviour."""

  attributes: dict[Any, Any] = dataclasses.field(default_factory=dict)


class Opaque:
  """A harmless object that is no weight, and is not read further."""


def natural(values: Iterable[Any]) -> bool:
  return all(type(value) is int and 0 <= value < 2**62 for value in values)


def _tensor(
  storage: Any, offset: Any, shape: Any, strides: Any, *_: Any
) -> TensorView:
  """Stands for `torch._utils._rebuild_tensor_v2`."""
  return _view(storage, getattr(storage, 'dtype', None), offset, shape, strides)


def _tensor_of_dtype(
  storage: Any,
  offset: Any,
  shape: Any,
  strides: Any,
  _gradient: Any,
  _hooks: Any,
  dtype: Any,
  *_: Any,
) -> TensorView:
  """Stands for `_rebuild_tensor_v3`, of dtypes without a storage class."""
  return _view(storage, dtype, offset, shape, strides)


def _view(
  storage: Any, dtype: Any, offset: Any, shape: Any, strides: Any
) -> TensorView:
  """Checks that all elements lie inside the storage, as it describes itself."""
  shape, strides = _sizes(shape), _sizes(strides)
  if (
    not isinstance(storage, Storage)
    or not isinstance(dtype, np.dtype)
    or not natural((offset, *shape, *strides))
    or len(shape) != len(strides)
  ):
    raise TypeError
  end = offset
  if 0 not in shape:
    steps = zip(shape, strides, strict=True)
    end += 1 + sum((size - 1) * stride for size, stride in steps)
  if end * dtype.itemsize > storage.size * storage.dtype.itemsize:
    raise PickleError(f'a tensor reaches beyond storage {storage.key[:80]!r}')
  return TensorView(storage, dtype, offset, shape, strides)


def _of_type(function: Any, _: Any, arguments: Any, *__: Any) -> TensorView:
  """Stands for `_rebuild_from_type_v2`, of a tensor with attributes."""
  if not isinstance(function, Name) or not isinstance(arguments, tuple):
    raise TypeError
  if function.name not in _TENSORS:
    raise TypeError
  return describe(function.name, arguments)


def _sizes(values: Any) -> tuple[Any, ...]:
  """Stands for `torch.Size`; the bound keeps long lists from being copied."""
  if not isinstance(values, tuple | list) or len(values) > MAX_RANK:
    raise TypeError
  return tuple(values)


def _parameter(tensor: Any, *_: Any) -> TensorView:
  """Stands for `_rebuild_parameter`, of a trained tensor."""
  if not isinstance(tensor, TensorView):
    raise TypeError
  return tensor


def _ordered_dict(*pairs: Any) -> dict[Any, Any]:
  if pairs and pairs != ([],):
    raise ValueError  # torch fills it item by item
  return {}


def _same(value: Any, *_: Any) -> Any:
  """Returns what marks a value with its type, in a TorchScript."""
  return value


def resolve(name: str) -> Name | np.dtype:
  """Returns what stands for something that the pickle names."""
  if name in _DESCRIPTIONS or name in _OPAQUE or name.startswith(_SCRIPT):
    return Name(name)
  if name not in _VALUES:
    raise PickleError(
      f'its pickle calls for {name[:80]!r}, which is no part of a state dict '
      'and was not executed: where you trust the file, load it with torch and '
      'save its state_dict() alone'
    )
  return _VALUES[name]


def describe(name: str, arguments: tuple[Any, ...]) -> Any:
  """Returns the description of what a call would make.

  Args:
    name: of a `Name` that `resolve` gave.
    arguments: from the pickle: anything.
  Raises:
    TypeError, ValueError, PickleError: the arguments do not fit.
  """
  if len(arguments) > _MAX_ARGUMENTS:
    raise TypeError
  if name.startswith(_SCRIPT):
    return Module()
  if name in _OPAQUE:
    return Opaque()
  return _DESCRIPTIONS[name](*arguments)


_MAX_ARGUMENTS = 16
_SCRIPT = '__torch__.'  # the classes that a TorchScript brings with it
_TENSORS: dict[str, Callable[..., Any]] = {
  'torch._utils._rebuild_tensor_v2': _tensor,
  'torch._utils._rebuild_tensor_v3': _tensor_of_dtype,
  'torch._utils._rebuild_parameter': _parameter,
  'torch._utils._rebuild_parameter_with_state': _parameter,
}
_DESCRIPTIONS: dict[str, Callable[..., Any]] = {
  **_TENSORS,
  'torch._tensor._rebuild_from_type_v2': _of_type,
  'torch.Size': _sizes,
  'collections.OrderedDict': _ordered_dict,
  'torch.jit._pickle.build_intlist': _same,
  'torch.jit._pickle.build_doublelist': _same,
  'torch.jit._pickle.build_boollist': _same,
  'torch.jit._pickle.build_tensorlist': _same,
  'torch.jit._pickle.restore_type_tag': _same,
}
# Classes that training checkpoints name beside weights (options, devices,
# scores), and the types of tensors that carry attributes.
_OPAQUE = frozenset(
  {
    '__builtin__.set',
    'builtins.set',
    'argparse.Namespace',
    'torch.device',
    'numpy.dtype',
    'numpy.core.multiarray.scalar',
    'numpy._core.multiarray.scalar',
    '_codecs.encode',
    'torch.Tensor',
    'torch.nn.parameter.Parameter',
    'torch.nn.parameter.Buffer',
  }
)
