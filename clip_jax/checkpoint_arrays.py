"""The arrays of a checkpoint on their way to the disk and back.

Written: a copy of arrays that live on CPUs, while these change. From an
accelerator Orbax copies arrays to the host. Those of a CPU it would read where
they are, and a step that is to update memory that is being read has to take new
memory instead: gigabytes of fresh pages, which cost many times what copying
into known ones does.

Read: in little more memory than they take. Orbax would read a tree as a whole,
into memory that a device then copies. Here TensorStore, in which Orbax keeps
them, writes each array to where it stays.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from orbax.checkpoint import type_handlers

from clip_jax.interop.tensor_file import aligned


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


class HostCopy:
  """Copies trees of the same shapes, again and again into the same memory."""

  def __init__(self) -> None:
    self._copy: Any = None

  def of(self, tree: Any) -> Any:
    """The tree's copy, done when this returns; the tree itself, off CPUs.

    The one before is used up. Should it still be read, JAX takes new memory.
    """
    if not all(_on_cpu(leaf) for leaf in jax.tree.leaves(tree)):
      return tree
    before, self._copy = self._copy, None
    copy = _copy(tree) if before is None else _copy_into(before, tree)
    self._copy = jax.block_until_ready(copy)
    return self._copy


def _on_cpu(leaf: jax.Array) -> bool:
  return all(device.platform == 'cpu' for device in leaf.devices())


@jax.jit
def _copy(tree: Any) -> Any:
  return jax.tree.map(jnp.copy, tree)


@jax.jit(donate_argnums=0, keep_unused=True)
def _copy_into(memory: Any, tree: Any) -> Any:
  del memory  # JAX gives it to the result
  return jax.tree.map(jnp.copy, tree)
