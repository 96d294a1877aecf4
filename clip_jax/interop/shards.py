"""A model in several files, and the index that names them.

{"metadata": {…}, "weight_map": {"tensor": "model-00001-of-00002.safetensors"}}

The files are safetensors, or what `torch.save` wrote.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.errors import FailureError
from clip_jax.interop.safetensors_file import MAX_HEADER, parse_json
from clip_jax.interop.tensor_file import Tensors, check_any, damaged


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
  fields = parse_json(path, path.read_bytes(), 'text')
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
