"""What labels have to be before anything is counted or fitted by them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from clip_jax.errors import UsageError


def check_in_range(labels: Int[np.ndarray, 'N'], classes: int) -> None:
  """Refuses labels that name no class.

  Args:
    labels: the class of each row.
    classes: C, how many there are.
  Raises:
    UsageError: there are no labels, or one is not in 0..C-1.
  """
  if not len(labels):
    raise UsageError('no labels: there is nothing to evaluate.')
  outside = np.flatnonzero((labels < 0) | (labels >= classes))
  if len(outside):
    raise UsageError(
      f'label {labels[outside[0]]} of row {outside[0]:,} is outside the range '
      f'of {classes:,} classes, 0 to {classes - 1:,} ({len(outside):,} of '
      f'{len(labels):,} rows are).'
    )


def count_each(
  labels: Int[np.ndarray, 'N'], classes: int, names: Sequence[str] = ()
) -> Int[np.ndarray, 'C']:
  """How many rows each class has, where each must have some.

  Args:
    labels: the class of each row.
    classes: C, how many there are.
    names: of the classes, for messages; () calls them by their numbers.
  Raises:
    UsageError: see `check_in_range`; or a class has no rows.
  """
  check_in_range(labels, classes)
  counts = np.bincount(labels, minlength=classes)
  empty = np.flatnonzero(counts == 0)
  if len(empty):
    shown = ', '.join(
      repr(names[c]) if names else str(c) for c in empty[:5].tolist()
    )
    more = ', …' if len(empty) > 5 else ''
    raise UsageError(
      f'{len(empty):,} of {classes:,} classes have no examples: {shown}{more}; '
      'give each some.'
    )
  return counts
