"""Fits a probe on devices, where it is too large for a host.

L-BFGS (`optax.lbfgs`, with its zoom line search) in float32, as one program:
features that are sharded by rows stay so, and only gradients are exchanged.
Each device computes the logits of its own rows; of ImageNet with its 1,000
classes they are larger than the features.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Float, Int

# After so many steps in a row that lower neither the objective nor the least
# gradient so far, the limit of float32 is reached.
_STALLED_STEPS = 5


class Solution(NamedTuple):
  """The point at which the solver stopped.

  Attributes:
    weights: float32 [D, C].
    bias: float32 [C].
    iterations: steps taken.
    converged: whether it stopped before it ran out of them.
  """

  weights: Float[np.ndarray, 'D C']
  bias: Float[np.ndarray, 'C']
  iterations: int
  converged: bool


class _Progress(NamedTuple):
  params: Any  # weights and bias
  state: optax.OptState
  value: Float[Array, '']  # at `params`
  slope: Float[Array, '']  # the gradient's largest entry, there
  least: Float[Array, '']  # of the slopes so far
  stalled: Int[Array, '']  # steps in a row that gained nothing


def shard_rows(
  rows: Float[np.ndarray, 'N D'], devices: Sequence[jax.Device] | None = None
) -> Float[Array, 'M D']:
  """Returns rows sharded over devices, in their order, as many on each.

  Args:
    rows: every process gives all of them, the same ones.
    devices: default, all of all processes.
  Returns:
    float32, with zeros after the last row up to a multiple of the devices.
  """
  devices = jax.devices() if devices is None else devices
  mesh = Mesh(np.asarray(devices), ('rows',))
  each = -(-len(rows) // len(devices))
  size = each * len(devices)

  def shard(index: Any) -> np.ndarray:
    start, stop, _ = index[0].indices(size)
    part = rows[start:stop].astype(np.float32, copy=False)
    return np.pad(part, ((0, stop - start - len(part)), (0, 0)))

  return jax.make_array_from_callback(
    (size, rows.shape[1]), NamedSharding(mesh, PartitionSpec('rows')), shard
  )


def solve(
  features: Float[np.ndarray, 'N D'] | Float[Array, 'M D'],
  labels: Int[np.ndarray, 'N'],
  weights: Float[np.ndarray, 'D C'],
  bias: Float[np.ndarray, 'C'],
  *,
  C: float,
  max_iterations: int,
  tolerance: float,
) -> Solution:
  """Minimises 0.5 * ||W||^2 + C * sum(cross entropy) over W and b.

  Of several processes each has to call the same, and gets the same.

  Args:
    features: a jax array is used where it lies: on one device, or with a
      `NamedSharding` over one or more axes of its mesh. Others go over all
      devices; see `shard_rows`.
    labels: 0..C-1, each class at least once. Rows past them only fill up a
      shard, and change nothing.
    weights, bias: to start from.
    C: the inverse of the regularisation.
    max_iterations: steps at most.
    tolerance: of the objective's mean over rows (divided by C times their
      number): stops where no entry of its gradient is larger.
  """
  features, by_rows, replicated = _place_features(features)
  counted = np.arange(len(features)) < len(labels)
  filled = np.zeros(len(features), np.int32)
  filled[: len(labels)] = labels
  (weights, bias), iterations, converged = _minimise(
    features,
    _put(filled, by_rows),
    _put(counted, by_rows),
    (
      _put(weights.astype(np.float32), replicated),
      _put(bias.astype(np.float32), replicated),
    ),
    np.float32(C),
    np.int32(max_iterations),
    np.float32(tolerance),
    replicated=replicated,
  )
  return Solution(
    np.asarray(weights), np.asarray(bias), int(iterations), bool(converged)
  )


def _place_features(
  features: np.ndarray | jax.Array,
) -> tuple[jax.Array, NamedSharding, NamedSharding]:
  """Returns the features on their devices, and two shardings over these.

  The first splits an array with one number a row as the rows are split, and
  the second puts a whole copy on every device.
  """
  array = features if isinstance(features, jax.Array) else shard_rows(features)
  sharding = array.sharding
  if isinstance(sharding, NamedSharding):
    # The compiler is to place what is computed, whatever this mesh was for.
    mesh = Mesh(np.asarray(sharding.mesh.devices), sharding.mesh.axis_names)
    rows = sharding.spec[0] if len(sharding.spec) else None
  else:
    (device,) = sharding.device_set
    mesh, rows = Mesh(np.asarray([device]), ('rows',)), 'rows'
  by_rows = NamedSharding(mesh, PartitionSpec(rows))
  array = jax.device_put(array.astype(jnp.float32), by_rows)
  return array, by_rows, NamedSharding(mesh, PartitionSpec())


def _put(values: np.ndarray, sharding: Sharding) -> jax.Array:
  """Places values, also on devices of other processes, which have the same."""
  return jax.make_array_from_callback(
    values.shape, sharding, lambda index: values[index]
  )


@functools.partial(jax.jit, static_argnames='replicated')
def _minimise(
  features, labels, counted, start, C, max_iterations, tolerance, *, replicated
):
  """Returns (weights, bias), the steps taken, and whether they converged."""
  total = counted.sum().astype(jnp.float32)
  # The bias is free, so that features about 0 have the same weights, and a
  # far rounder valley to go down: with an offset the steps are many more.
  rows = jnp.where(counted[:, None], features, 0)
  centre = rows.sum(axis=0) / total
  rows = rows - centre  # N D

  def objective(params):
    weights, bias = params
    logits = _product(rows, weights) + bias  # N C
    of_class = labels[:, None] == jnp.arange(logits.shape[1])
    right = jnp.where(of_class, logits, 0).sum(axis=1)
    losses = jax.nn.logsumexp(logits, axis=1) - right
    mean = jnp.where(counted, losses, 0).sum() / total
    return mean + 0.5 * jnp.square(weights).sum() / (C * total)

  solver = optax.lbfgs()

  def step(progress):
    updates, state = solver.update(
      optax.tree.get(progress.state, 'grad'),
      progress.state,
      progress.params,
      value=progress.value,
      grad=optax.tree.get(progress.state, 'grad'),
      value_fn=objective,
    )
    params = jax.lax.with_sharding_constraint(
      optax.apply_updates(progress.params, updates), replicated
    )
    value = optax.tree.get(state, 'value')
    slope = _largest(optax.tree.get(state, 'grad'))
    gained = (value < progress.value) | (slope < progress.least)
    return _Progress(
      params,
      state,
      value,
      slope,
      jnp.minimum(slope, progress.least),
      jnp.where(gained, 0, progress.stalled + 1),
    )

  def unfinished(progress):
    return (
      (optax.tree.get(progress.state, 'count') < max_iterations)
      & (progress.slope > tolerance)
      & (progress.stalled < _STALLED_STEPS)
    )

  weights, bias = start
  start = weights, bias + _product(centre, weights)
  value, gradient = jax.value_and_grad(objective)(start)
  state = optax.tree.set(solver.init(start), value=value, grad=gradient)
  slope = _largest(gradient)
  last = jax.lax.while_loop(
    unfinished,
    step,
    _Progress(start, state, value, slope, slope, jnp.int32(0)),
  )
  converged = (last.slope <= tolerance) | (last.stalled >= _STALLED_STEPS)
  weights, bias = last.params
  bias = bias - _product(centre, weights)
  solution = (weights, bias), optax.tree.get(last.state, 'count'), converged
  return jax.lax.with_sharding_constraint(solution, replicated)


def _product(rows, weights):
  # The product is in float32 on a TPU, too, which would round to bfloat16.
  return jnp.matmul(rows, weights, precision='highest')


def _largest(gradient) -> Float[Array, '']:
  return optax.tree.norm(gradient, ord=jnp.inf)
