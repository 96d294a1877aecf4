"""The train step: one pure function (state, batch) -> (state, metrics)."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from clip_jax.data.images import Preprocessing
from clip_jax.models.dual_encoder import DualEncoder, normalize
from clip_jax.objectives.sharded import Loss
from clip_jax.parallel.mesh import batch_sharding, replicated
from clip_jax.parallel.partitioning import (
  activations_like_batch,
  gather_embedding_tables,
)
from clip_jax.training.gradients import in_micro_batches, whole_batch
from clip_jax.training.state import TrainState, variables_of

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]

# Of the compilers, the CPU's alone leaves this analysis out by default, and
# copies what the scans over the blocks pass on, though nothing else reads it.
CPU_OPTIONS = {'xla_cpu_copy_insertion_use_region_analysis': True}


def make_train_step(
  module: DualEncoder,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  loss_fn: Loss,
  preprocessing: Preprocessing,
  mesh: Mesh,
  *,
  seed: int = 0,
  micro_batch: int = 0,
  max_logit_scale: float = 100.0,
  patch_dropout: float = 0.0,
) -> TrainStep:
  """The update as a pure function, not yet jitted.

  A step whose loss or gradient is not finite changes nothing but the counters,
  and says so in its metrics.

  Args:
    module: the model.
    optimizer, schedule: from `make_optimizer`.
    loss_fn: of (image features, text features, logit scale, logit bias).
    preprocessing: its mean and std normalise the uint8 pixels.
    mesh: gradients are laid out on it as the parameters are.
    seed: of what is random; with the step, it says all.
    micro_batch: pairs that the towers see at once, all devices together; 0 is
      the whole batch. The result is the same.
    max_logit_scale: the temperature is clipped here (paper, section 2.5); 0 is
      nowhere.
    patch_dropout: the share of patches that a ViT does not see (FLIP, arXiv
      2212.00794), drawn anew for each image.
  Returns:
    (state, {'image': uint8 [B, S, S, 3], 'tokens': int32 [B, T]}) to the next
    state and the scalars of that step, before the update.
  """

  def encode(params, batch_stats, inputs):
    params = gather_embedding_tables(params, mesh, module.dtype)
    with activations_like_batch(mesh):
      outputs, updated = module.apply(
        variables_of(params, batch_stats),
        normalize(inputs['image'], preprocessing.mean, preprocessing.std),
        inputs['tokens'],
        train=True,
        kept_patches=inputs.get('kept_patches'),
        mutable='batch_stats',
      )
    return outputs, updated.get('batch_stats', {})

  if micro_batch:
    gradients_of = in_micro_batches(encode, loss_fn, mesh, micro_batch)
  else:
    gradients_of = whole_batch(encode, loss_fn, mesh)

  def train_step(state: TrainState, batch: Batch):
    inputs = dict(batch)
    if patch_dropout:
      tower: Any = module.config.image  # a ViT's
      inputs['kept_patches'] = draw_patches(
        jax.random.fold_in(jax.random.key(seed), state.step),
        len(batch['image']),
        tower.patches,
        tower.kept_patches(patch_dropout),
      )
    loss, gradients, batch_stats = gradients_of(
      state.params, state.batch_stats, inputs
    )
    norm = optax.global_norm(gradients)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    params: Any = optax.apply_updates(state.params, updates)
    if max_logit_scale:
      params = {
        **params,
        'logit_scale': jnp.minimum(
          params['logit_scale'], math.log(max_logit_scale)
        ),
      }
    metrics = {
      'loss': loss,
      'learning_rate': schedule(state.step),
      'logit_scale': jnp.exp(state.params['logit_scale']),
      'grad_norm': norm,
      'skipped': 1.0 - finite,
    }
    updated = TrainState(state.step + 1, params, opt_state, batch_stats)
    return _where(finite, updated, state), metrics

  return train_step


def _where(finite: jax.Array, updated: TrainState, state: TrainState) -> Any:
  """The update, or what was before; counters, which are integers, move on."""

  def choose(new, old):
    whole = jnp.issubdtype(new.dtype, jnp.integer)
    return new if whole else jnp.where(finite, new, old)

  return jax.tree.map(choose, updated, state)


def draw_patches(
  key: jax.Array, images: int, patches: int, kept: int
) -> Int[Array, 'B K']:
  """For each image, other `kept` of its patches."""
  noise = jax.random.uniform(key, (images, patches))
  return jax.lax.top_k(noise, kept)[1]


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
    compiler_options=_compiler_options(mesh),
  )


def _compiler_options(mesh: Mesh) -> dict[str, bool] | None:
  """Those of CPUs, unless this release of jaxlib does not know them."""
  if mesh.devices.flat[0].platform != 'cpu':
    return None
  try:
    jax.jit(lambda: 0, compiler_options=CPU_OPTIONS).lower().compile()
  except jax.errors.JaxRuntimeError:
    return None
  return CPU_OPTIONS
