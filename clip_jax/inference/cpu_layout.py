"""Variables with their blocks kept apart, which CPUs encode with fastest.

A scan over stacked blocks copies every block's weights before it uses them. Of
a batch of one that takes more than half of the time: an image of ViT-B/32 took
0.29 s of a core with stacked blocks, and 0.11 with these. The values are the
same, and so is the mathematics.
"""

from typing import Any

import jax
import jax.numpy as jnp

_BLOCK = 'block_'


def is_on_cpus(variables: Any) -> bool:
  """Returns whether all arrays lie whole on CPUs."""
  return all(
    leaf.is_fully_replicated
    and all(device.platform == 'cpu' for device in leaf.devices())
    for leaf in jax.tree.leaves(variables)
  )


def unroll(tree: dict[str, Any]) -> dict[str, Any]:
  """Returns every stack `blocks` as `block_0`, `block_1`, …

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


def stack(tree: dict[str, Any]) -> dict[str, Any]:
  """Returns the inverse of `unroll`, as new arrays."""
  layers = {key: value for key, value in tree.items() if _is_block(key)}
  stacked = {
    key: stack(value) if isinstance(value, dict) else value
    for key, value in tree.items()
    if key not in layers
  }
  if layers:
    blocks = [layers[f'{_BLOCK}{i}'] for i in range(len(layers))]
    stacked['blocks'] = jax.tree.map(lambda *each: jnp.stack(each), *blocks)
  return stacked


def _is_block(key: str) -> bool:
  return key.startswith(_BLOCK)


def _split(blocks: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns one tree a layer of stacked arrays; `blocks` is used up."""
  parts: dict[str, list[Any]] = {}
  for key in list(blocks):
    leaf = blocks.pop(key)
    if isinstance(leaf, dict):
      parts[key] = _split(leaf)
    else:
      parts[key] = list(leaf)
    del leaf  # before the next one is split
  depth = len(next(iter(parts.values())))
  return [{key: part[i] for key, part in parts.items()} for i in range(depth)]
