"""The paper's search for the regularisation of a probe (appendix A.3).

C is swept over 96 logarithmic steps from 1e-6 to 1e6, eight a decade. A probe
takes minutes on a large set, so the paper does not fit all: it starts from
seven C two decades apart and halves the interval around the peak down to one
step.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from clip_jax.errors import FailureError

STEPS_PER_DECADE = 8
GRID: tuple[float, ...] = tuple(  # 96 steps, and so 97 ends of steps
  float(c) for c in 10.0 ** (np.arange(97) / STEPS_PER_DECADE - 6)
)
_STRIDE = 2 * STEPS_PER_DECADE  # between the first C: 1e-6, 1e-4 … 1e6
Score = Callable[[float], float]


@dataclasses.dataclass(frozen=True)
class SweepResult:
  """The outcome of a sweep.

  Attributes:
    best_C: of the highest score; of equal ones the smallest, which is the
      most regularised.
    tried: C to score, of all that were fitted, by rising C.
  """

  best_C: float
  tried: dict[float, float]


def binary_search(score: Score) -> SweepResult:
  """Searches C as the paper does: at seven values, then closer to the best.

  Finds the grid's best for any score that rises up to one peak and falls from
  there, as validation accuracy roughly does; on others, a local one.

  Args:
    score: C to a number, higher is better; called once a C, at most
      15 times.
  Raises:
    FailureError: a score is NaN.
  """
  tried = _score_at(score, range(0, len(GRID), _STRIDE), {})
  stride = _STRIDE // 2
  while stride:
    peak = _best(tried)
    around = (peak - stride, peak + stride)
    tried = _score_at(score, [i for i in around if 0 <= i < len(GRID)], tried)
    stride //= 2
  return _result(tried)


def _score_at(
  score: Score, steps: Iterable[int], tried: dict[int, float]
) -> dict[int, float]:
  """Returns `tried` with the scores at more steps of the grid."""
  scores = dict(tried)
  for step in steps:
    value = float(score(GRID[step]))
    if np.isnan(value):
      raise FailureError(f'the score of a probe with C={GRID[step]:g} is NaN.')
    scores[step] = value
  return scores


def _best(tried: dict[int, float]) -> int:
  return min(tried, key=lambda step: (-tried[step], step))


def _result(tried: dict[int, float]) -> SweepResult:
  return SweepResult(
    best_C=GRID[_best(tried)],
    tried={GRID[step]: tried[step] for step in sorted(tried)},
  )
