"""A copy of arrays that live on CPUs, to be written while they change.

From an accelerator Orbax copies arrays to the host. Those of a CPU it would
read where they are, and a step that is to update memory that is being read has
to take new memory instead: gigabytes of fresh pages, which cost many times what
copying into known ones does.
"""

from typing import Any

import jax
import jax.numpy as jnp


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
