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

from clip_jax.errors import UsageError
from clip_jax.models import presets
from clip_jax.models.config import CLIPConfig
from clip_jax.objectives.distillation import teacher_arrays
from clip_jax.parallel.mesh import batch_sharding
from clip_jax.planning import hlo
from clip_jax.planning.collectives import Collective, axes_of, collectives
from clip_jax.planning.costs import operations
from clip_jax.planning.estimate import estimate, exchange_seconds
from clip_jax.planning.products import kernels_without_costs
from clip_jax.planning.topology import GIB, Topology, devices_of
from clip_jax.training.config import (
  Config,
  check_config,
  check_devices,
  preprocessing_of,
  tokenizer_path,
  with_defaults,
)
from clip_jax.training.program import TrainProgram, build_train_program
from clip_jax.training.run import load_tokenizer, make_model_config


def measure(
  config: Config,
  topology: Topology,
  compiles: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
  """Compiles the train step, and returns its costs as plain data.

  Args:
    compiles: is called when the config has been checked, before the part that
      takes minutes.
  Returns:
    'model' (fields of `CLIPConfig`), 'without_gradient' (the share of each
    tower's blocks that have a forward pass only), 'fits',
    'peak_bytes_per_chip', 'memory', and, where the program fits and so exists,
    its costs. Where terms begin late, memory is that of the larger of both
    steps, costs are those of the first, and 'later' has 'after_steps', and the
    'step_seconds' and 'step_seconds_by_shape' from then on.
  Raises:
    UsageError: the config cannot work on this topology.
  """
  config = with_defaults(config)
  model = planned_model(config)
  check_config(config)
  teacher_dims = plan_teachers(config)
  mesh = check_devices(config, devices_of(topology))
  program = build_train_program(
    config, mesh, model, preprocessing_of(config, model)
  )
  longest = max(config.data.sequence_lengths, default=0)
  batch = abstract_batch(
    program, model, config.data.batch_size, longest, teacher_dims
  )
  partition = program.optimizer.partition(program.state.params)
  result: dict[str, Any] = {
    'model': model.to_dict(),
    'without_gradient': partition.without_gradient(),
  }
  begin, step = program.later or (0, None)
  lowered = [
    one.lower(program.state, batch)
    for one in (program.train_step, step)
    if one is not None
  ]
  compiles()
  first, *later = (
    _measure_step(one, program, batch, topology) for one in lowered
  )
  if not later:
    return {**result, **first}
  largest = max([first, *later], key=lambda one: one['peak_bytes_per_chip'])
  if not first['fits'] or not largest['fits']:
    return {**result, **largest}
  of_memory = ('fits', 'peak_bytes_per_chip', 'memory')
  of_time = ('step_seconds', 'step_seconds_by_shape')
  return {
    **result,
    **first,
    **{name: largest[name] for name in of_memory},
    'later': {
      'after_steps': begin,
      **{name: later[0][name] for name in of_time},
    },
  }


def _measure_step(
  lowered: Any, program: TrainProgram, batch: Any, topology: Topology
) -> dict[str, Any]:
  """Compiles a step; returns what it needs, and its costs where it fits."""
  held = held_bytes(program, batch)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needed = needed_bytes(str(error))
    if needed is None:
      raise
    rest = max(needed - sum(held.values()), 0)
    memory = {**held, 'activations_and_temporaries': rest}
    return {
      'fits': False,
      'peak_bytes_per_chip': needed,
      'memory': memory,
    }
  memory = memory_of(compiled.memory_analysis(), held)
  return {
    'fits': True,
    'peak_bytes_per_chip': sum(memory.values()),
    'memory': memory,
    **costs_of(compiled.as_text(), topology, program.mesh),
  }


def planned_model(config: Config) -> CLIPConfig:
  """Returns the model that `train` would make of a config, without data.

  A tokenizer whose file is not there yet, or which is that of the model to
  start from, is taken to have the vocabulary that the config or its preset
  says: only the number of tokens matters here.

  Raises:
    UsageError: a field is impossible, or nothing says how many tokens there
      are.
  """
  config = with_defaults(config)
  path = tokenizer_path(config.tokenizer)
  if config.tokenizer == 'clip' or (path and path.exists()):
    tokenizer = load_tokenizer(config)
    return make_model_config(
      config, tokenizer.vocab_size, tokenizer.eos_id, tokenizer.context_length
    )
  text, name = config.model.text, config.model.preset
  known = dataclasses.asdict(presets.find(name).config.text) if name else {}
  vocab_size = (
    text.vocab_size
    or config.tokenizer_training.vocab_size
    or known.get('vocab_size')
  )
  if not vocab_size:
    raise UsageError(
      f'tokenizer={config.tokenizer!r} is not there: say '
      'model.text.vocab_size, the number of its tokens, to plan without it.'
    )
  length = text.context_length or known.get('context_length')
  end = vocab_size - 1 if text.pooling == 'highest' else 1
  return make_model_config(
    config, vocab_size, known.get('end_token', end), length
  )


def plan_teachers(config: Config) -> list[int]:
  """Fills the temperatures of teachers; returns the width of their features.

  Those that are not there yet are taken to be a ViT-L/14: only the width
  matters here.
  """
  dims, scales = [], []
  for folder in config.data.teachers:
    from clip_jax.inference.teacher_features import TeacherFeatures

    try:
      teacher = TeacherFeatures(folder)
    except UsageError:
      dims.append(presets.find('ViT-L/14').config.embed_dim)
      scales.append(100.0)
    else:
      dims.append(teacher.dims)
      scales.append(teacher.logit_scale)
  config.objective.teacher_scales = config.objective.teacher_scales or tuple(
    scales
  )
  return dims


def abstract_batch(
  program: TrainProgram,
  model: CLIPConfig,
  batch_size: int,
  sequence_length: int = 0,
  teacher_dims: Sequence[int] = (),
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the batch that the step takes, as shapes with their sharding.

  Args:
    sequence_length: patches of an image of native aspect; 0: squares.
    teacher_dims: the width of each teacher's features.
  """
  split = batch_sharding(program.mesh)
  side, length = model.image.image_size, model.text.context_length

  def array(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

  images = {'image': array((batch_size, side, side, 3), jnp.uint8)}
  if sequence_length:
    patch: Any = getattr(model.image, 'patch_size', 1)
    images = {
      'image': array((batch_size, sequence_length, patch, patch, 3), jnp.uint8),
      'grid': array((batch_size, 2), jnp.int32),
    }
  return {
    **images,
    'tokens': array((batch_size, length), jnp.int32),
    **{
      name: array((batch_size, dims), jnp.float32)
      for teacher, dims in enumerate(teacher_dims)
      for name in teacher_arrays(teacher)
    },
  }


def held_bytes(program: TrainProgram, batch: Any) -> dict[str, int]:
  """Returns the bytes that a chip holds before the step starts, by kind."""
  state = program.state
  return {
    'parameters': _bytes_per_chip(state.params),
    'optimizer': _bytes_per_chip((state.step, state.opt_state)),
    'batch_statistics': _bytes_per_chip(state.batch_stats),
    'averaged_weights': _bytes_per_chip(state.ema),
    'momentum_teacher': _bytes_per_chip(state.teacher),
    'batch': _bytes_per_chip(batch),
  }


def _bytes_per_chip(tree: Any) -> int:
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def memory_of(analysis: Any, held: dict[str, int]) -> dict[str, int]:
  """Returns the bytes of a chip in a step, by kind; their sum is the peak.

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
  """Returns the bytes that a program would need, from libtpu's message.

  None is returned where the message is about something else.
  """
  if 'RESOURCE_EXHAUSTED' not in message:
    return None
  for pattern in (
    r'temporaries \(([\d.]+)([KMGT])\) exceeds available HBM',
    r'Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm',
  ):
    if match := re.search(pattern, message):
      unit = {'K': GIB >> 20, 'M': GIB >> 10, 'G': GIB, 'T': GIB << 10}[
        match[2]
      ]
      return int(float(match[1]) * unit)
  return None


def costs_of(
  text: str, topology: Topology, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
  """Returns what an optimized program costs each chip in a step."""
  devices = list(mesh.devices.flat)
  module = hlo.parse(text)
  done = list(operations(module))
  exchanges = collectives(module, len(devices), topology.slices)
  return {
    'flops_per_chip': sum(o.flops * o.times for o in done),
    'hbm_bytes_accessed_per_chip': sum(o.hbm_bytes * o.times for o in done),
    'kernels_without_costs': kernels_without_costs(module),
    'collectives': [
      {
        'op': exchange.op,
        'axes': axes_of(exchange.group, dict(mesh.shape)),
        'group_size': len(exchange.group),
        'bytes': exchange.bytes,
        'count': exchange.times,
        'overlapped': exchange.overlapped,
        'seconds': exchange.times
        * exchange_seconds(exchange, topology, devices),
      }
      for exchange in merged(exchanges)
    ],
    **dataclasses.asdict(estimate(done, exchanges, topology, devices)),
  }


def merged(exchanges: Sequence[Collective]) -> list[Collective]:
  """Counts equal exchanges together, and returns the largest first."""
  counts: dict[Collective, int] = {}
  for exchange in exchanges:
    key = dataclasses.replace(exchange, times=0)
    counts[key] = counts.get(key, 0) + exchange.times
  distinct = [dataclasses.replace(k, times=n) for k, n in counts.items()]
  return sorted(distinct, key=lambda e: e.bytes * e.times, reverse=True)
