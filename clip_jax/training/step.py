"""The train step: one pure function (state, batch) -> (state, metrics).

`make_train_step` is the arithmetic, `jit_train_step` compiles it for a mesh,
and `build_train_program` does both for a config.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clip_jax.data.images import images_of
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.models.config import CLIPConfig
from clip_jax.models.dual_encoder import DualEncoder, normalize
from clip_jax.objectives.objective import Objective
from clip_jax.objectives.registry import objective_of
from clip_jax.parallel.mesh import BATCH_AXES, batch_sharding, replicated
from clip_jax.parallel.partitioning import (
  activations_like_batch,
  gather_embedding_tables,
)
from clip_jax.training.config import Config, check_objective, optimizer_fields
from clip_jax.training.gradients import (
  micro_batch_gradients,
  whole_batch_gradients,
)
from clip_jax.training.optimizer import Optimizer, make_optimizer
from clip_jax.training.state import TrainState, abstract_state, variables_of

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]

# The CPU's compiler alone leaves this analysis out by default, and then copies
# what the scans over the blocks pass on, though nothing else reads it.
CPU_OPTIONS = {'xla_cpu_copy_insertion_use_region_analysis': True}


@dataclasses.dataclass(frozen=True)
class TrainProgram:
  """The train step of a config on a mesh, with nothing allocated yet."""

  mesh: Mesh
  module: DualEncoder
  optimizer: Optimizer
  state: TrainState  # shapes, dtypes and shardings
  train_step: TrainStep  # jitted, its state donated


def build_train_program(
  config: Config, mesh: Mesh, model: CLIPConfig, preprocessing: Preprocessing
) -> TrainProgram:
  """Builds the jitted step of a config, and the shapes of its state.

  Args:
    config: the fields of configs/base.py.
    mesh: from `check_devices`; its devices need not be attached.
    model: the shape of `config.model`, with a tokenizer's vocabulary.
    preprocessing: its mean and std normalise the uint8 pixels.
  Raises:
    UsageError: the objective or the optimizer is impossible.
  """
  check_objective(config, model)
  dtype, remat = jnp.dtype(config.model.dtype), config.model.remat
  module = DualEncoder(model, dtype, remat)
  rule = optimizer_fields(config, model)
  optimizer, schedule = make_optimizer(config.total_steps, **rule)
  train_step = make_train_step(
    module,
    optimizer,
    schedule,
    objective_of(config.objective, model, mesh, BATCH_AXES),
    preprocessing,
    mesh,
    seed=config.seed,
    micro_batch=config.objective.micro_batch,
    max_logit_scale=config.objective.max_logit_scale,
    patch_dropout=config.model.patch_dropout,
  )
  state = abstract_state(module, optimizer, mesh)
  return TrainProgram(
    mesh, module, optimizer, state, jit_train_step(train_step, state, mesh)
  )


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
      0 is the whole batch. The result is the same.
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
    ema = jax.tree.map(
      lambda mean, new: mean + (1 - optimizer.ema_decay) * (new - mean),
      state.ema,
      partition.averaged(params) if state.ema else {},
    )
    metrics = {
      'loss': loss,
      'learning_rate': schedule(state.step),
      'logit_scale': jnp.exp(state.params['logit_scale']),
      'grad_norm': norm,
      'skipped': 1.0 - finite,
      **{f'loss_{name}': part for name, part in parts.items()},
    }
    updated = TrainState(state.step + 1, params, opt_state, batch_stats, ema)
    return _apply_if(finite, updated, state), metrics

  return train_step


def _apply_if(finite: jax.Array, updated: TrainState, state: TrainState) -> Any:
  """Returns the updated state, or the old one with advanced counters."""

  def choose(new, old):
    is_counter = jnp.issubdtype(new.dtype, jnp.integer)
    is_frozen = new is old
    return new if is_counter or is_frozen else jnp.where(finite, new, old)

  return jax.tree.map(choose, updated, state)


def jit_train_step(
  train_step: TrainStep, state: TrainState, mesh: Mesh
) -> TrainStep:
  """Compiles the step for a mesh, with the state donated.

  Args:
    state: a state, or its shapes with their shardings.
    mesh: the batch is split over its batch axes.
  """
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  return jax.jit(
    train_step,
    in_shardings=(shardings, batch_sharding(mesh)),
    out_shardings=(shardings, replicated(mesh)),
    donate_argnums=0,
    compiler_options=_compiler_options(mesh),
  )


def _compiler_options(mesh: Mesh) -> dict[str, bool] | None:
  """Returns `CPU_OPTIONS` for a CPU whose compiler knows them, else None."""
  if mesh.devices.flat[0].platform != 'cpu':
    return None
  try:
    jax.jit(lambda: 0, compiler_options=CPU_OPTIONS).lower().compile()
  except jax.errors.JaxRuntimeError:
    return None
  return CPU_OPTIONS
