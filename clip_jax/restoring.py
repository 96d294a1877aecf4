"""The arrays of a checkpoint, read in little more memory than they take.

Orbax would read a tree at once, into memory that a device then copies. Here
TensorStore, in which Orbax keeps them, writes each array to where it stays.
"""

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from orbax.checkpoint import type_handlers

from clip_jax.interop.filling import aligned


def restore_numpy(path: epath.Path) -> Any:
  """One item of a checkpoint, a tree, wherever its devices were.

  Args:
    path: of the item's directory.
  Returns:
    numpy arrays, which a CPU device takes without a copy.
  Raises:
    Exception: whatever Orbax and TensorStore raise on a damaged one.
  """
  with ocp.PyTreeCheckpointer() as reader:
    tree = reader.metadata(path).item_metadata.tree
  leaves, structure = jax.tree.flatten(tree)
  context = type_handlers.get_ts_context(use_ocdbt=True)
  arrays: list[Any] = [None] * len(leaves)
  # The largest first: while it is decoded, most of the room is still free.
  for i in sorted(range(len(leaves)), key=lambda i: -np.prod(leaves[i].shape)):
    arrays[i] = _read(path, leaves[i].name, context)
  return jax.tree.unflatten(structure, arrays)


def _read(path: epath.Path, name: str, context: ts.Context) -> np.ndarray:
  info = type_handlers.ParamInfo(name=name, parent_dir=path, use_zarr3=False)
  spec = type_handlers.get_json_tspec_read(info, use_ocdbt=True)
  store = ts.open(spec, open=True, read=True, context=context).result()
  array = aligned(tuple(store.shape), store.dtype.numpy_dtype)
  ts.array(array).write(store).result()
  return array
