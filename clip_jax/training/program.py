"""The train step of a config, compiled for a mesh.

step.py is the arithmetic. `build_train_program` builds it for a config, and
`jit_train_step` compiles it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_jax.data.preprocessing import Preprocessing
from clip_jax.models.config import CLIPConfig
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.objectives.objective import Term
from clip_jax.objectives.registry import objective_of
from clip_jax.parallel.mesh import BATCH_AXES, batch_sharding, replicated
from clip_jax.training.config import (
  Config,
  check_objective,
  first_taught_step,
  optimizer_fields,
)
from clip_jax.training.optimizer import Optimizer, make_optimizer
from clip_jax.training.state import TrainState, abstract_state
from clip_jax.training.step import TrainStep, make_train_step

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
  # Where a momentum teacher begins late: the updates before, and its step.
  later: tuple[int, TrainStep] | None = None

  def step_after(self, done: int) -> TrainStep:
    """Returns the jitted step that comes after so many updates."""
    if self.later is None or done < self.later[0]:
      return self.train_step
    return self.later[1]


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
  dtype = jnp.dtype(config.model.dtype)
  remat = config.model.remat, config.model.text_remat or config.model.remat
  module: Any = DualEncoder(model, dtype, remat)
  begin = first_taught_step(config)
  if begin is not None:
    from clip_jax.training import momentum_teacher

    module = momentum_teacher.make_encoder(config, model, dtype, remat)
  rule = optimizer_fields(config, model)
  optimizer, schedule = make_optimizer(config.total_steps, **rule)

  def step_with(taught: Mapping[str, Term]) -> TrainStep:
    return make_train_step(
      module,
      optimizer,
      schedule,
      objective_of(config.objective, model, mesh, BATCH_AXES, taught),
      preprocessing,
      mesh,
      seed=config.seed,
      micro_batch=config.objective.micro_batch,
      max_logit_scale=config.objective.max_logit_scale,
      patch_dropout=config.model.patch_dropout,
    )

  state = abstract_state(module, optimizer, mesh)
  step, later = step_with({}), None
  if begin is not None:
    step = momentum_teacher.before_teacher(step)
    taught = momentum_teacher.with_teacher(
      step_with, module, preprocessing, mesh, config, begin
    )
    if begin:
      later = begin, jit_train_step(taught, state, mesh)
    else:
      step = taught
  compiled = jit_train_step(step, state, mesh)
  return TrainProgram(mesh, module, optimizer, state, compiled, later)


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
