"""Logistic regression by L-BFGS: the paper's probe (section 3.2, appendix A.3).

`tuning` says which of an encoder's features it is fitted on.

There are two solvers of the same problem, and both are needed: scikit-learn's
on the host, in float64, and `device_solver` (optax) in float32, with the rows
sharded over all devices. On two cores a few-shot probe (160 rows, 512 features,
10 classes) takes 0.03 s by the first, and 6.9 s by the second, which compiles
for each new shape; of 20,000 rows and 100 classes ten steps take 6.2 s and
3.9 s, and ImageNet's rows are sharded by the second alone. A probe may start
from given weights, such as the text tower's: that changes the number of steps
to the optimum, and not the optimum.
"""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import ThreadpoolController

from clip_jax.errors import FailureError, UsageError, check_choice
from clip_jax.evaluation.metrics.ranking import check_in_range, scores_of
from clip_jax.evaluation.probes import device_solver

SOLVERS = ('sklearn', 'optax')
MAX_ITERATIONS = 1000  # of the paper
# Both stop by the gradient of a mean over rows. scikit-learn's own 1e-4 leaves
# the third decimal of the weights open; see tests/goldens/linear_probe.
TOLERANCE = 1e-6
# Products of a step (N x D x C) up to which the host is soon done, while the
# device would compile for some seconds; past it the device's steps are faster,
# also where it is the same two cores.
_SMALL = 10_000_000

# On devices there may be more rows than labels: the rest fills up shards.
Inputs = Float[np.ndarray, 'N D'] | Float[Array, 'M D']


@dataclasses.dataclass(frozen=True)
class LinearClassifier:
  """Scores of C classes that are linear in the features.

  Attributes:
    weights: float32 [D, C].
    bias: float32 [C]; -inf for a class of which no example was seen.
    iterations: of the solver; 0 for weights that came from elsewhere.
    converged: False where the solver ran out of iterations.
  """

  weights: Float[np.ndarray, 'D C']
  bias: Float[np.ndarray, 'C']
  iterations: int = 0
  converged: bool = True

  def scores(self, features: Inputs) -> Float[np.ndarray, 'N C']:
    """Returns the float32 logits of each row."""
    rows = np.asarray(features, np.float32)
    return scores_of(rows, self.weights) + self.bias

  def predict(self, features: Inputs) -> Int[np.ndarray, 'N']:
    """Returns the class with the highest score; of equals the lower."""
    return self.scores(features).argmax(axis=1)


def move_to_solver(
  features: Inputs, classes: int, solver: str | None = None
) -> Inputs:
  """Returns inputs on the solver's device, for several fits on the same rows.

  `fit` moves other inputs each time that it is called.

  Args:
    features: those on devices stay where they are. Every process gives all
      rows, the same ones.
    classes: of the probe; 2 for those of `fit_multilabel`.
    solver: see `fit`.
  """
  if isinstance(features, jax.Array):
    return features
  solver = solver or _choose_solver(features, classes)
  return device_solver.shard_rows(features) if solver == 'optax' else features


def fit(
  features: Inputs,
  labels: Int[np.ndarray, 'N'],
  *,
  C: float,
  classes: int,
  initial: LinearClassifier | None = None,
  solver: str | None = None,
  max_iterations: int = MAX_ITERATIONS,
  tolerance: float = TOLERANCE,
) -> LinearClassifier:
  """Minimises 0.5 * ||W||^2 + C * sum(cross entropy), the bias unpenalised.

  The softmax is over all classes, also where there are two: scikit-learn has
  one weight a feature there, and half of this penalty.

  Args:
    features: float32. A jax array is used where it lies, by the solver
      'optax'; see `move_to_solver`. Its rows past the labels do not count.
    labels: the class of each row. Those that do not occur can never be
      predicted.
    C: the inverse of the regularisation, as scikit-learn's; see `c_sweep`.
    classes: how many there are.
    initial: to start from, as the text tower's weights times the logit scale;
      zeros where None.
    solver: 'sklearn' or 'optax'; None is sklearn for what is small.
    max_iterations: steps at most, 1 or more; to run out of them is no error,
      see `converged`.
    tolerance: of the objective as a mean over rows (divided by C times their
      number): stops where no entry of its gradient is larger.
  Returns:
    The biases that are finite add up to 0: a common constant changes nothing.
  Raises:
    UsageError: rows are of one class only, a label is outside the range of
      the classes, C or max_iterations is not positive, or `initial` is of
      another shape.
    FailureError: a feature is not finite, or so large that a score is not.
  """
  if solver is None:
    solver = _choose_solver(features, classes)
  check_choice('solver', solver, SOLVERS)
  _check(features, labels, C, classes, initial, max_iterations)
  present = np.unique(labels)
  start = _start(initial, features.shape[1], present)
  solve = _solve_on_host if solver == 'sklearn' else device_solver.solve
  solution = solve(
    features,
    np.searchsorted(present, labels),
    *start,
    C=C,
    max_iterations=max_iterations,
    tolerance=tolerance,
  )
  if not (
    np.isfinite(solution.weights).all() and np.isfinite(solution.bias).all()
  ):
    raise FailureError(
      f'the probe with C={C:g} diverged: features this large have scores that '
      'overflow. Scale them down.'
    )
  weights = np.zeros((features.shape[1], classes), np.float32)
  weights[:, present] = solution.weights
  # The weights of such a class are 0 at the optimum, while its bias falls
  # without end.
  bias = np.full(classes, -np.inf, np.float32)
  bias[present] = solution.bias - solution.bias.mean()
  return LinearClassifier(
    weights, bias, solution.iterations, solution.converged
  )


