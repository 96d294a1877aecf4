"""The train step: one pure function (state, batch) -> (state, metrics).

program.py compiles it, for a config and a mesh.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clip_jax.data.images import images_of
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.models.dual_encoder import DualEncoder, normalize
from clip_jax.objectives.objective import Objective
from clip_jax.parallel.partitioning import (
  activations_like_batch,
  gather_embedding_tables,
)
from clip_jax.training.gradients import (
  for_short_texts,
  micro_batch_gradients,
  text_lengths,
  whole_batch_gradients,
)
from clip_jax.training.optimizer import Optimizer
from clip_jax.training.state import TrainState, variables_of

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
  module: DualEncoder,
  optimizer: Optimizer,
  schedule: optax.Schedule,
  objective: Objective,
  preprocessing: Preprocessing,
  mesh: Mesh,
  *,
  seed: int = 0,
  micro_batch: int = 0,
  max_logit_scale: float = 100.0,
  patch_dropout: float = 0.0,
) -> TrainStep:
  """Returns the update as a pure function, not yet jitted.

  A step whose loss or gradient is not finite is skipped: only the counters
  change, and the metric `skipped` is 1.

  Args:
    module: the model.
    optimizer, schedule: from `make_optimizer`.
    objective: what is minimized.
    preprocessing: its mean and std normalise the uint8 pixels.
    mesh: gradients are laid out on it as the parameters are.
    seed: the random draws are a function of the seed and the step.
    micro_batch: pairs that the towers see in one pass, all devices together;
      0 is the whole batch. The result is the same, but for batch norm.
    max_logit_scale: the temperature is clipped here (paper, section 2.5); 0
      does not clip it.
    patch_dropout: the fraction of patches that a ViT does not see (FLIP, arXiv
      2212.00794), drawn anew for each image.
  Returns:
    A function of (state, {'image': uint8 [B, S, S, 3], 'tokens': int32
    [B, T]}, and what terms read) that returns the next state, and scalars from
    before the update. Of native aspect, 'image' is [B, L, P, P, 3], and 'grid'
    int32 [B, 2].
  """

  text = module.config.text
  platform = mesh.devices.flat[0].platform
  lengths = text_lengths(text, objective.outputs, platform)

  def encode(params, batch_stats, inputs, mutable):
    params = gather_embedding_tables(params, mesh, module.dtype)
    with activations_like_batch(mesh):
      image = normalize(
        images_of(inputs), preprocessing.mean, preprocessing.std
      )
      outputs, updated = module.apply(
        variables_of(params, batch_stats),
        {**inputs, 'image': image},
        method=objective.encode,
        mutable=mutable,
      )
    return outputs, updated.get('batch_stats', batch_stats)

  def gradients_of(trained, params, partition, batch_stats, inputs):
    """Differentiates by `trained`, the part of `params` that is not frozen."""
    # A locked tower stays the same function: a ResNet's running statistics too.
    mutable = () if 'image' in partition.locked() else 'batch_stats'

    def encode_with(trained, batch_stats, inputs):
      joined = partition.joined(params, trained)
      return encode(joined, batch_stats, inputs, mutable)

    if micro_batch:
      gradients = micro_batch_gradients(
        encode_with, objective.loss, mesh, micro_batch
      )
    else:
      gradients = whole_batch_gradients(encode_with, objective.loss, mesh)
    gradients = for_short_texts(gradients, text, lengths)
    return gradients(trained, batch_stats, inputs)

  def train_step(state: TrainState, batch: Batch):
    inputs = dict(batch)
    if patch_dropout:
      from clip_jax.training.patch_dropout import draw_patches

      key = jax.random.fold_in(jax.random.key(seed), state.step)
      tower: Any = module.config.image  # a ViT's
      inputs['kept_patches'] = draw_patches(
        key, images_of(batch), tower, patch_dropout
      )
    partition = optimizer.partition(state.params)
    trained = partition.trained(state.params)
    (loss, parts), gradients, batch_stats = gradients_of(
      trained, state.params, partition, state.batch_stats, inputs
    )
    norm = optax.global_norm(gradients)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    trained: Any = optax.apply_updates(trained, updates)
    if max_logit_scale and 'logit_scale' in trained:
      trained = {
        **trained,
        'logit_scale': jnp.minimum(
          trained['logit_scale'], math.log(max_logit_scale)
        ),
      }
    params = partition.updated(state.params, trained)
    averaged = partition.averaged(params) if state.ema else {}
    ema = moving_average(state.ema, averaged, optimizer.ema_decay)
    metrics = {
      'loss': loss,
      'learning_rate': schedule(state.step),
      'logit_scale': jnp.exp(state.params['logit_scale']),
      'grad_norm': norm,
      'skipped': 1.0 - finite,
      **{f'loss_{name}': part for name, part in parts.items()},
    }
    updated = TrainState(
      state.step + 1, params, opt_state, batch_stats, ema, state.teacher
    )
    return _apply_if(finite, updated, state), metrics

  return train_step


def moving_average(mean: Any, new: Any, decay: float) -> Any:
  """Returns `mean` after a step towards `new`, of the same tree."""
  return jax.tree.map(lambda m, n: m + (1 - decay) * (n - m), mean, new)


def _apply_if(finite: jax.Array, updated: TrainState, state: TrainState) -> Any:
  """Returns the updated state, or the old one with advanced counters."""

  def choose(new, old):
    is_counter = jnp.issubdtype(new.dtype, jnp.integer)
    is_frozen = new is old
    return new if is_counter or is_frozen else jnp.where(finite, new, old)

  return jax.tree.map(choose, updated, state)
