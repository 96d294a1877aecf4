"""Loss and gradients of a batch, in one pass or in exact micro-batches.

Shapes: B pairs of the batch, m of a micro-batch, E the joint space.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.objectives.sharded import Loss
from clip_jax.parallel import partitioning
from clip_jax.parallel.mesh import BATCH_AXES, batch_shard_count

Inputs = Mapping[str, jax.Array]  # arrays with a leading axis of pairs
# (params, batch_stats, inputs) -> ((image features, text features, logit
# scale, logit bias), updated batch_stats)
Encode = Callable[[Any, Any, Inputs], tuple[tuple[jax.Array, ...], Any]]
# (params, batch_stats, inputs) -> loss, gradients of params, batch_stats
Gradients = Callable[[Any, Any, Inputs], tuple[jax.Array, Any, Any]]


def whole_batch_gradients(
  encode: Encode, loss_fn: Loss, mesh: Mesh
) -> Gradients:
  """Returns gradients for which both towers see all pairs in one pass."""

  def gradients(params, batch_stats, inputs):
    def objective(params):
      outputs, updated = encode(params, batch_stats, inputs)
      return loss_fn(*outputs), updated

    (loss, updated), grads = jax.value_and_grad(objective, has_aux=True)(params)
    return loss, _shard_as_params(grads, mesh), updated

  return gradients


def micro_batch_gradients(
  encode: Encode, loss_fn: Loss, mesh: Mesh, micro_batch: int
) -> Gradients:
  """Returns exactly accumulated gradients (GradCache, arXiv 2101.06983).

  The first scan computes the features of all micro-batches, without what a
  backward pass needs. Then follow the loss over all B pairs and its derivatives
  with respect to the features. The second scan encodes each micro-batch again,
  and back-propagates these derivatives. Random draws are part of the inputs,
  and so the same in both scans. The temperature takes part once, in the loss.

  The batch norm of a ResNet sees each micro-batch by itself, in both scans.

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
    loss, (image_grads, text_grads, *temperature_grads) = jax.value_and_grad(
      loss_fn, argnums=(0, 1, 2, 3)
    )(*map(join, features), *(x[0] for x in temperature))

    def backward(total, step):
      piece, output_grads = step
      _, pull_back = jax.vjp(
        lambda params: encode(params, batch_stats, piece)[0], params
      )
      (grads,) = pull_back(output_grads)
      total = jax.tree.map(jnp.add, total, grads)
      return _shard_as_params(total, mesh), None

    # The first micro-batch carries the whole gradient of the temperature.
    once = [jnp.zeros_like(x).at[0].set(grad) for x, grad in
            zip(temperature, temperature_grads, strict=True)]  # fmt: skip
    total = _shard_as_params(jax.tree.map(jnp.zeros_like, params), mesh)
    total, _ = jax.lax.scan(
      backward, total, (pieces, (split(image_grads), split(text_grads), *once))
    )
    return loss, total, updated

  shards = batch_shard_count(mesh)
  per_device = micro_batch // shards
  pieces_sharding = NamedSharding(mesh, P(None, BATCH_AXES))
  batch_sharding = NamedSharding(mesh, P(BATCH_AXES))

  def split(x):
    # Each device's rows go into all micro-batches: none has to move.
    x = x.reshape(shards, -1, per_device, *x.shape[1:]).swapaxes(0, 1)
    x = x.reshape(-1, micro_batch, *x.shape[3:])
    return jax.lax.with_sharding_constraint(x, pieces_sharding)

  def join(x):
    x = x.reshape(-1, shards, per_device, *x.shape[2:]).swapaxes(0, 1)
    x = x.reshape(-1, *x.shape[3:])
    return jax.lax.with_sharding_constraint(x, batch_sharding)

  return gradients


def _shard_as_params(gradients: Any, mesh: Mesh) -> Any:
  """Lays each gradient out as its parameter is.

  The sum over the devices then becomes a reduce-scatter: no device holds the
  whole gradient of a parameter that is split.
  """
  return jax.lax.with_sharding_constraint(
    gradients, partitioning.shardings(gradients, mesh)
  )
