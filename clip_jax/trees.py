"""Nested dictionaries of arrays, and the same flat, by their paths."""

from collections.abc import Mapping
from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
  """Returns a tree path as 'image/transformer/blocks/…'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def flat(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by the names of their paths."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_name(path): leaf for path, leaf in leaves}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the inverse of `flat`, for dictionaries."""
  tree: dict[str, Any] = {}
  for name, leaf in leaves.items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def first_difference(
  actual: Mapping[str, Any], wanted: Mapping[str, Any]
) -> tuple[str, list[int] | str, list[int] | str] | None:
  """Compares the names and shapes of two flat trees.

  Returns:
    Where they differ first, by name: the name, and in each of them the shape,
    or 'not there'. None where they agree.
  """
  for name in sorted(actual.keys() | wanted.keys()):
    old, new = (
      list(leaves[name].shape) if name in leaves else 'not there'
      for leaves in (actual, wanted)
    )
    if old != new:
      return name, old, new
  return None
