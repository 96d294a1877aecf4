"""The first state of a run that starts from a trained model's weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from clip_jax.errors import UsageError
from clip_jax.inference.loading import read_model
from clip_jax.models.config import CLIPConfig
from clip_jax.training.program import Program
from clip_jax.training.state import TrainState, sharded_init
from clip_jax.trees import flat, path_name

# What a run may change about a model that it goes on training.
_FREE = ('initial_logit_scale', 'initial_logit_bias')


def first_state(program: Program, seed: int, reference: str) -> TrainState:
  """The state before the first update.

  The optimizer starts anew in any case, and so does the schedule.

  Args:
    program: the run's.
    seed: of the initial weights.
    reference: `initialize_from`: a REF (see `inference.loading.load`) whose
      weights are taken instead, the temperature's too; '' is none. For another
      image size or context length, its positions are interpolated.
  Raises:
    UsageError: there is no model there, or it is not the run's.
    FailureError: there is one, and it cannot be read.
  """
  if not reference:
    return _random(program, seed)
  model = program.module.config
  loaded = read_model(
    reference,
    image_size=model.image.image_size,
    context_length=model.text.context_length,
    dtype=np.dtype(np.float32),
  )
  _check_model(reference, loaded.description.model, model)
  variables = loaded.variables
  params, batch_stats = variables['params'], variables.get('batch_stats', {})
  _check_shapes(reference, params, program.state.params)
  _check_shapes(reference, batch_stats, program.state.batch_stats)
  state = _random(program, seed)
  return dataclasses.replace(
    state,
    params=_placed(params, state.params),
    batch_stats=_placed(batch_stats, state.batch_stats),
  )


def _random(program: Program, seed: int) -> TrainState:
  return sharded_init(program.module, program.optimizer, program.mesh, seed)


def _check_model(reference: str, found: CLIPConfig, wanted: CLIPConfig) -> None:
  """Refuses a model that would compute something else with these weights."""
  old, new = _fields(found), _fields(wanted)
  for name in sorted(old.keys() | new.keys()):
    if old.get(name) != new.get(name):
      raise UsageError(
        f'initialize_from={reference} is another model: its {name} is '
        f'{old.get(name)}, and model.{name} of the config is {new.get(name)}.'
      )


def _fields(model: CLIPConfig) -> dict[str, Any]:
  """By dotted names, without those that a run may change."""
  fields: dict[str, Any] = {}
  for name, value in dataclasses.asdict(model).items():
    if isinstance(value, Mapping):
      fields.update({f'{name}.{key}': item for key, item in value.items()})
    elif name not in _FREE:
      fields[name] = value
  return fields


def _check_shapes(reference: str, arrays: Any, state: Any) -> None:
  """Refuses arrays of other names or shapes than a state has."""
  found, wanted = flat(arrays), flat(state)
  for path in sorted(found.keys() | wanted.keys()):
    old, new = (
      list(tree[path].shape) if path in tree else 'not there'
      for tree in (found, wanted)
    )
    if old != new:
      raise UsageError(
        f'initialize_from={reference} is another model: its {path} is {old}, '
        f'and {new} in the config.'
      )


def _placed(arrays: Any, state: Any) -> Any:
  """Arrays in the dtypes of a state's, and where those are."""
  found = flat(arrays)

  def place(path, leaf):
    array = found[path_name(path)]
    return jax.make_array_from_callback(
      leaf.shape, leaf.sharding, lambda part: array[part].astype(leaf.dtype)
    )

  return jax.tree_util.tree_map_with_path(place, state)
