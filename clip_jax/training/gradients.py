"""Loss and gradients of a batch: at once, or in micro-batches that give the
same numbers.

Shapes: B pairs of the batch, m of a micro-batch, E the joint space.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.errors import UsageError
from clip_jax.objectives.sharded import Loss
from clip_jax.parallel import partitioning
from clip_jax.parallel.mesh import BATCH_AXES, batch_shard_count

Inputs = Mapping[str, jax.Array]  # arrays with a leading axis of pairs
# (params, batch_stats, inputs) -> ((image features, text features, logit
# scale, logit bias), the batch_stats after these inputs)
Encode = Callable[[Any, Any, Inputs], tuple[tuple[jax.Array, ...], Any]]
# (params, batch_stats, inputs) -> loss, gradients by params, batch_stats
Gradients = Callable[[Any, Any, Inputs], tuple[jax.Array, Any, Any]]


def whole_batch(encode: Encode, loss_fn: Loss, mesh: Mesh) -> Gradients:
  """Both towers see all pairs at once."""

  def gradients(params, batch_stats, inputs):
    def objective(params):
      outputs, updated = encode(params, batch_stats, inputs)
      return loss_fn(*outputs), updated

    (loss, updated), found = jax.value_and_grad(objective, has_aux=True)(params)
    return loss, _placed(found, mesh), updated

  return gradients


def in_micro_batches(
  encode: Encode, loss_fn: Loss, mesh: Mesh, micro_batch: int
) -> Gradients:
  """Exact accumulation (GradCache, arXiv 2101.06983).

  Features of all micro-batches come first, without what a backward pass would
  need; then the loss over all B pairs, and its derivatives by the features;
  then, for one micro-batch after the other, the towers again and backwards
  from these. What is random is part of the inputs, and so the same both times.
  The temperature takes part once, in the loss.

  A ResNet's batch norm sees each micro-batch by itself, in both passes alike.

  Args:
    micro_batch: pairs, all devices together.
  """

  def gradients(params, batch_stats, inputs):
    pieces = jax.tree.map(split, inputs)  # B ... -> B/m m ...

    def forward(batch_stats, piece):
      (images, texts, scale, bias), updated = encode(params, batch_stats, piece)
      return updated, ((images, texts), (scale, bias))

    updated, (features, temperature) = jax.lax.scan(
      forward, batch_stats, pieces
    )
    loss, (by_images, by_texts, *by_temperature) = jax.value_and_grad(
      loss_fn, argnums=(0, 1, 2, 3)
    )(*map(join, features), *(x[0] for x in temperature))

    def backward(total, turn):
      piece, by_outputs = turn
      _, pull_back = jax.vjp(
        lambda params: encode(params, batch_stats, piece)[0], params
      )
      (found,) = pull_back(by_outputs)
      return _placed(jax.tree.map(jnp.add, total, found), mesh), None

    # The whole derivative by the temperature goes with the first turn.
    once = [jnp.zeros_like(x).at[0].set(by) for x, by in
            zip(temperature, by_temperature, strict=True)]  # fmt: skip
    total = _placed(jax.tree.map(jnp.zeros_like, params), mesh)
    total, _ = jax.lax.scan(
      backward, total, (pieces, (split(by_images), split(by_texts), *once))
    )
    return loss, total, updated

  ways = batch_shard_count(mesh)
  in_turns = NamedSharding(mesh, P(None, BATCH_AXES))
  at_once = NamedSharding(mesh, P(BATCH_AXES))

  def split(x):
    # Each device's rows go into all micro-batches: none has to move.
    own = micro_batch // ways
    x = x.reshape(ways, -1, own, *x.shape[1:]).swapaxes(0, 1)
    x = x.reshape(-1, micro_batch, *x.shape[3:])
    return jax.lax.with_sharding_constraint(x, in_turns)

  def join(x):
    own = micro_batch // ways
    x = x.reshape(-1, ways, own, *x.shape[2:]).swapaxes(0, 1)
    x = x.reshape(-1, *x.shape[3:])
    return jax.lax.with_sharding_constraint(x, at_once)

  return gradients


def check_micro_batch(micro_batch: int, batch_size: int, mesh: Mesh) -> None:
  """Refuses micro-batches that do not make up the batch. 0 stands for none.

  Raises:
    UsageError: they do not, or the mesh cannot split them evenly.
  """
  if micro_batch == 0:
    return
  ways = batch_shard_count(mesh)
  fits = 0 < micro_batch <= batch_size and batch_size % micro_batch == 0
  if not fits or micro_batch % ways:
    right = [
      str(ways * own)
      for own in range(1, batch_size // ways + 1)
      if batch_size // ways % own == 0
    ]
    right.sort(key=lambda size: abs(int(size) - micro_batch))
    raise UsageError(
      f'objective.micro_batch={micro_batch} must divide '
      f'data.batch_size={batch_size}, and split over {ways} devices: '
      f'{" or ".join(right[:2])} would do, or 0 for the whole batch.'
    )


def _placed(gradients: Any, mesh: Mesh) -> Any:
  """Each where its parameter lives: what is split is reduced and scattered,
  never summed whole on every device."""
  return jax.lax.with_sharding_constraint(
    gradients, partitioning.shardings(gradients, mesh)
  )
