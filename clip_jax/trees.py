"""Nested dictionaries of arrays, and the same flat, by their paths."""

from collections.abc import Mapping
from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
  """A tree path as 'image/transformer/blocks/…'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def flat(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by the names of their paths."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_name(path): leaf for path, leaf in leaves}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flat`, for dictionaries."""
  tree: dict[str, Any] = {}
  for name, leaf in leaves.items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree
