"""From a config and the shape of a model to the jitted step, without data: what
a run executes, and what `clip-jax plan` compiles for chips that are not here.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clip_jax.data.images import Preprocessing
from clip_jax.models.config import CLIPConfig
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.objectives.registry import check_chunk, make_loss
from clip_jax.objectives.sharded import Loss
from clip_jax.parallel.mesh import (
  BATCH_AXES,
  batch_shard_count,
  check_batch_size,
  make_mesh,
)
from clip_jax.training.config import Config, check_config, check_objective
from clip_jax.training.gradients import check_micro_batch
from clip_jax.training.optimizer import make_optimizer
from clip_jax.training.state import TrainState, abstract_state
from clip_jax.training.step import TrainStep, jit_train_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
  """The train step of a config on a mesh; nothing is allocated yet."""

  mesh: Mesh
  module: DualEncoder
  optimizer: optax.GradientTransformation
  state: TrainState  # shapes, dtypes and shardings
  train_step: TrainStep  # jitted, its state donated


def make_program(
  config: Config,
  model: CLIPConfig,
  preprocessing: Preprocessing,
  devices: Sequence[jax.Device] | None = None,
) -> Program:
  """Lays the config's step out on devices.

  Args:
    config: the fields of configs/base.py; those of the data are not read,
      but for the batch size.
    model: what `config.model` stands for, with a tokenizer's vocabulary.
    preprocessing: its mean and std normalise the uint8 pixels.
    devices: default, all of `jax.devices()`; they need not be attached.
  Raises:
    UsageError: a field is impossible, or does not fit the devices.
  """
  mesh = check_devices(config, devices)
  check_objective(config, model)
  objective = config.objective
  return assemble(
    mesh,
    model,
    preprocessing,
    *make_optimizer(config.total_steps, **config.optimizer),
    make_loss(
      objective.name, objective.form, mesh, BATCH_AXES, objective.chunk
    ),
    dtype=config.model.dtype,
    remat=config.model.remat,
    seed=config.seed,
    micro_batch=objective.micro_batch,
    max_logit_scale=objective.max_logit_scale,
    patch_dropout=config.model.patch_dropout,
  )


def assemble(
  mesh: Mesh,
  model: CLIPConfig,
  preprocessing: Preprocessing,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  loss_fn: Loss,
  *,
  dtype: str,
  remat: str,
  **options: Any,
) -> Program:
  """The program of these parts.

  Args:
    mesh: the devices.
    model, preprocessing: as in `make_program`.
    optimizer, schedule, loss_fn, options: as in `make_train_step`.
    dtype, remat: as in `model` of configs/base.py.
  """
  module = DualEncoder(model, jnp.dtype(dtype), remat)
  state = abstract_state(module, optimizer, mesh)
  train_step = make_train_step(
    module, optimizer, schedule, loss_fn, preprocessing, mesh, **options
  )
  return Program(
    mesh, module, optimizer, state, jit_train_step(train_step, state, mesh)
  )


def check_devices(
  config: Config, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """The config's mesh of the devices, before anything else is made.

  Raises:
    UsageError: a field is impossible, or does not fit the devices.
  """
  sizes = config.mesh
  mesh = make_mesh(sizes.data, sizes.fsdp, sizes.tensor, sizes.slices, devices)
  check_config(config)
  batch_size, objective = config.data.batch_size, config.objective
  check_batch_size(batch_size, mesh)
  check_micro_batch(objective.micro_batch, batch_size, mesh)
  check_chunk(
    objective.form, objective.chunk, batch_size, batch_shard_count(mesh)
  )
  return mesh
