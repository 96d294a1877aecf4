"""Separates the parameters that a run trains from those that are frozen.

A step differentiates by what is trained alone. So it computes no gradient of
the rest, no backward pass where nothing below is trained, and keeps no moments
of it. Stacks of blocks are split by layers.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.training.parameter_groups import stack_of
from clip_jax.trees import flat, nested


@dataclasses.dataclass(frozen=True)
class Partition:
  """The division of a model's parameters into those trained and those frozen.

  Attributes:
    kept: by path, whether a parameter is trained, or which of its layers are,
      [L].
  """

  kept: Mapping[str, np.ndarray]

  def locked(self) -> tuple[str, ...]:
    """Returns the towers of which nothing is trained: 'image', 'text'."""
    return tuple(
      tower
      for tower in ('image', 'text')
      if not any(
        layers.any()
        for name, layers in self.kept.items()
        if name.startswith(f'{tower}/')
      )
    )

  def without_gradient(self) -> dict[str, float]:
    """Returns the share of each tower's blocks below all that is trained.

    They have no backward pass. Of a tower of which nothing is trained it is 1.
    """
    shares = dict.fromkeys(self.locked(), 1.0)
    for tower in {'image', 'text'} - shares.keys():
      own = {k: v for k, v in self.kept.items() if k.startswith(f'{tower}/')}
      stacks = [layers for name, layers in own.items() if stack_of(name)]
      before = any(
        layers.any() and re.search(r'embedding(/|$)|/ln_pre/', name)
        for name, layers in own.items()
      )
      if stacks and not before:
        trained = np.any(stacks, axis=0)
        below = int(trained.argmax()) if trained.any() else len(trained)
        shares[tower] = below / len(trained)
    return shares

  def trained(self, params: Any) -> Any:
    """Returns the tree of what is trained; of a stack, its trained layers."""
    return nested(
      {
        name: _layers(leaf, self.kept[name])
        for name, leaf in flat(params).items()
        if self.kept[name].any()
      }
    )

  def averaged(self, params: Any) -> Any:
    """Returns the tree of parameters that have a trained layer.

    Stacks stay whole: paths alone then say what a checkpoint averages, and its
    frozen layers cost a copy of them.
    """
    return nested(
      {k: leaf for k, leaf in flat(params).items() if self.kept[k].any()}
    )

  def joined(self, params: Any, trained: Any) -> Any:
    """Returns parameters for `module.apply`.

    A stack of frozen and trained blocks becomes a tuple of stacks, which
    `Transformer` scans one after another.

    Args:
      params: what is frozen is taken from here.
      trained: a tree as `trained` returns it.
    """
    kept, leaves, own = self.kept, flat(params), flat(trained)
    stacks: dict[str, list[str]] = {}
    for name in leaves:
      if stack := stack_of(name):
        stacks.setdefault(stack, []).append(name)
    for stack, names in stacks.items():
      ranges = _uniform_ranges([kept[name] for name in names])
      if len(ranges) == 1:
        continue
      leaves[stack] = tuple(
        nested(
          {
            name.removeprefix(f'{stack}/'): _range(
              leaves[name], own.get(name), kept[name], start, stop
            )
            for name in names
          }
        )
        for start, stop in ranges
      )
      for name in names:
        del leaves[name]
    return nested({name: own.get(name, leaf) for name, leaf in leaves.items()})

  def updated(self, params: Any, trained: Any) -> Any:
    """Returns all parameters, those that are trained with their new values."""
    leaves = flat(params)
    for name, new in flat(trained).items():
      if self.kept[name].all():
        leaves[name] = new
        continue
      runs = _runs(self.kept[name])
      sizes = [stop - start for start, stop in runs]
      for (start, _), part in zip(runs, jax.lax.split(new, sizes), strict=True):
        leaves[name] = jax.lax.dynamic_update_slice_in_dim(
          leaves[name], part, start, axis=0
        )
    return nested(leaves)


def _layers(leaf: Any, kept: np.ndarray) -> Any:
  """Returns the layers that are kept, in order."""
  if kept.all():
    return leaf
  parts = [jax.lax.slice_in_dim(leaf, *run) for run in _runs(kept)]
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _range(
  frozen: Any, trained: Any, kept: np.ndarray, start: int, stop: int
) -> Any:
  """Returns layers of a stacked parameter, all of them trained or none."""
  if not kept[start]:
    return jax.lax.slice_in_dim(frozen, start, stop)
  first = int(kept[:start].sum())
  return jax.lax.slice_in_dim(trained, first, first + stop - start)


def _runs(kept: np.ndarray) -> list[tuple[int, int]]:
  """Returns the ranges of layers that are kept."""
  edges = np.flatnonzero(np.diff(kept, prepend=False, append=False)).tolist()
  return list(zip(edges[::2], edges[1::2], strict=True))


def _uniform_ranges(kept: Sequence[np.ndarray]) -> list[tuple[int, int]]:
  """Returns the ranges of layers within which each array is kept or not."""
  changes = np.any([np.diff(layers) for layers in kept], axis=0)
  edges = [0, *(np.flatnonzero(changes) + 1).tolist(), len(kept[0])]
  return list(itertools.pairwise(edges))
