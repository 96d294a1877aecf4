"""Probes that saw k examples of each class (paper, section 3.1.5, figure 6).

What the paper does not say is decided so. C is chosen once for every k, with
the first seed, on k more examples of each class: as many as the probe sees, so
that a few-shot result never leans on a large validation split. A probe that
starts from the text tower's weights is stopped early: run to its end it would
be the probe that starts from nought, as the optimum is one. Its C and its
steps are chosen on the same examples.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from clip_jax.errors import UsageError
from clip_jax.evaluation.probes.examples import (
  Examples,
  fit_probe,
  sweep_c,
  validation_score,
)
from clip_jax.evaluation.probes.logistic_regression import LinearClassifier
from clip_jax.evaluation.probes.regularization import GRID, STEPS_PER_DECADE
from clip_jax.evaluation.probes.sampling import sample
from clip_jax.evaluation.types import Options

# Of a probe that starts from the text: none is the zero-shot classifier.
STEPS = (0, 1, 2, 4, 8, 16, 32, 64)
_DECADES = 2  # between the C that it tries


@dataclasses.dataclass(frozen=True)
class Settings:
  """How the probes of one k are fitted.

  Attributes:
    C: the inverse of the regularisation.
    iterations: steps of the solver at most.
  """

  C: float
  iterations: int


@dataclasses.dataclass(frozen=True)
class Shots:
  """The probes of one k, a seed each.

  Attributes:
    k: examples a class.
    short: classes that have fewer, and gave all they have.
    settings: of all the probes.
    probes: one a seed; none where `note` says why.
    note: '' or why there are no probes.
  """

  k: int
  short: int
  settings: Settings | None
  probes: list[LinearClassifier]
  note: str = ''


def shot_probes(
  pool: Examples, options: Options, text: LinearClassifier | None = None
) -> Iterator[Shots]:
  """Fits probes on k examples of each class, for every k of the options.

  The examples of a k are a part of those of a greater one with the same seed.

  Args:
    pool: to draw from, labels of one class each.
    options: `shots`, `seeds`, `seed`, `C`, `probe_iterations`.
    text: what the probes start from; see `STEPS`. None: from zeros.
  Returns:
    One for each k, rising. A k of which no class has so many examples has a
    note; so has one for which no example is left to choose C on, unless a
    smaller k has its C, which is then taken.
  Raises:
    UsageError: there are no shots or seeds, a k is below 1, a class has no
      examples, or all are of one class.
    FailureError: a feature is not finite.
  """
  if options.seeds < 1 or not options.shots:
    raise UsageError(
      f'seeds={options.seeds}, shots={options.shots}: use one or more of each.'
    )
  fewest = min(options.shots)
  if fewest < 1:
    raise UsageError(f'shots={fewest}: use 1 or more a class.')
  settings = None
  for k in sorted(set(options.shots)):
    most = int(np.bincount(pool.answers, minlength=pool.classes).max())
    if k > most:
      note = f'no class has {k} examples: the largest has {most}.'
      yield Shots(k, pool.classes, None, [], note)
      continue
    settings = _choose(pool, k, options, text) or settings
    short = len(sample(pool.answers, k, 0, classes=pool.classes).short)
    if settings is None:
      note = f'no class has more than {k} examples, to choose C on: give a C.'
      yield Shots(k, short, None, [], note)
      continue
    probes = [
      fit_probe(
        _draw(pool, k, options.seed + i),
        settings.C,
        iterations=settings.iterations,
        initial=text,
      )
      for i in range(options.seeds)
    ]
    yield Shots(k, short, settings, probes)


def _draw(pool: Examples, k: int, seed: int) -> Examples:
  return pool.of(sample(pool.answers, k, seed, classes=pool.classes).indices)


def _choose(
  pool: Examples, k: int, options: Options, text: LinearClassifier | None
) -> Settings | None:
  """On the next k of each class; None where there are none."""
  rows = sample(pool.answers, k, options.seed, classes=pool.classes).indices
  more = sample(pool.answers, 2 * k, options.seed, classes=pool.classes).indices
  fitting, held = pool.of(rows), pool.of(np.setdiff1d(more, rows))
  if text is None and options.C is not None:
    return Settings(options.C, options.probe_iterations)
  if not len(held):
    return None
  if text is None:
    best = sweep_c(fitting, held, options)
    return Settings(best.best_C, options.probe_iterations)
  return _choose_steps(fitting, held, options, text)


def _choose_steps(
  fitting: Examples, held: Examples, options: Options, text: LinearClassifier
) -> Settings:
  """Of equal scores the fewest steps, and of these the smallest C."""
  coarse = GRID[:: _DECADES * STEPS_PER_DECADE]
  tried = [
    Settings(C, steps)
    for steps in STEPS
    if steps <= options.probe_iterations
    for C in (coarse if options.C is None else (options.C,))
  ]
  scores = [
    validation_score(
      fit_probe(fitting, x.C, iterations=x.iterations, initial=text), held
    )
    for x in tried
  ]
  return tried[int(np.argmax(scores))]
