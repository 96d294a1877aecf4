"""numpy's .npz, in which big_vision publishes: a zip of .npy members.

Headers are numpy's own to parse; the members are mapped from the file. Why not
`numpy.load` as a whole: it allocates what a header says before it looks how
long the member is, cannot map one, and of 604 MB took 0.67 to 0.93 s of a
processor where this takes 0.34 s, copy into aligned memory included.
"""

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from clip_jax.errors import UsageError
from clip_jax.files import open_regular, replacing
from clip_jax.interop.tensor_file import (
  DTYPES,
  TensorInfo,
  Tensors,
  check_any,
  checked_info,
  damaged,
  settled,
)
from clip_jax.interop.zip_archive import ZipArchive

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_MAX_HEADER = 10_000  # bytes; numpy's limit for untrusted headers
# numpy writes ml_dtypes' types as raw bytes; two bytes stand for bfloat16, as
# in big_vision's files.
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


def read_array(
  archive: ZipArchive, member: str, *, check: bool = True
) -> np.ndarray:
  """Reads one array of numbers or strings.

  Where it lies uncompressed, it is a view of the file, which may not be
  aligned.

  Args:
    member: a name in `archive.members`.
    check: whether to compare the checksum, which reads all of it.
  Raises:
    FailureError: it is damaged, holds objects, or is not as large as it says.
  """
  shape, fortran, dtype, begin = _header(archive, member)
  if dtype.kind not in 'biufUS' or not dtype.itemsize or dtype.subdtype:
    raise damaged(archive.path, f'{member!r} is an array of {dtype}')
  info = checked_info(archive.path, member, shape, dtype)
  raw = archive.read(member, check=check)[begin:]
  if info.nbytes != raw.size:
    raise damaged(archive.path, f'{member!r} is not as large as its shape')
  return raw.view(dtype).reshape(shape, order='F' if fortran else 'C')


def read_npz(
  path: Path, wanted: Mapping[str, tuple[type, int]]
) -> dict[str, np.ndarray]:
  """Reads some arrays of a file of our own.

  Args:
    wanted: their names, with the dtype and the number of axes of each.
  Raises:
    FailureError: the file is damaged, or an array is missing or of another
      kind.
  """
  open_regular(path).close()
  archive, arrays = ZipArchive(path), {}
  for name, (dtype, rank) in wanted.items():
    if f'{name}.npy' not in archive.members:
      raise damaged(path, f'it has no array {name!r}')
    array = read_array(archive, f'{name}.npy')
    if array.dtype != dtype or array.ndim != rank:
      kind = f'{array.dtype} {list(array.shape)}'
      raise damaged(path, f'{name!r} is an array of {kind}')
    arrays[name] = settled(array)
  return arrays


def _header(
  archive: ZipArchive, member: str
) -> tuple[tuple[int, ...], bool, np.dtype, int]:
  """Returns shape, whether in Fortran order, dtype, and the bytes' offset."""
  file = io.BytesIO(archive.prefix(member, _MAX_HEADER + 32))
  readers = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  try:
    read = readers[np.lib.format.read_magic(file)]
    shape, fortran, dtype = read(file, max_header_size=_MAX_HEADER)
  except (
    Exception
  ) as error:  # numpy parses a Python literal, which may raise anything
    raise damaged(archive.path, f'{member!r} is no .npy array') from error
  return shape, fortran, dtype, file.tell()


def _native(path: Path, name: str, stored: np.dtype) -> np.dtype:
  """Returns the dtype that a stored one is read as."""
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
    UsageError: the path cannot be written, or .npz cannot hold a dtype.
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
