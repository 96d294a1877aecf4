"""Opens weight files of every supported format behind one interface.

    with open_tensors('ViT-B-32.pt') as tensors:
      for name, info in tensors.infos.items():
        print(name, info.shape, info.dtype, tensors.read(name).mean())

Files are recognised by what they hold, never by their name. They are not
trusted: whatever is in them, reading executes nothing and allocates no more
than the tensors that they are long enough to hold.

A model in several files has an index that names them, safetensors or torch's:

    {"metadata": {…}, "weight_map": {"tensor": "model-1-of-2.safetensors"}}
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.errors import FailureError, UsageError, reason_of
from clip_jax.files import open_regular, typed_path
from clip_jax.interop import (
  npz_file,
  safetensors_file,
  state_dicts,
  torch_file,
)
from clip_jax.interop.safetensors_file import MAX_HEADER, parse_unique_json
from clip_jax.interop.tensor_file import TensorInfo, Tensors, check_any, damaged
from clip_jax.interop.zip_archive import ZipArchive

__all__ = ['TensorInfo', 'Tensors', 'open_tensors']

_HEAD = 512  # bytes; enough to tell what a file is
# The number that torch's format of before 2020 starts with, pickled.
_LEGACY_TORCH = b'\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.'
_FORMATS = (
  'safetensors, a torch zip archive (.pt, .bin), the .index.json of several, '
  'TorchScript, or .npz'
)


def open_tensors(
  path: str | os.PathLike, weights: str | None = None
) -> Tensors:
  """Opens a weight file, or a directory with a safetensors model.

  Of what a training run saved, these are the model's tensors under their own
  names (`state_dicts`).

  Args:
    path: a safetensors file, what `torch.save` or `torch.jit.save` wrote, an
      .npz; the `*.index.json` of several of them; or a directory with one
      index of safetensors, or else with one *.safetensors file.
    weights: which of several models in the file, such as 'ema_state_dict'.
  Raises:
    UsageError: there is no such file, it is not a weight file, or it holds
      several models and none was named.
    FailureError: the file is damaged or unsafe.
  """
  return state_dicts.selected(_open(typed_path(path)), weights)


def _open(path: Path) -> Tensors:
  """Opens a weight file, of whatever format, with all its tensors."""
  try:
    if path.is_dir():
      path = _in_directory(path)
    if path.exists() and not path.is_file():
      raise UsageError(f'{path} is a device or a pipe: name a weight file.')
    head = _head(path)
    if _is_text(head) and head.lstrip().startswith(b'{'):
      return open_index(path, _open_file)
    return _open_file(path)
  except FileNotFoundError as error:
    raise UsageError(f'{path}: there is no such file or directory.') from error
  except OSError as error:
    reason = reason_of(error)
    raise UsageError(f'{path} cannot be read: {reason}.') from error


def _in_directory(directory: Path) -> Path:
  """Returns the file that stands for a directory."""
  for pattern in ('*.safetensors.index.json', '*.safetensors'):
    matches = sorted(directory.glob(pattern))
    if len(matches) == 1:
      return matches[0]
    if matches:
      names = ', '.join(path.name for path in matches[:4])
      raise UsageError(
        f'{directory} holds {len(matches)} {pattern} ({names}, …): name one.'
      )
  raise UsageError(
    f'{directory} holds no weights (model.safetensors, pytorch_model.bin and '
    'the like): name a weight file.'
  )


def _head(path: Path) -> bytes:
  with open_regular(path) as file:
    return file.read(_HEAD)


def _open_file(path: Path) -> Tensors:
  """Opens a file that holds tensors itself."""
  head = _head(path)
  if head.startswith(b'PK'):
    return _open_archive(path)
  if _is_text(head):
    raise _not_weights(path, _what_text(head))
  if head[8:9] == b'{':
    return safetensors_file.open_safetensors(path)
  raise _not_weights(path, _what_binary(head))


def _open_archive(path: Path) -> Tensors:
  archive = ZipArchive(path)
  if any(name.split('/')[1:] == ['data.pkl'] for name in archive.members):
    return torch_file.open_torch(path, archive)
  if all(name.endswith('.npy') for name in archive.members):
    return npz_file.open_npz(path, archive)
  raise _not_weights(path, 'it is a zip archive of other things')


def _is_text(head: bytes) -> bool:
  """Returns whether a file is text: a safetensors length has zero bytes."""
  start = head[:8]
  return bool(start) and all(b in b'\t\r\n' or b >= 32 for b in start)


def _what_text(head: bytes) -> str:
  start = head.lstrip().lower()
  if start.startswith(b'{'):
    return 'it is an index, and an index named it'
  if start.startswith(b'version https://git-lfs'):
    return (
      'it is a git-lfs pointer, which stands for the real file: fetch that '
      'with "git lfs pull"'
    )
  if start.startswith((b'<!doctype', b'<html', b'<?xml')):
    return 'it is a web page, saved in place of the file: download it again'
  return 'it starts with none of their signatures'


def _what_binary(head: bytes) -> str:
  if not head:
    return 'it is empty'
  if _LEGACY_TORCH in head[:32]:
    return (
      'it is in the format of torch before 1.6, a bare pickle: load it with a '
      'current torch where you trust it, and torch.save it again'
    )
  if head[0] == 0x80 and head[1:2] <= b'\x05':
    return 'it is a bare pickle, which only running it could read'
  return 'it starts with none of their signatures'


def _not_weights(path: Path, why: str) -> UsageError:
  return UsageError(
    f'{path} is not a weight file that can be read: {why}. Give {_FORMATS}.'
  )


def open_index(path: Path, open_file: Callable[[Path], Tensors]) -> Tensors:
  """Opens the shards that an index names, all in the index's directory.

  Args:
    path: of the index.
    open_file: opens one shard, of whatever format; no further index.
  Raises:
    FailureError: the index or a shard is damaged, a shard is missing, lies
      elsewhere, or lacks a tensor that the index says is in it.
  """
  fields = _read_index(path)
  weight_map = fields['weight_map']
  shards = {
    name: open_file(_shard(path, name))
    for name in sorted(set(weight_map.values()))
  }
  infos = {}
  for name, shard in weight_map.items():
    if name not in shards[shard].infos:
      raise damaged(path, f'{name!r} is not in {shard}, where it should be')
    infos[name] = shards[shard].infos[name]
  metadata: dict[str, Any] = {}
  for shard in shards.values():
    metadata |= shard.metadata
  own = fields.get('metadata')

  def load(name: str) -> np.ndarray:
    return shards[weight_map[name]].read(name)

  def release() -> None:
    for shard in shards.values():
      shard.release()

  metadata |= own if isinstance(own, dict) else {}
  kind = next(iter(shards.values())).format
  return Tensors(path, kind, infos, metadata, load, release)


def _read_index(path: Path) -> dict[str, Any]:
  if path.stat().st_size > MAX_HEADER:
    raise damaged(path, f'it is an index of over {MAX_HEADER:,} bytes')
  fields = parse_unique_json(path, path.read_bytes(), 'text')
  weight_map = fields.get('weight_map')
  if not isinstance(weight_map, dict) or not all(
    isinstance(shard, str) for shard in weight_map.values()
  ):
    raise damaged(path, 'it has no weight_map of tensors to file names')
  check_any(path, weight_map)
  return fields


def _shard(index: Path, name: str) -> Path:
  if not name or name in ('.', '..') or set(name) & set('/\\\0'):
    raise damaged(index, f'the shard {name[:80]!r} is not a plain file name')
  shard = index.parent / name
  if not shard.is_file():
    raise FailureError(f'{index}: its shard {name} is missing: fetch it too.')
  return shard
