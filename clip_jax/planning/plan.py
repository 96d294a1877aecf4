"""The plan of a run: a measured compilation and what follows from it."""

from collections.abc import Callable
from typing import Any

from clip_jax.models.config import CLIPConfig
from clip_jax.planning.child import measure_apart
from clip_jax.planning.estimate import (
  ASSUMPTIONS,
  days_and_chip_hours,
)
from clip_jax.planning.topology import Topology
from clip_jax.training.config import Config
from clip_jax.training.utilization import model_flops_utilization

Plan = dict[str, Any]  # as JSON; the keys are those of `make_plan`
Measure = Callable[[Config, Topology], dict[str, Any]]

# What only a program that fits has.
_COSTS = (
  'flops_per_chip',
  'hbm_bytes_accessed_per_chip',
  'matrix_seconds',
  'hbm_seconds',
  'compute_seconds',
  'collective_seconds',
  'step_seconds',
)


def make_plan(
  config: Config, topology: Topology, measure: Measure = measure_apart
) -> Plan:
  """Compiles a config's step for a topology and says what it would take.

  Args:
    measure: compiles and measures.
  Returns:
    topology, chips, settings: what was planned.
    fits, peak_bytes_per_chip, hbm_bytes_per_chip, memory: bytes of a chip, by
      what holds them.
    flops_per_chip, hbm_bytes_accessed_per_chip, collectives: of one step, from
      the compiled program.
    matrix_seconds, hbm_seconds, compute_seconds, collective_seconds,
      step_seconds, mfu, pairs_per_second, days, chip_hours: estimates; see
      `estimate.Estimate` and `assumptions`.
    All that needs a program is None where none fits, and `collectives` empty.
  Raises:
    UsageError: the config cannot work on this topology.
    FailureError: the compiler failed otherwise.
  """
  measured = dict(measure(config, topology))
  model = CLIPConfig.from_dict(measured.pop('model'))
  plan: Plan = {
    'topology': str(topology),
    'chips': topology.chips,
    'settings': settings_of(config),
    'hbm_bytes_per_chip': topology.chip.hbm_bytes,
    **dict.fromkeys(_COSTS),
    'collectives': [],
    **measured,
  }
  return {**plan, **_following(plan, model, config, topology)}


def settings_of(config: Config) -> dict[str, Any]:
  """The fields that memory and speed hang on most."""
  return {
    'model.preset': config.model.preset,
    'model.dtype': config.model.dtype,
    'model.remat': config.model.remat,
    'data.batch_size': config.data.batch_size,
    'objective.form': config.objective.form,
    'objective.micro_batch': config.objective.micro_batch,
    'mesh.fsdp': config.mesh.fsdp,
    'mesh.tensor': config.mesh.tensor,
    'mesh.slices': config.mesh.slices,
    'total_steps': config.total_steps,
  }


def _following(
  plan: Plan, model: CLIPConfig, config: Config, topology: Topology
) -> dict[str, Any]:
  """What follows from the time of a step."""
  seconds = plan['step_seconds']
  if seconds is None:
    names = ('mfu', 'pairs_per_second', 'days', 'chip_hours')
    return {**dict.fromkeys(names), 'assumptions': []}
  batch_size = config.data.batch_size
  days, chip_hours = days_and_chip_hours(
    seconds, config.total_steps, topology.chips
  )
  return {
    'mfu': model_flops_utilization(
      model,
      batch_size / seconds,
      topology.chip.device_kind,
      topology.chips,
      config.model.patch_dropout,
    ),
    'pairs_per_second': batch_size / seconds,
    'days': days,
    'chip_hours': chip_hours,
    'assumptions': list(ASSUMPTIONS),
  }
