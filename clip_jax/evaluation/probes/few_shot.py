"""Probes that saw k examples of each class (paper, section 3.1.5, figure 6).

The paper leaves two choices open. C is chosen once for every k, with the first
seed, on k more examples of each class: as many as the probe sees, so that a
few-shot result never leans on a large validation split. A probe that starts
from the text tower's weights is stopped early: as there is one optimum, run to
its end it would be the probe that starts from zeros. Its C and its number of
steps are chosen on the same examples.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from clip_jax.errors import UsageError
from clip_jax.evaluation.examples import Examples
from clip_jax.evaluation.probes.c_sweep import GRID, STEPS_PER_DECADE
from clip_jax.evaluation.probes.logistic_regression import LinearClassifier
from clip_jax.evaluation.probes.sampling import sample
from clip_jax.evaluation.probes.tuning import (
  fit_probe,
  place_inputs,
  sweep_c,
  validation_score,
)
from clip_jax.evaluation.types import Options

# Steps of a probe that starts from the text; 0 is the zero-shot classifier.
STEPS = (0, 1, 2, 4, 8, 16, 32, 64)
_DECADES = 2  # between the C that it tries


class Regularization(NamedTuple):
  """The regularization that was chosen for the probes of one k.

  Attributes:
    C: the inverse of the regularisation.
    iterations: steps of the solver at most.
  """

  C: float
  iterations: int


@dataclasses.dataclass(frozen=True)
class FewShotProbes:
  """The probes of one k, a seed each.

  Attributes:
    k: examples a class.
    short: classes that have fewer, and gave all they have.
    regularization: of all the probes.
    probes: one a seed; none where `note` says why.
    note: '' or why there are no probes.
  """

  k: int
  short: int
  regularization: Regularization | None
  probes: list[LinearClassifier]
  note: str = ''


def few_shot_probes(
  pool: Examples, options: Options, text: LinearClassifier | None = None
) -> Iterator[FewShotProbes]:
  """Fits probes on k examples of each class, for every k of the options.

  The examples of a k are among those of every greater k with the same seed.

  Args:
    pool: to draw from, labels of one class each.
    options: `few_shot`, `probe`, `seed`.
    text: what the probes start from; see `STEPS`. None: from zeros.
  Returns:
    One result for each k, rising. A k that exceeds the examples of every class
    has a note and no probes. So has one that leaves no example to choose C on,
    unless a smaller k has a C, which is then taken.
  Raises:
    UsageError: there are no k or no seeds, a k is below 1, a class has no
      examples, or all are of one class.
    FailureError: a feature is not finite.
  """
  counts, seeds = options.few_shot.examples_per_class, options.few_shot.seeds
  if seeds < 1 or not counts:
    raise UsageError(
      f'seeds={seeds}, examples_per_class={counts}: use one or more of each.'
    )
  if min(counts) < 1:
    raise UsageError(f'examples_per_class={min(counts)}: use 1 or more.')
  chosen = None
  for k in sorted(set(counts)):
    most = int(np.bincount(pool.answers, minlength=pool.classes).max())
    if k > most:
      note = f'no class has {k} examples: the largest has {most}.'
      yield FewShotProbes(k, pool.classes, None, [], note)
      continue
    chosen = _choose(pool, k, options, text) or chosen
    short = len(sample(pool.answers, k, 0, classes=pool.classes).short)
    if chosen is None:
      note = f'no class has more than {k} examples, to choose C on: give a C.'
      yield FewShotProbes(k, short, None, [], note)
      continue
    probes = [
      fit_probe(
        _draw(pool, k, options.seed + i),
        chosen.C,
        iterations=chosen.iterations,
        initial=text,
      )
      for i in range(seeds)
    ]
    yield FewShotProbes(k, short, chosen, probes)


def _draw(pool: Examples, k: int, seed: int) -> Examples:
  rows = sample(pool.answers, k, seed, classes=pool.classes).indices
  return pool.select(rows)


def _choose(
  pool: Examples, k: int, options: Options, text: LinearClassifier | None
) -> Regularization | None:
  """Chooses on the next k of each class; None where there are none."""
  rows = sample(pool.answers, k, options.seed, classes=pool.classes).indices
  more = sample(pool.answers, 2 * k, options.seed, classes=pool.classes).indices
  fitting, held_out = pool.select(rows), pool.select(np.setdiff1d(more, rows))
  if text is None and options.probe.C is not None:
    return Regularization(options.probe.C, options.probe.max_iterations)
  if not len(held_out):
    return None
  if text is None:
    best = sweep_c(fitting, held_out, options)
    return Regularization(best.best_C, options.probe.max_iterations)
  return _choose_steps(fitting, held_out, options, text)


def _choose_steps(
  fitting: Examples,
  held_out: Examples,
  options: Options,
  text: LinearClassifier,
) -> Regularization:
  """Chooses, of equal scores, the fewest steps, and of these the smallest C."""
  coarse = GRID[:: _DECADES * STEPS_PER_DECADE]
  tried = [
    Regularization(C, steps)
    for steps in STEPS
    if steps <= options.probe.max_iterations
    for C in (coarse if options.probe.C is None else (options.probe.C,))
  ]
  inputs = place_inputs(fitting)
  scores = [
    validation_score(
      fit_probe(
        fitting,
        x.C,
        iterations=x.iterations,
        initial=text,
        inputs=inputs,
      ),
      held_out,
    )
    for x in tried
  ]
  return tried[int(np.argmax(scores))]
