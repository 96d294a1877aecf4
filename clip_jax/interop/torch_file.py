"""Reads torch's archives, which `torch.save` and `torch.jit.save` write.

    NAME/data.pkl        the object; each storage in it is a key
    NAME/data/KEY        a storage's elements
    NAME/byteorder       'little' or 'big'; absent: little
    NAME/code/…, NAME/constants.pkl   only in a TorchScript

Of a saved dict, the tensors are its own and those of the dicts in it, of a
TorchScript the parameters and buffers in the tree of modules, all by their
dotted names. What an optimizer keeps is left out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.errors import FailureError, UsageError
from clip_jax.interop.state_dicts import OF_TRAINING, STATE_DICT_KEYS
from clip_jax.interop.tensor_file import (
  TensorInfo,
  Tensors,
  checked_info,
  damaged,
  settled,
)
from clip_jax.interop.torch_objects import Module, PickleError, TensorView
from clip_jax.interop.torch_pickle import MAX_BYTES, parse
from clip_jax.interop.zip_archive import ZipArchive

_MAX_DEPTH = 100  # of modules in modules, dicts in dicts
_MAX_ATTRIBUTES = 100_000
_MAX_NAME = 1_000  # characters; long ones would be repeated for each tensor
# A view may repeat elements (`expand`). It may be larger than its storage up to
# this many bytes.
_MAX_EXPANDED = 256 * 2**20


def open_torch(path: Path, archive: ZipArchive) -> Tensors:
  """Opens a torch archive.

  Raises:
    UsageError: there is no state dict in it.
    FailureError: the archive is damaged, or would have to be executed.
  """
  root = next(
    name.removesuffix('data.pkl')
    for name in archive.members
    if name.split('/')[1:] == ['data.pkl']
  )
  saved = _unpickled(archive, f'{root}data.pkl')
  metadata: dict[str, Any] = {}
  script = isinstance(saved, Module)
  if script:
    views = _script_tensors(path, saved)
    metadata |= _scalars(saved.attributes)
  else:
    views = _state_dict_tensors(path, saved, metadata)
  infos = {
    name: _info(archive, root, name, view) for name, view in views.items()
  }
  swap = _is_big_endian(archive, root)

  def load(name: str) -> np.ndarray:
    view = views[name]
    member = f'{root}data/{view.storage.key}'
    array = settled(_strided(archive.read(member, check=False), view))
    if swap and view.dtype.itemsize > 1:
      words = array.view(f'u{view.dtype.itemsize}')
      array = words.byteswap().view(view.dtype)
    return array

  kind = 'torchscript' if script else 'torch'
  return Tensors(path, kind, infos, metadata, load, archive.release)


def _unpickled(archive: ZipArchive, member: str) -> Any:
  if archive.members[member].size > MAX_BYTES:
    raise damaged(archive.path, f'{member!r} is over {MAX_BYTES:,} bytes')
  try:
    return parse(archive.read(member, check=False).tobytes())
  except PickleError as error:
    raise FailureError(f'{archive.path}: {str(error)[:400]}.') from error


def _is_big_endian(archive: ZipArchive, root: str) -> bool:
  if f'{root}byteorder' not in archive.members:
    return False
  order = archive.prefix(f'{root}byteorder', 8)
  if order not in (b'little', b'big'):
    raise damaged(archive.path, f'its byte order is {order!r}')
  return order == b'big'


def _state_dict_tensors(
  path: Path, saved: Any, metadata: dict[str, Any]
) -> dict[str, TensorView]:
  """Returns the tensors in a dict, by name, and adds to the metadata."""
  views: dict[str, TensorView] = {}
  if isinstance(saved, dict):
    metadata |= _scalars(saved)
    kept = {
      name: value
      for name, value in saved.items()
      if isinstance(name, str)
      and not (isinstance(value, dict) and OF_TRAINING.match(name))
    }
    views = _tensors_in(path, kept)
    keys = [key for key in STATE_DICT_KEYS if isinstance(saved.get(key), dict)]
    if keys and not any(name.startswith(f'{keys[0]}.') for name in views):
      views = {}
  if not views:
    raise UsageError(
      f'{path} holds no state dict: neither it nor its '
      f'{" or ".join(STATE_DICT_KEYS)} is a dict of tensors.'
    )
  return views


def _scalars(fields: dict[Any, Any]) -> dict[str, Any]:
  return {
    name: value
    for name, value in fields.items()
    if isinstance(name, str) and isinstance(value, str | int | float)
  }


def _script_tensors(path: Path, root: Module) -> dict[str, TensorView]:
  """Returns the tensors in a tree of modules, by dotted name."""
  views = _tensors_in(path, root.attributes)
  if not views:
    raise UsageError(f'{path} is a TorchScript without parameters.')
  return views


def _tensors_in(path: Path, tree: dict[Any, Any]) -> dict[str, TensorView]:
  """Returns the tensors in a tree of modules or dicts, by dotted name."""
  views = {}
  for count, (name, value) in enumerate(_walk(path, tree, '', 0)):
    if count > _MAX_ATTRIBUTES:
      raise damaged(path, f'it has over {_MAX_ATTRIBUTES:,} attributes')
    if isinstance(value, TensorView):
      views[name] = value
  return views


def _walk(
  path: Path, tree: dict[Any, Any], prefix: str, depth: int
) -> Iterator[tuple[str, Any]]:
  """Yields every attribute below a module; two may share a module."""
  if depth > _MAX_DEPTH:
    raise damaged(path, f'its modules are nested over {_MAX_DEPTH} deep')
  if len(prefix) > _MAX_NAME:
    raise damaged(path, f'it has a module of over {_MAX_NAME:,} letters')
  for name, value in tree.items():
    if not isinstance(name, str):
      continue
    yield f'{prefix}{name}', value
    inner = value.attributes if isinstance(value, Module) else value
    if isinstance(inner, dict):
      yield from _walk(path, inner, f'{prefix}{name}.', depth + 1)


def _info(
  archive: ZipArchive, root: str, name: str, view: TensorView
) -> TensorInfo:
  """Describes a tensor, if its storage is there and as large as it says."""
  storage = view.storage
  nbytes = storage.size * storage.dtype.itemsize
  member = archive.members.get(f'{root}data/{storage.key}')
  if member is None or member.size != nbytes:
    raise damaged(
      archive.path,
      f'the storage of {name!r} should have {nbytes:,} bytes and '
      + ('is missing' if member is None else f'has {member.size:,}'),
    )
  info = checked_info(archive.path, name, view.shape, view.dtype)
  if info.nbytes > max(nbytes, _MAX_EXPANDED):
    raise damaged(
      archive.path,
      f'{name!r} would grow from {nbytes:,} to {info.nbytes:,} bytes',
    )
  return info


def _strided(storage: np.ndarray, view: TensorView) -> np.ndarray:
  """Returns the elements of a view in its storage's bytes, uint8 [size].

  `torch_pickle` has checked that they lie in the storage's announced size,
  `_info` that this is its real one; numpy checks once more.
  """
  if 0 in view.shape:
    return np.zeros(view.shape, view.dtype)
  return np.ndarray(
    view.shape,
    view.dtype,
    buffer=storage.data,
    offset=view.offset * view.dtype.itemsize,
    strides=[stride * view.dtype.itemsize for stride in view.strides],
  )
