"""The train step: one pure function (state, batch) -> (state, metrics)."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clip_jax.data.images import Preprocessing
from clip_jax.models.dual_encoder import DualEncoder, normalize
from clip_jax.objectives.contrastive import Loss
from clip_jax.parallel.mesh import batch_sharding, replicated
from clip_jax.training.state import TrainState, variables_of

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]

MAX_LOGIT_SCALE = 100.0  # paper, section 2.5


def make_train_step(
  module: DualEncoder,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  loss_fn: Loss,
  preprocessing: Preprocessing,
) -> TrainStep:
  """The update as a pure function, not yet jitted.

  Args:
    module: the model.
    optimizer, schedule: from `make_optimizer`.
    loss_fn: of (image features, text features, logit scale).
    preprocessing: its mean and std normalise the uint8 pixels.
  Returns:
    (state, {'image': uint8 [B, S, S, 3], 'tokens': int32 [B, T]}) to the next
    state and the scalars of that step, before the update.
  """

  def train_step(state: TrainState, batch: Batch):
    images = normalize(batch['image'], preprocessing.mean, preprocessing.std)

    def objective(params):
      outputs, updated = module.apply(
        variables_of(params, state.batch_stats),
        images,
        batch['tokens'],
        train=True,
        mutable='batch_stats',
      )
      image_features, text_features, logit_scale, _ = outputs
      loss = loss_fn(image_features, text_features, logit_scale)
      return loss, updated.get('batch_stats', {})

    (loss, batch_stats), gradients = jax.value_and_grad(
      objective, has_aux=True
    )(state.params)
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    params: Any = optax.apply_updates(state.params, updates)
    params = dict(params)
    params['logit_scale'] = jnp.minimum(
      params['logit_scale'], math.log(MAX_LOGIT_SCALE)
    )
    metrics = {
      'loss': loss,
      'learning_rate': schedule(state.step),
      'logit_scale': jnp.exp(state.params['logit_scale']),
      'grad_norm': optax.global_norm(gradients),
    }
    state = TrainState(state.step + 1, params, opt_state, batch_stats)
    return state, metrics

  return train_step


def jit_train_step(
  train_step: TrainStep, state: TrainState, mesh: Mesh
) -> TrainStep:
  """Compiles the step for a mesh, with the state donated.

  Args:
    state: a state or its shapes, whose arrays say where they live.
    mesh: the batch is split over its batch axes.
  """
  placed = jax.tree.map(lambda leaf: leaf.sharding, state)
  return jax.jit(
    train_step,
    in_shardings=(placed, batch_sharding(mesh)),
    out_shardings=(placed, replicated(mesh)),
    donate_argnums=0,
  )
