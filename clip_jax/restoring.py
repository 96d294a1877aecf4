"""The arrays of a checkpoint, read in little more memory than they take.

Orbax reads all arrays of a tree at once, and beside each of them the chunk
that it is decoded from: twice the memory. Here it is asked for a few at a time.
"""

import math
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from clip_jax.interop.filling import aligned

# Bytes to read at once. What is freed is not always given back to the system,
# so more is faster by little and costs that much again.
_GROUP = 8 * 2**20


def restore_numpy(path: epath.Path) -> dict[str, Any]:
  """One item of a checkpoint, a tree of dicts, wherever its devices were.

  Args:
    path: of the item's directory.
  Returns:
    numpy arrays, which a CPU device takes without a copy.
  Raises:
    Exception: whatever Orbax does on a damaged one.
  """
  with ocp.PyTreeCheckpointer() as reader:
    infos = flatten_dict(reader.metadata(path).item_metadata.tree)
    arrays: dict[Any, Any] = dict.fromkeys(infos)  # in the tree's order
    for keys in _groups({key: _size(info) for key, info in infos.items()}):
      part = unflatten_dict({key: infos[key] for key in keys})
      found = flatten_dict(reader.restore(path, args=_as_numpy(part)))
      for key in keys:
        arrays[key] = _aligned(found.pop(key))
  return unflatten_dict(arrays)


def _groups(sizes: dict[Any, int]) -> list[list[Any]]:
  """Keys to read together, the largest first: room is left for them then."""
  groups: list[list[Any]] = []
  room = 0
  for key in sorted(sizes, key=lambda key: -sizes[key]):
    if not groups or sizes[key] > room:
      groups.append([])
      room = _GROUP
    groups[-1].append(key)
    room -= sizes[key]
  return groups


def _as_numpy(part: Any) -> ocp.args.PyTreeRestore:
  return ocp.args.PyTreeRestore(
    item=part,
    restore_args=jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), part
    ),
    partial_restore=True,
  )


def _aligned(array: np.ndarray) -> np.ndarray:
  copy = aligned(array.shape, array.dtype)
  copy[...] = array
  return copy


def _size(info: Any) -> int:
  return math.prod(info.shape) * np.dtype(info.dtype).itemsize
