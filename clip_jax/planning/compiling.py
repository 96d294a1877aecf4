"""Compiles a config's train step for a topology and measures the program.

Runs in the child process that `child.py` starts, where JAX may meet libtpu.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.models.config import CLIPConfig
from clip_jax.parallel.mesh import batch_sharding
from clip_jax.planning import hlo
from clip_jax.planning.chips import GIB
from clip_jax.planning.collectives import Collective, axes_of, collectives
from clip_jax.planning.costs import operations
from clip_jax.planning.estimate import estimate, exchange_seconds
from clip_jax.planning.shapes import planned_model
from clip_jax.planning.topology import Topology, devices_of
from clip_jax.training.config import Config, preprocessing_of, with_defaults
from clip_jax.training.program import Program, make_program


def measure(
  config: Config,
  topology: Topology,
  compiles: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
  """What `plan.py` reports of one compilation, as plain data.

  Args:
    compiles: is called when the config has been found possible, before the
      part that takes minutes.
  Returns:
    'model' (fields of `CLIPConfig`), 'fits', 'peak_bytes_per_chip', 'memory',
    and, where the program fits and so exists, its costs.
  Raises:
    UsageError: the config cannot work on this topology.
  """
  config = with_defaults(config)
  model = planned_model(config)
  devices = devices_of(topology)
  program = make_program(
    config, model, preprocessing_of(config, model), devices=devices
  )
  batch = abstract_batch(program, model, config.data.batch_size)
  held = held_bytes(program, batch)
  result: dict[str, Any] = {'model': model.to_dict()}
  lowered = program.train_step.lower(program.state, batch)
  compiles()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needed = needed_bytes(str(error))
    if needed is None:
      raise
    rest = max(needed - sum(held.values()), 0)
    memory = {**held, 'activations_and_temporaries': rest}
    return {
      **result,
      'fits': False,
      'peak_bytes_per_chip': needed,
      'memory': memory,
    }
  memory = memory_of(compiled.memory_analysis(), held)
  return {
    **result,
    'fits': True,
    'peak_bytes_per_chip': sum(memory.values()),
    'memory': memory,
    **costs_of(compiled.as_text(), topology, program.mesh),
  }


def abstract_batch(
  program: Program, model: CLIPConfig, batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """The batch that the step takes, as shapes with their sharding."""
  split = batch_sharding(program.mesh)
  side, length = model.image.image_size, model.text.context_length

  def array(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

  return {
    'image': array((batch_size, side, side, 3), jnp.uint8),
    'tokens': array((batch_size, length), jnp.int32),
  }


def held_bytes(program: Program, batch: Any) -> dict[str, int]:
  """What one chip holds before the step starts, by what it is."""
  state = program.state
  return {
    'parameters': _bytes_per_chip(state.params),
    'optimizer': _bytes_per_chip((state.step, state.opt_state)),
    'batch_statistics': _bytes_per_chip(state.batch_stats),
    'batch': _bytes_per_chip(batch),
  }


def _bytes_per_chip(tree: Any) -> int:
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def memory_of(analysis: Any, held: dict[str, int]) -> dict[str, int]:
  """Bytes of a chip while the step runs; they add up to the peak.

  Args:
    analysis: of the compiled step. Its arguments are a little larger than
      what they hold: a TPU pads arrays to whole tiles.
    held: from `held_bytes`.
  """
  arguments = analysis.argument_size_in_bytes
  return {
    **held,
    'padding': arguments - sum(held.values()),
    # Not temp_size_in_bytes: some libtpu count results in it that take the
    # place of arguments.
    'activations_and_temporaries': analysis.peak_memory_in_bytes - arguments,
    'program': analysis.generated_code_size_in_bytes,
  }


def needed_bytes(message: str) -> int | None:
  """What libtpu says a program that is too large would take, or None where
  the message is about something else."""
  if 'RESOURCE_EXHAUSTED' not in message:
    return None
  for pattern in (
    r'temporaries \(([\d.]+)([KMGT])\) exceeds available HBM',
    r'Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm',
  ):
    if found := re.search(pattern, message):
      unit = {'K': GIB >> 20, 'M': GIB >> 10, 'G': GIB, 'T': GIB << 10}[
        found[2]
      ]
      return int(float(found[1]) * unit)
  return None


def costs_of(
  text: str, topology: Topology, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
  """What an optimized program costs a step, on each chip."""
  devices = list(mesh.devices.flat)
  program = hlo.parse(text)
  done = list(operations(program))
  exchanges = collectives(program, len(devices), topology.slices)
  return {
    'flops_per_chip': sum(o.flops * o.times for o in done),
    'hbm_bytes_accessed_per_chip': sum(o.hbm_bytes * o.times for o in done),
    'collectives': [
      {
        'op': exchange.op,
        'axes': axes_of(exchange.group, dict(mesh.shape)),
        'group_size': len(exchange.group),
        'bytes': exchange.bytes,
        'count': exchange.times,
        'overlapped': exchange.hidden,
        'seconds': exchange.times
        * exchange_seconds(exchange, topology, devices),
      }
      for exchange in merged(exchanges)
    ],
    **dataclasses.asdict(estimate(done, exchanges, topology, devices)),
  }


def merged(exchanges: Sequence[Collective]) -> list[Collective]:
  """Equal exchanges as one that is counted more often, largest first."""
  counts: dict[Collective, int] = {}
  for exchange in exchanges:
    key = dataclasses.replace(exchange, times=0)
    counts[key] = counts.get(key, 0) + exchange.times
  found = [dataclasses.replace(k, times=n) for k, n in counts.items()]
  return sorted(found, key=lambda e: e.bytes * e.times, reverse=True)
