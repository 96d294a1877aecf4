"""Parameters as CPUs read them fastest, for inference.

A scan over stacked blocks copies every block's weights before it uses them,
which costs a batch of one more than a tenth of its time; and a product with few
rows is half as fast again when the weights lie as [out, in]. Both are matters
of layout: the values are the same, and so is the mathematics.
"""

import math
from typing import Any

import jax
from flax import struct


@struct.dataclass
class Transposed:
  """A kernel as [out, in]; `shape` is what the module knows it by."""

  matrix: jax.Array
  shape: tuple[int, ...] = struct.field(pytree_node=False)


def pays(params: Any) -> bool:
  """Whether the parameters lie whole on CPUs: only these want another form."""
  return all(
    leaf.is_fully_replicated
    and all(device.platform == 'cpu' for device in leaf.devices())
    for leaf in jax.tree.leaves(params)
  )


def unroll(params: Any) -> Any:
  """Every stack `blocks` as `block_0`, `block_1`, … with transposed kernels.

  The new arrays take as much memory as the stacks, which stay as they are.
  """
  if not isinstance(params, dict):
    return params
  tree = {key: unroll(value) for key, value in params.items()}
  blocks = tree.pop('blocks', None)
  if blocks is not None:
    for i in range(len(jax.tree.leaves(blocks)[0])):
      tree[f'block_{i}'] = jax.tree_util.tree_map_with_path(
        lambda path, leaf, i=i: _layer(path, leaf[i]), blocks
      )
  return tree


def restore(tree: Any) -> Any:
  """What `DualEncoder(…, unroll=True)` takes; call it where it is compiled.

  XLA folds the transposition into the product that follows.
  """
  return jax.tree.map(
    lambda x: x.matrix.T.reshape(x.shape) if isinstance(x, Transposed) else x,
    tree,
    is_leaf=lambda x: isinstance(x, Transposed),
  )


def _layer(path: Any, leaf: jax.Array) -> Any:
  *_, module, name = (key.key for key in path)
  if name != 'kernel':
    return leaf
  # Attention's output product reads heads and their width; others one axis.
  inputs = math.prod(leaf.shape[: 2 if module == 'out' else 1])
  return Transposed(leaf.reshape(inputs, -1).T, leaf.shape)
