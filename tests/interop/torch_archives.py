"""torch's archives, put together by hand from pickle's instructions."""

import pathlib
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

CLASSES = {
  'float64': 'DoubleStorage',
  'float32': 'FloatStorage',
  'float16': 'HalfStorage',
  'bfloat16': 'BFloat16Storage',
  'int64': 'LongStorage',
  'int32': 'IntStorage',
  'int16': 'ShortStorage',
  'int8': 'CharStorage',
  'uint8': 'ByteStorage',
  'bool': 'BoolStorage',
}
EMPTY = b')'


def text(value: str) -> bytes:
  raw = value.encode()
  return b'X' + struct.pack('<I', len(raw)) + raw


def number(value: int) -> bytes:
  raw = value.to_bytes(9, 'little', signed=True)
  return b'\x8a' + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
  return f'c{module}\n{attribute}\n'.encode()


def sequence(*items: bytes) -> bytes:
  return b'(' + b''.join(items) + b't'


def mapping(items: Mapping[str, bytes]) -> bytes:
  pairs = b''.join(text(key) + value for key, value in items.items())
  return b'}(' + pairs + b'u'


def call(function: bytes, *arguments: bytes) -> bytes:
  return function + sequence(*arguments) + b'R'


def storage(key: str, dtype: str, size: int) -> bytes:
  return (
    sequence(
      text('storage'),
      name('torch', CLASSES[dtype]),
      text(key),
      text('cuda:0'),
      number(size),
    )
    + b'Q'
  )


def view(
  stored: bytes,
  shape: tuple[int, ...],
  strides: tuple[int, ...],
  offset: int = 0,
) -> bytes:
  """A `torch.Tensor` over a `storage`."""
  return call(
    name('torch._utils', '_rebuild_tensor_v2'),
    stored,
    number(offset),
    sequence(*map(number, shape)),
    sequence(*map(number, strides)),
    b'\x89',
    name('collections', 'OrderedDict') + EMPTY + b'R',
  )


def tensor(key: str, array: np.ndarray) -> bytes:
  strides = [stride // array.itemsize for stride in array.strides]
  stored = storage(key, array.dtype.name, array.size)
  return view(stored, array.shape, tuple(strides))


def module(attributes: Mapping[str, bytes]) -> bytes:
  """An object of a TorchScript class."""
  made = name('__torch__.some.thing', 'Module') + EMPTY + b'\x81'
  return made + mapping(attributes) + b'b'


def finished(body: bytes, protocol: int = 2) -> bytes:
  return b'\x80' + bytes([protocol]) + body + b'.'


def write_archive(
  path: pathlib.Path,
  body: bytes,
  storages: Mapping[str, bytes] | None = None,
  *,
  byteorder: str = 'little',
  compression: int = zipfile.ZIP_STORED,
) -> pathlib.Path:
  """Writes what `torch.save` would for a pickle's body."""
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('archive/data.pkl', finished(body))
    archive.writestr('archive/byteorder', byteorder)
    for key, content in (storages or {}).items():
      archive.writestr(f'archive/data/{key}', content)
    archive.writestr('archive/version', '3\n')
  return path


def write_state_dict(
  path: pathlib.Path, arrays: Mapping[str, np.ndarray], **options
) -> pathlib.Path:
  """Writes C-contiguous arrays as a state dict."""
  keys = {name: str(index) for index, name in enumerate(arrays)}
  body = mapping({name: tensor(keys[name], a) for name, a in arrays.items()})
  contents = {keys[name]: array.tobytes() for name, array in arrays.items()}
  return write_archive(path, body, contents, **options)
