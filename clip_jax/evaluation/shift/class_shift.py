"""Predictions among another data set's classes (paper, section 3.3).

The shifted data sets of ImageNet have classes of their own: some of its 1,000
(ImageNet-R, -A, ObjectNet), or wider ones that hold several (Youtube-BB,
ImageNet-Vid). A classifier of ImageNet answers for a wide class by the most
likely of what it holds. Zero-shot CLIP can instead be given the names of the
new classes, which is the adaptation to class shift of figure 14.
"""

import collections
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from clip_jax.errors import UsageError

UNMAPPED = -1  # a source's class that is no part of any of the target's


def map_classes(
  source_names: Sequence[str],
  target_names: Sequence[str],
  mapping: Mapping[str, str],
) -> Int[np.ndarray, 'C']:
  """The target's class of each of the source's, by their names.

  Args:
    source_names: C, each once, of the classes that scores are of.
    target_names: T, each once, of the classes that labels are of.
    mapping: a source's name to the target's that holds it. Names of the
      source that are left out are UNMAPPED.
  Returns:
    int64, 0..T-1 or UNMAPPED; see `class_shift`.
  Raises:
    UsageError: a name is not one of its set or is there twice, or a class of
      the target holds none of the source's.
  """
  for side, names in (('source', source_names), ('target', target_names)):
    twice = [name for name, n in collections.Counter(names).items() if n > 1]
    if twice:
      raise UsageError(f'the {side} has two classes {twice[0]!r}.')
  places = {name: i for i, name in enumerate(target_names)}
  known = set(source_names)
  for source, target in mapping.items():
    if source not in known:
      raise UsageError(f'{source!r} is mapped, and is no class of the source.')
    if target not in places:
      raise UsageError(
        f'{source!r} is mapped to {target!r}, which is no class of the target.'
      )
  groups = np.array(
    [
      places[mapping[name]] if name in mapping else UNMAPPED
      for name in source_names
    ],
    np.int64,
  )
  missing = np.setdiff1d(np.arange(len(target_names)), groups)
  if len(missing):
    raise UsageError(
      f'{len(missing):,} of {len(target_names):,} classes of the target hold '
      f'none of the source, such as {target_names[missing[0]]!r}.'
    )
  return groups


def class_shift(
  scores: Float[np.ndarray, 'N C'],
  groups: Int[np.ndarray, 'C'],
  targets: int,
) -> Float[np.ndarray, 'N T']:
  """Scores of the target's classes: each the highest of those it holds.

  Where each holds one, this chooses among a part of the source's classes.

  Args:
    scores: of the source's classes, higher is likelier.
    groups: the target's class of each, or UNMAPPED; see `map_classes`.
    targets: T.
  Returns:
    As `scores`, for any of the metrics.
  Raises:
    UsageError: a group is outside -1..T-1, or none of the source's classes
      is in one of the target's.
  """
  if groups.min(initial=0) < UNMAPPED or groups.max(initial=0) >= targets:
    raise UsageError(
      f'groups from {groups.min()} to {groups.max()}: of {targets:,} targets '
      f'they are 0 to {targets - 1:,}, or {UNMAPPED} for none.'
    )
  order = np.argsort(groups, kind='stable')
  order = order[groups[order] != UNMAPPED]
  held, starts = np.unique(groups[order], return_index=True)
  if len(held) < targets:
    missing = np.setdiff1d(np.arange(targets), held)
    raise UsageError(
      f'{len(missing):,} of {targets:,} targets hold no class: {missing[0]}.'
    )
  return np.maximum.reduceat(scores[:, order], starts, axis=1)
