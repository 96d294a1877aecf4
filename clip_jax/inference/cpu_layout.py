"""Variables as CPUs read them fastest, for inference.

A scan over stacked blocks copies every block's weights before it uses them,
which costs a batch of one more than a tenth of its time; and a product with few
rows is half as fast again when the weights lie as [out, in]. Both are matters
of layout: the values are the same, and so is the mathematics.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

_BLOCK = 'block_'


@struct.dataclass
class Transposed:
  """A kernel as [out, in]; `shape` is what the module knows it by."""

  matrix: jax.Array
  shape: tuple[int, ...] = struct.field(pytree_node=False)


def is_on_cpus(variables: Any) -> bool:
  """Returns whether all arrays lie whole on CPUs."""
  return all(
    leaf.is_fully_replicated
    and all(device.platform == 'cpu' for device in leaf.devices())
    for leaf in jax.tree.leaves(variables)
  )


def unroll(tree: dict[str, Any]) -> dict[str, Any]:
  """Returns every stack `blocks` as `block_0`, `block_1`, … with transposed
  kernels.

  Args:
    tree: nested dictionaries, which are used up: each stack is let go of when
      its layers are made, so that memory holds one of them twice at most.
  """
  unrolled: dict[str, Any] = {}
  for key in list(tree):
    if key == 'blocks':
      layers = _split(tree.pop(key))
      unrolled |= {f'{_BLOCK}{i}': layer for i, layer in enumerate(layers)}
    else:
      value = tree.pop(key)
      unrolled[key] = unroll(value) if isinstance(value, dict) else value
  return unrolled


def restore(tree: Any) -> Any:
  """Returns what `DualEncoder` takes; call it where that is compiled.

  XLA folds the transposition into the product that follows.
  """
  return jax.tree.map(
    lambda x: x.matrix.T.reshape(x.shape) if isinstance(x, Transposed) else x,
    tree,
    is_leaf=lambda x: isinstance(x, Transposed),
  )


def stack(tree: dict[str, Any]) -> dict[str, Any]:
  """Returns the inverse of `unroll`: the variables of `DualEncoder`, as new
  arrays.
  """
  layers = {key: value for key, value in tree.items() if _is_block(key)}
  stacked = {
    key: stack(value) if isinstance(value, dict) else value
    for key, value in tree.items()
    if key not in layers
  }
  if layers:
    blocks = [restore(layers[f'{_BLOCK}{i}']) for i in range(len(layers))]
    stacked['blocks'] = jax.tree.map(lambda *each: jnp.stack(each), *blocks)
  return stacked


def _is_block(key: str) -> bool:
  return key.startswith(_BLOCK)


def _split(blocks: dict[str, Any], module: str = '') -> list[dict[str, Any]]:
  """Returns one tree a layer of stacked arrays; `blocks` is used up."""
  parts: dict[str, list[Any]] = {}
  for key in list(blocks):
    leaf = blocks.pop(key)
    if isinstance(leaf, dict):
      parts[key] = _split(leaf, key)
    else:
      parts[key] = [_form(layer, module, key) for layer in leaf]
    del leaf  # before the next one is split
  depth = len(next(iter(parts.values())))
  return [{key: part[i] for key, part in parts.items()} for i in range(depth)]


def _form(leaf: jax.Array, module: str, name: str) -> Any:
  if name != 'kernel':
    return leaf
  # Attention's output product reads heads and their width; others one axis.
  inputs = math.prod(leaf.shape[: 2 if module == 'out' else 1])
  return Transposed(leaf.reshape(inputs, -1).T, leaf.shape)
