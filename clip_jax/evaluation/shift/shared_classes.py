"""Which classes a data set and a shift of it share (paper, section 3.3).

Classes are the same where both are of ImageNet's WordNet ids and have one in
common, and otherwise where they have a name in common. A class of the shift
may hold several of the reference.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.datasets.matching import spelling
from clip_jax.evaluation.datasets.names import wordnet_ids
from clip_jax.evaluation.datasets.table import DATASETS
from clip_jax.evaluation.shift.class_shift import (
  UNMAPPED,
  class_shift,
  map_classes,
)


@dataclasses.dataclass(frozen=True)
class SharedClasses:
  """S classes of the shift that hold one of the reference or more.

  Attributes:
    names: of each.
    of_reference: the shared class of each of the reference's, or UNMAPPED.
    of_shift: the shared class of each of the shift's, or UNMAPPED.
  """

  names: tuple[str, ...]
  of_reference: Int[np.ndarray, ' C']
  of_shift: Int[np.ndarray, ' T']

  def pool(self, scores: Float[np.ndarray, 'N C']) -> Float[np.ndarray, 'N S']:
    """Scores of the reference's classes as ones of the shared: the highest."""
    return class_shift(scores, self.of_reference, len(self.names))

  def restrict(
    self, scores: Float[np.ndarray, 'N T']
  ) -> Float[np.ndarray, 'N S']:
    """Scores of the shift's classes as ones of the shared."""
    return class_shift(scores, self.of_shift, len(self.names))


def share(reference: Dataset, shift: Dataset) -> SharedClasses:
  """Finds the classes that both have.

  Raises:
    UsageError: there are fewer than two, or a class of the reference is part
      of two of the shift's.
  """
  ours, theirs = _keys(reference, shift)
  holders: dict[str, list[int]] = {}
  for target, keys in enumerate(theirs):
    for key in keys:
      holders.setdefault(key, []).append(target)
  mapping: dict[str, str] = {}
  for source, keys in enumerate(ours):
    found = sorted({t for key in keys for t in holders.get(key, ())})
    if len(found) > 1:
      names = [shift.first_names[t] for t in found[:2]]
      raise UsageError(
        f'class {reference.first_names[source]!r} of {reference.name!r} may be '
        f'{names[0]!r} or {names[1]!r} of {shift.name!r}: give each class of '
        'the shift names of its own.'
      )
    if found:
      mapping[str(source)] = str(found[0])
  targets = sorted({int(t) for t in mapping.values()})
  if len(targets) < 2:
    raise UsageError(
      f'data {reference.name!r} and {shift.name!r} share {len(targets)} '
      'classes, by their names: a shift has two or more of its reference.'
    )
  of_shift = np.full(len(theirs), UNMAPPED, np.int64)
  of_shift[targets] = np.arange(len(targets))
  return SharedClasses(
    tuple(shift.first_names[t] for t in targets),
    map_classes(  # of places, since a name may be there twice (crane)
      [str(c) for c in range(len(ours))], [str(t) for t in targets], mapping
    ),
    of_shift,
  )


def _keys(
  reference: Dataset, shift: Dataset
) -> tuple[list[set[str]], list[set[str]]]:
  """What the classes of each are known by."""
  both = []
  for dataset in (reference, shift):
    ids = wordnet_ids(dataset.name) if dataset.name in DATASETS else ()
    if len(ids) == len(dataset.class_names):
      both.append([set(several) for several in ids])
  if len(both) < 2 or not both[0]:
    both = [
      [{spelling(name) for name in names} for names in dataset.class_names]
      for dataset in (reference, shift)
    ]
  return both[0], both[1]
