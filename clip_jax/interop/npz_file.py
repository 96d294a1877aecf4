"""numpy's .npz, in which big_vision publishes: a zip of .npy members."""

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from clip_jax.errors import UsageError
from clip_jax.interop.opened import (
  DTYPES,
  TensorInfo,
  Tensors,
  check_any,
  checked_info,
  damaged,
  settled,
)
from clip_jax.interop.replacing import replacing
from clip_jax.interop.zip_archive import ZipArchive

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_MAX_HEADER = 10_000  # bytes; numpy's limit for headers from strangers
# numpy knows ml_dtypes' types only as so many bytes, and of those bfloat16
# alone has two (big_vision's convention).
_RAW = {'|V2': _BFLOAT16}
_WRITABLE = {dtype for dtype in DTYPES if dtype.isbuiltin == 1} | {_BFLOAT16}


def open_npz(path: Path, archive: ZipArchive) -> Tensors:
  """Opens an archive of arrays.

  Raises:
    FailureError: a member is damaged, or holds objects, which are pickles.
  """
  infos: dict[str, TensorInfo] = {}
  layouts: dict[str, tuple[np.dtype, bool, int]] = {}
  for member in archive.members:
    name = member.removesuffix('.npy')
    shape, fortran, stored, begin = _header(archive, member)
    native = _native(path, name, stored)
    infos[name] = checked_info(path, name, shape, native)
    if begin + infos[name].nbytes != archive.members[member].size:
      raise damaged(path, f'the size of {name!r} is not what its shape takes')
    layouts[name] = stored, fortran, begin
  check_any(path, infos)

  def load(name: str) -> np.ndarray:
    stored, fortran, begin = layouts[name]
    raw = archive.read(name + '.npy')[begin:]
    array = raw.view(stored).reshape(
      infos[name].shape, order='F' if fortran else 'C'
    )
    if stored.kind == 'V':
      array = array.view(infos[name].dtype)
    return settled(array.astype(infos[name].dtype, copy=False))

  return Tensors(path, 'npz', infos, {}, load, archive.release)


def _header(
  archive: ZipArchive, member: str
) -> tuple[tuple[int, ...], bool, np.dtype, int]:
  """Shape, whether in Fortran order, dtype, and where the bytes begin."""
  file = io.BytesIO(archive.prefix(member, _MAX_HEADER + 32))
  readers = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  try:
    read = readers[np.lib.format.read_magic(file)]
    shape, fortran, dtype = read(file, max_header_size=_MAX_HEADER)
  except Exception as error:  # numpy parses a Python literal: anything goes
    raise damaged(archive.path, f'{member!r} is no .npy array') from error
  return shape, fortran, dtype, file.tell()


def _native(path: Path, name: str, stored: np.dtype) -> np.dtype:
  """The dtype that a stored one is read as."""
  if stored.hasobject:
    raise damaged(
      path, f'{name!r} holds Python objects, which are never unpickled'
    )
  native = _RAW.get(stored.str, stored.newbyteorder('='))
  if native not in DTYPES:
    raise UsageError(
      f'{path} is not a weight file: {name!r} has the dtype {stored.str}.'
    )
  return native


def write_npz(
  path: str | os.PathLike, tensors: Mapping[str, np.ndarray]
) -> None:
  """Writes an uncompressed .npz, whole or not at all.

  Args:
    tensors: numbers; bfloat16 is written as big_vision does, as '|V2'.
  Raises:
    UsageError: the place cannot be written, or .npz cannot hold a dtype.
    FailureError: the disk is full, or the like.
  """
  for name, tensor in tensors.items():
    if tensor.dtype not in _WRITABLE:
      raise UsageError(
        f'{path}: .npz cannot hold {name!r} of dtype {tensor.dtype}.'
      )
  with (
    replacing(path) as temporary,
    zipfile.ZipFile(temporary, 'w') as archive,
  ):
    for name, tensor in tensors.items():
      if tensor.dtype == _BFLOAT16:
        tensor = tensor.view('V2')
      with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
        np.lib.format.write_array(file, tensor, allow_pickle=False)
