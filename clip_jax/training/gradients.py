"""Loss and gradients of a batch, in one pass or in exact micro-batches.

On CPUs, padding that no text of the batch needs is left out.

Shapes: B pairs of the batch, m of a micro-batch, E the joint space.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.models.config import TextTransformerConfig
from clip_jax.models.text_transformer import pooled_index
from clip_jax.objectives.objective import Arrays, Inputs
from clip_jax.parallel import partitioning
from clip_jax.parallel.mesh import BATCH_AXES, batch_shard_count

# (params, batch_stats, inputs) -> (what `Objective.encode` returns, updated
# batch_stats)
Encode = Callable[[Any, Any, Inputs], tuple[tuple[Arrays, Arrays], Any]]
# The type of `Objective.loss`.
LossOfPairs = Callable[[Arrays, Arrays, Inputs], tuple[jax.Array, Arrays]]
# (params, batch_stats, inputs) -> what `Objective.loss` returns, gradients of
# params, updated batch_stats
Gradients = Callable[
  [Any, Any, Inputs], tuple[tuple[jax.Array, Arrays], Any, Any]
]

_SHORTEST_TEXT = 16  # tokens that a step is compiled for


class AllTrained:
  """Stands for a `frozen_parameters.Partition` where nothing is frozen."""

  def locked(self) -> tuple[str, ...]:
    return ()

  def without_gradient(self) -> dict[str, float]:
    return {}

  def trained(self, params: Any) -> Any:
    return params

  def averaged(self, params: Any) -> Any:
    return params

  def joined(self, params: Any, trained: Any) -> Any:
    del params
    return trained

  def updated(self, params: Any, trained: Any) -> Any:
    del params
    return trained


def whole_batch_gradients(
  encode: Encode, loss_fn: LossOfPairs, mesh: Mesh
) -> Gradients:
  """Returns gradients for which both towers see all pairs in one pass."""

  def gradients(params, batch_stats, inputs):
    def objective(params):
      (pairs, shared), updated = encode(params, batch_stats, inputs)
      loss, parts = loss_fn(pairs, shared, inputs)
      return loss, (parts, updated)

    (loss, (parts, updated)), grads = jax.value_and_grad(
      objective, has_aux=True
    )(params)
    return (loss, parts), _shard_as_params(grads, mesh), updated

  return gradients


def micro_batch_gradients(
  encode: Encode, loss_fn: LossOfPairs, mesh: Mesh, micro_batch: int
) -> Gradients:
  """Returns exactly accumulated gradients (GradCache, arXiv 2101.06983).

  The first scan computes the features of all micro-batches (all that
  `Objective.encode` makes of pairs), without what a backward pass needs. Then
  follow the loss over all B pairs and its derivatives with respect to the
  features. The second scan encodes each micro-batch again, and back-propagates
  these derivatives. Random draws are part of the inputs, and so the same in
  both scans. The temperature takes part once, in the loss.

  The batch norm of a ResNet sees each micro-batch by itself, in both scans.

  Args:
    micro_batch: pairs, all devices together.
  """

  def gradients(params, batch_stats, inputs):
    pieces = jax.tree.map(split, inputs)  # B ... -> B/m m ...

    def forward(batch_stats, piece):
      outputs, updated = encode(params, batch_stats, piece)
      return updated, outputs

    updated, (features, shared) = jax.lax.scan(forward, batch_stats, pieces)
    (loss, parts), (feature_grads, shared_grads) = jax.value_and_grad(
      loss_fn, argnums=(0, 1), has_aux=True
    )(
      jax.tree.map(join, features), jax.tree.map(lambda x: x[0], shared), inputs
    )

    def backward(total, step):
      piece, output_grads = step
      _, pull_back = jax.vjp(
        lambda params: encode(params, batch_stats, piece)[0], params
      )
      (grads,) = pull_back(output_grads)
      total = jax.tree.map(jnp.add, total, grads)
      return _shard_as_params(total, mesh), None

    # The first micro-batch carries the whole gradient of the temperature.
    once = jax.tree.map(
      lambda x, grad: jnp.zeros_like(x).at[0].set(grad), shared, shared_grads
    )
    total = _shard_as_params(jax.tree.map(jnp.zeros_like, params), mesh)
    total, _ = jax.lax.scan(
      backward, total, (pieces, (jax.tree.map(split, feature_grads), once))
    )
    return (loss, parts), total, updated

  split, join = micro_batches(mesh, micro_batch)
  return gradients


def micro_batches(
  mesh: Mesh, micro_batch: int
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
  """Returns functions that split an array of pairs, [B, ...], and join it.

  The first gives [B/m, m, ...]. Each device's rows go into all micro-batches:
  none has to move.
  """
  shards = batch_shard_count(mesh)
  per_device = micro_batch // shards
  pieces_sharding = NamedSharding(mesh, P(None, BATCH_AXES))
  batch_sharding = NamedSharding(mesh, P(BATCH_AXES))

  def split(x):
    x = x.reshape(shards, -1, per_device, *x.shape[1:]).swapaxes(0, 1)
    x = x.reshape(-1, micro_batch, *x.shape[3:])
    return jax.lax.with_sharding_constraint(x, pieces_sharding)

  def join(x):
    x = x.reshape(-1, shards, per_device, *x.shape[2:]).swapaxes(0, 1)
    x = x.reshape(-1, *x.shape[3:])
    return jax.lax.with_sharding_constraint(x, batch_sharding)

  return split, join


def text_lengths(
  text: TextTransformerConfig, outputs: frozenset[str], platform: str
) -> tuple[int, ...]:
  """Returns the lengths that a step is compiled for, the whole context last.

  Captions of the web have some 10 to 40 tokens, and a CPU's batch is so small
  that often none fills a context of 77. Shorter lengths are 16 tokens, and
  doublings of it up to half of the context. There are none where all tokens are
  read, nor on accelerators: of many texts, one is always long.

  Args:
    outputs: what an objective reads of the towers.
    platform: of the devices, as JAX names it.
  """
  lengths, length = [text.context_length], _SHORTEST_TEXT
  read = {'image_features', 'text_features'}
  if (
    platform == 'cpu'
    and outputs == read
    and text.causal
    and text.pooling != 'last'
  ):
    while 2 * length <= text.context_length:
      lengths.insert(-1, length)
      length *= 2
  return tuple(lengths)


def for_short_texts(
  gradients: Gradients, text: TextTransformerConfig, lengths: tuple[int, ...]
) -> Gradients:
  """Returns the same gradients, computed at the shortest length that suffices.

  A causal tower's tokens see none that come after them: what follows the end of
  the longest text changes nothing.

  Args:
    lengths: of `text_lengths`. All devices take the same one, by the longest
      text of the whole batch.
  """
  if len(lengths) == 1:
    return gradients

  def cut(length: int) -> Gradients:
    def gradients_of_cut(params, batch_stats, inputs):
      tokens = inputs['tokens'][:, :length]
      return gradients(params, batch_stats, {**inputs, 'tokens': tokens})

    return gradients_of_cut

  def gradients_at_length(params, batch_stats, inputs):
    needed = 1 + jnp.max(pooled_index(inputs['tokens'], text))
    number = jnp.searchsorted(jnp.asarray(lengths), needed)
    branches = [cut(length) for length in lengths]
    return jax.lax.switch(number, branches, params, batch_stats, inputs)

  return gradients_at_length


def _shard_as_params(gradients: Any, mesh: Mesh) -> Any:
  """Lays each gradient out as its parameter is.

  The sum over the devices then becomes a reduce-scatter: no device holds the
  whole gradient of a parameter that is split.
  """
  return jax.lax.with_sharding_constraint(
    gradients, partitioning.shardings(gradients, mesh)
  )
