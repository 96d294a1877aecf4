"""safetensors: a length, a JSON header, and the tensors' bytes.

    uint64 N | {"name": {"dtype", "shape", "data_offsets"}, …} [N] | bytes

The header is checked against the file before anything is allocated from what
it says (https://github.com/huggingface/safetensors, "Format").
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from clip_jax.errors import FailureError, UsageError
from clip_jax.files import replacing
from clip_jax.interop.tensor_file import (
  MappedFile,
  TensorInfo,
  Tensors,
  check_any,
  checked_info,
  damaged,
  settled,
)

DTYPES = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
  'F8_E5M2': np.dtype(ml_dtypes.float8_e5m2),
  'F8_E4M3FNUZ': np.dtype(ml_dtypes.float8_e4m3fnuz),
  'F8_E5M2FNUZ': np.dtype(ml_dtypes.float8_e5m2fnuz),
  'F8_E8M0': np.dtype(ml_dtypes.float8_e8m0fnu),
  'I64': np.dtype(np.int64),
  'I32': np.dtype(np.int32),
  'I16': np.dtype(np.int16),
  'I8': np.dtype(np.int8),
  'U64': np.dtype(np.uint64),
  'U32': np.dtype(np.uint32),
  'U16': np.dtype(np.uint16),
  'U8': np.dtype(np.uint8),
  'BOOL': np.dtype(np.bool_),
}
# The most bytes of a header; the largest published ones are under 1 MiB.
MAX_HEADER = 16 * 2**20


def open_safetensors(path: Path) -> Tensors:
  """Opens one file.

  Raises:
    FailureError: the header is not as the format demands, or does not fit the
      file.
  """
  file = MappedFile(path)
  data = file.bytes
  fields, start = _header(path, data)
  metadata = _metadata(path, fields.pop('__metadata__', {}))
  infos: dict[str, TensorInfo] = {}
  spans: dict[str, tuple[int, int]] = {}
  for name, entry in fields.items():
    infos[name], spans[name] = _entry(path, name, entry)
  check_any(path, infos)
  _check_spans(path, spans, data.size - start)

  def load(name: str) -> np.ndarray:
    begin, end = spans[name]
    raw = data[start + begin : start + end]
    return settled(raw.view(infos[name].dtype).reshape(infos[name].shape))

  return Tensors(path, 'safetensors', infos, metadata, load, file.release)


def _header(path: Path, data: np.ndarray) -> tuple[dict[str, Any], int]:
  """Returns the header's fields, and where the tensors' bytes begin."""
  size = int.from_bytes(data[:8].tobytes(), 'little')
  if data.size < 8 or 8 + size > data.size:
    raise damaged(
      path,
      f'it has {data.size:,} bytes, fewer than the header that it announces '
      f'({size:,} bytes); was it cut off?',
    )
  if size > MAX_HEADER:
    raise damaged(path, f'its header is over {MAX_HEADER:,} bytes ({size:,})')
  return parse_unique_json(
    path, data[8 : 8 + size].tobytes(), 'header'
  ), 8 + size


def parse_unique_json(path: Path, text: bytes, what: str) -> dict[str, Any]:
  """Returns a JSON object from an untrusted file.

  Raises:
    FailureError: the text is not JSON, is nested too deep, has a key twice, or
      is not an object.
  """

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
      raise damaged(path, f'its {what} has a key twice')
    return fields

  try:
    fields = json.loads(text.decode(), object_pairs_hook=unique)
  except (ValueError, RecursionError) as error:
    raise damaged(path, f'its {what} is not JSON') from error
  if not isinstance(fields, dict):
    raise damaged(path, f'its {what} is not a JSON object')
  return fields


def _metadata(path: Path, fields: Any) -> dict[str, Any]:
  if not isinstance(fields, dict) or not all(
    isinstance(value, str) for value in fields.values()
  ):
    raise damaged(path, "the header's __metadata__ is not text by name")
  return fields


def _entry(
  path: Path, name: str, entry: Any
) -> tuple[TensorInfo, tuple[int, int]]:
  """Returns a tensor's description, and its bytes' begin and end."""
  match entry:
    case {
      'dtype': str(code),
      'shape': list(shape),
      'data_offsets': [int(begin), int(end)],
    } if len(entry) == 3:
      pass
    case _:
      raise damaged(path, f'the header of {name!r} is malformed')
  if code not in DTYPES:
    raise damaged(path, f'{name!r} is of an unknown dtype, {code[:20]!r}')
  info = checked_info(path, name, tuple(shape), DTYPES[code])
  if info.nbytes != end - begin:
    raise damaged(
      path,
      f'{name!r} has {code} {list(info.shape)}, {info.nbytes:,} bytes, and '
      'its offsets say otherwise',
    )
  return info, (begin, end)


def _check_spans(
  path: Path, spans: Mapping[str, tuple[int, int]], size: int
) -> None:
  """Refuses tensors whose bytes do not follow each other and fill the file."""
  position = 0
  for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
    if begin != position:
      how = 'overlaps another' if begin < position else 'leaves a gap'
      raise damaged(path, f'{name!r} {how} at offset {min(begin, position):,}')
    position = end
  if position != size:
    raise damaged(
      path,
      f'its tensors take {position:,} bytes and it has {size:,} for them; was '
      'it cut off?',
    )


def write_safetensors(
  path: str | os.PathLike,
  tensors: Mapping[str, np.ndarray],
  metadata: Mapping[str, str],
) -> None:
  """Writes one file, whole or not at all.

  Args:
    tensors: of the dtypes in `DTYPES`. Only what is not C-contiguous is copied.
    metadata: for `__metadata__`; torch's tools expect {'format': 'pt'}.
  Raises:
    UsageError: the path cannot be written, or a dtype has no code.
    FailureError: the disk is full, or the like.
  """
  for name, tensor in tensors.items():
    if tensor.dtype not in DTYPES.values() or name == '__metadata__':
      raise UsageError(
        f'{path}: safetensors cannot hold {name!r} of dtype {tensor.dtype}.'
      )
  dense = {name: settled(tensor) for name, tensor in tensors.items()}
  with replacing(path) as temporary:
    try:
      save_file(dense, temporary, dict(metadata))
    except SafetensorError as error:  # the library's own, for a full disk too
      reason = ' '.join(str(error).split())
      raise FailureError(f'{path} could not be written: {reason}.') from error