def fit_multilabel(
  features: Inputs,
  truth: Bool[np.ndarray, 'N C'],
  *,
  C: float,
  difficult: Bool[np.ndarray, 'N C'] | None = None,
  initial: LinearClassifier | None = None,
  solver: str | None = None,
  max_iterations: int = MAX_ITERATIONS,
  tolerance: float = TOLERANCE,
) -> LinearClassifier:
  """Fits one binary probe a class, against all else, as of VOC2007.

  Minimises for each class 0.5 * ||w||^2 + C * sum(cross entropy), which is
  scikit-learn's of two classes.

  Args:
    truth: whether the class is in the image.
    difficult: of each class the rows that it does not learn from, as they are
      neither; None is none, and features on devices take no other.
    initial: its column of a class is the weights of 'is there'.
    features, C, solver, max_iterations, tolerance: see `fit`.
  Returns:
    Logits of each class by itself; `iterations` of the slowest.
  Raises:
    UsageError: a class is in all images, or in none; otherwise see `fit`.
    FailureError: a feature is not finite.
  """
  columns = []
  if difficult is None:
    features = move_to_solver(features, 2, solver)
  for c, present in enumerate(truth.T):
    rows = features
    if difficult is not None:
      rows, present = features[~difficult[:, c]], present[~difficult[:, c]]
    if present.all() or not present.any():
      raise UsageError(
        f'class {c} is in {"all" if present.any() else "none"} of the '
        f'{len(present):,} images: a probe needs some with it and some without.'
      )
    probe = fit(
      rows,
      present.astype(np.int64),
      # Two columns, each half of the difference, have half of the penalty.
      C=C / 2,
      classes=2,
      initial=None if initial is None else _as_pair(initial, c),
      solver=solver,
      max_iterations=max_iterations,
      tolerance=tolerance,
    )
    columns.append(probe)
  return LinearClassifier(
    np.stack([p.weights[:, 1] - p.weights[:, 0] for p in columns], axis=1),
    np.array([p.bias[1] - p.bias[0] for p in columns], np.float32),
    max(p.iterations for p in columns),
    all(p.converged for p in columns),
  )


def _choose_solver(features: Inputs, classes: int) -> str:
  if isinstance(features, jax.Array):
    return 'optax'
  return 'sklearn' if features.size * classes <= _SMALL else 'optax'


def _check(
  features: Inputs,
  labels: np.ndarray,
  C: float,
  classes: int,
  initial: LinearClassifier | None,
  max_iterations: int,
) -> None:
  check_in_range(labels, classes)
  if (labels == labels[0]).all():
    raise UsageError(
      f'all {len(labels):,} examples are of class {labels[0]}: a probe needs '
      'two classes or more.'
    )
  if not 0 < C < np.inf:
    raise UsageError(f'C={C}: use a positive number, as 1.0.')
  if max_iterations < 1:
    raise UsageError(f'max_iterations={max_iterations}: use 1 or more.')
  shape = features.shape[1], classes
  if initial is not None and initial.weights.shape != shape:
    raise UsageError(
      f'initial weights of {initial.weights.shape[0]:,} features and '
      f'{initial.weights.shape[1]:,} classes, and the probe has {shape[0]:,} '
      f'and {shape[1]:,}.'
    )
  array = jnp if isinstance(features, jax.Array) else np
  if not bool(array.isfinite(features).all()):
    raise FailureError(
      'features are not finite numbers: the model has diverged.'
    )


def _start(
  initial: LinearClassifier | None, width: int, present: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the weights [D, S] and biases [S] of the S classes that occur."""
  if initial is None:
    return np.zeros((width, len(present))), np.zeros(len(present))
  bias = initial.bias[present]
  # A class that the initial classifier had never seen.
  return initial.weights[:, present], np.where(np.isfinite(bias), bias, 0)


def _as_pair(initial: LinearClassifier, c: int) -> LinearClassifier:
  """Returns one class's weights as columns of 'is not there', 'is there'."""
  half = np.array([-0.5, 0.5], np.float32)
  return LinearClassifier(
    initial.weights[:, c, None] * half, initial.bias[c] * half
  )


@functools.cache
def _threads() -> ThreadpoolController:
  """Returns the controller of the linear algebra's threads."""
  return ThreadpoolController()


def _solve_on_host(
  features: Inputs,
  labels: np.ndarray,
  weights: np.ndarray,
  bias: np.ndarray,
  *,
  C: float,
  max_iterations: int,
  tolerance: float,
) -> device_solver.Solution:
  """Solves the problem of `device_solver.solve` with scikit-learn."""
  rows = np.asarray(features, np.float64)[: len(labels)]
  # The bias is free: centred, the weights are the same and the steps fewer.
  centre = rows.mean(axis=0)
  bias = bias + centre @ weights
  pair = weights.shape[1] == 2
  model = LogisticRegression(
    C=2 * C if pair else C,
    max_iter=max_iterations,
    tol=tolerance,
    warm_start=True,
  )
  if pair:  # one column, the difference
    weights, bias = np.diff(weights), np.diff(bias)
  model.coef_ = weights.T.astype(np.float64)
  model.intercept_ = bias.astype(np.float64)
  # Steps this small are over before threads have met: on a busy machine two
  # threads are a hundred times slower than one.
  with warnings.catch_warnings(), _threads().limit(limits=1):
    warnings.simplefilter('ignore', ConvergenceWarning)
    model.fit(rows - centre, labels)
  coefficients, shift = np.asarray(model.coef_).T, np.asarray(model.intercept_)
  if pair:
    coefficients = np.concatenate([-coefficients / 2, coefficients / 2], axis=1)
    shift = np.concatenate([-shift / 2, shift / 2])
  iterations = int(model.n_iter_[0])
  return device_solver.Solution(
    coefficients,
    shift - centre @ coefficients,
    iterations,
    iterations < max_iterations,
  )
