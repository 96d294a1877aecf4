"""Which examples a few-shot probe sees (paper, section 3.1.5).

All of it is a function of the labels and a seed, class by class: a class's
examples are the same whatever other classes there are.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from clip_jax.errors import UsageError
from clip_jax.evaluation.metrics.labels import (
  check_in_range,
  count_each,
)

# So that the shots and the held-out rows of one seed have nothing in common.
_SHOTS_STREAM, _SPLIT_STREAM = 0, 1


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
    k: shots, at least 1.
    seed: another is another sample.
    classes: C, how many there are.
  Raises:
    UsageError: k is below 1, a label is outside 0..C-1, or a class has no
      rows at all.
  """
  if k < 1:
    raise UsageError(f'k={k} shots: use 1 or more.')
  counts = count_each(labels, classes)
  shuffled = _shuffled_classes(labels, classes, seed, _SHOTS_STREAM)
  rows = np.concatenate([rows[:k] for rows in shuffled])
  short = {int(c): int(counts[c]) for c in np.flatnonzero(counts < k)}
  return Sample(np.sort(rows), short)


def split(
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


def shots_to_match(
  shots: Sequence[float | int], accuracies: Sequence[float], target: float
) -> float | None:
  """How many shots a class a probe needs to match zero-shot (figure 7).

  Straight lines between the points of the curve over log(shots), as the
  paper's estimate; where they first reach the target.

  Args:
    shots: examples a class, rising and positive; the last may be the mean
      count of the whole training split.
    accuracies: of the probe at each.
    target: zero-shot accuracy of the same model.
  Returns:
    Shots a class, between the first and the last. `inf` where the curve never
    reaches the target: more than the last are needed, if any number does.
    None where the first point is already above it: fewer than the first are
    needed, and the curve does not say how many.
  Raises:
    UsageError: there are no points, not as many of both, or the shots do not
      rise from above 0.
  """
  _check_curve(shots, accuracies)
  if accuracies[0] > target:
    return None
  if accuracies[0] == target:
    return float(shots[0])
  for i in range(1, len(shots)):
    if accuracies[i] >= target:
      rise = accuracies[i] - accuracies[i - 1]
      part = (target - accuracies[i - 1]) / rise
      low, high = math.log(shots[i - 1]), math.log(shots[i])
      return math.exp(low + part * (high - low))
  return math.inf


def _shuffled_classes(
  labels: np.ndarray, classes: int, seed: int, stream: int
) -> list[np.ndarray]:
  """The rows of each class in a random order."""
  order = np.argsort(labels, kind='stable')
  starts = np.searchsorted(labels[order], np.arange(1, classes))
  return [
    np.random.default_rng([seed, stream, c]).permutation(rows)
    for c, rows in enumerate(np.split(order, starts))
  ]


def _check_curve(
  shots: Sequence[float | int], accuracies: Sequence[float]
) -> None:
  if not shots or len(shots) != len(accuracies):
    raise UsageError(
      f'{len(shots)} numbers of shots and {len(accuracies)} accuracies: give '
      'one of each a point, and at least one point.'
    )
  if shots[0] <= 0 or any(b <= a for a, b in itertools.pairwise(shots)):
    raise UsageError(f'shots {list(shots)}: they must rise, from above 0.')
