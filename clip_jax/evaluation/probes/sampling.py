"""Draws the examples of few-shot probes (paper, section 3.1.5).

All of it is a function of the labels and a seed, class by class: a class's
examples are the same whatever other classes there are.
"""

import dataclasses

import numpy as np
from jaxtyping import Int

from clip_jax.errors import UsageError
from clip_jax.evaluation.metrics.ranking import (
  check_in_range,
  count_each,
)

# So that the sample and the held-out rows of one seed are drawn independently.
_SAMPLE_STREAM, _SPLIT_STREAM = 0, 1


@dataclasses.dataclass(frozen=True)
class Sample:
  """The rows that a few-shot probe is fitted on.

  Attributes:
    indices: rows, rising.
    short: class to how many it has, of the classes with fewer than k.
  """

  indices: Int[np.ndarray, 'K']
  short: dict[int, int]


def sample(
  labels: Int[np.ndarray, 'N'], k: int, seed: int, *, classes: int
) -> Sample:
  """Draws k rows of each class, none twice (figure 6).

  The sample of k is a part of that of any greater k with the same seed, so
  that a curve over k shows what is added. A class with fewer than k rows
  gives all, and is named in the result.

  Args:
    labels: the class of each row.
    k: examples a class, at least 1.
    seed: another is another sample.
    classes: C, how many there are.
  Raises:
    UsageError: k is below 1, a label is outside 0..C-1, or a class has no
      rows at all.
  """
  if k < 1:
    raise UsageError(f'k={k} examples a class: use 1 or more.')
  counts = count_each(labels, classes)
  shuffled = _shuffled_classes(labels, classes, seed, _SAMPLE_STREAM)
  rows = np.concatenate([rows[:k] for rows in shuffled])
  short = {int(c): int(counts[c]) for c in np.flatnonzero(counts < k)}
  return Sample(np.sort(rows), short)


def hold_out(
  labels: Int[np.ndarray, 'N'], fraction: float, seed: int, *, classes: int
) -> tuple[Int[np.ndarray, 'T'], Int[np.ndarray, 'V']]:
  """Holds out a part of every class, to choose C on (appendix A.3).

  Args:
    labels: the class of each row.
    fraction: to hold out, between 0 and 1: of each class the nearest whole
      number, but at least one and not all of a class with two rows or more. A
      class of one row is not held out.
    seed: another is another split.
    classes: C, how many there are; not all need to occur.
  Returns:
    The rows to fit on and the rows held out: all rows, once each, rising.
  Raises:
    UsageError: the fraction is not between 0 and 1, a label is outside
      0..C-1, or nothing can be held out because no class has two rows.
  """
  if not 0 < fraction < 1:
    raise UsageError(f'fraction={fraction}: use one between 0 and 1, as 0.2.')
  check_in_range(labels, classes)
  held = []
  for rows in _shuffled_classes(labels, classes, seed, _SPLIT_STREAM):
    wanted = max(1, round(fraction * len(rows)))
    held.append(rows[: max(0, min(wanted, len(rows) - 1))])
  validation = np.sort(np.concatenate(held))
  if not len(validation):
    raise UsageError(
      f'no class of {len(labels):,} rows has two, so none can be held out: '
      'give a validation split, or a value of C.'
    )
  rest = np.ones(len(labels), bool)
  rest[validation] = False
  return np.flatnonzero(rest), validation


def _shuffled_classes(
  labels: np.ndarray, classes: int, seed: int, stream: int
) -> list[np.ndarray]:
  """Returns the rows of each class in a random order."""
  order = np.argsort(labels, kind='stable')
  starts = np.searchsorted(labels[order], np.arange(1, classes))
  return [
    np.random.default_rng([seed, stream, c]).permutation(rows)
    for c, rows in enumerate(np.split(order, starts))
  ]
