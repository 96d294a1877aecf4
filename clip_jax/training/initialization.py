"""How a run begins: a config with nothing left open, and the first state.

Without `initialize_from` that is the config with its defaults, and random
weights. With it, inheritance.py completes the config from the trained model.
"""

import copy
import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from clip_jax.checkpoints.reading import read_description
from clip_jax.errors import UsageError
from clip_jax.models.positions import resize_model
from clip_jax.training.config import INHERITED, Config, Start, with_defaults
from clip_jax.training.saved_config import read_saved_config
from clip_jax.training.state import TrainState, sharded_init
from clip_jax.training.step import TrainProgram
from clip_jax.training.workdir import Workdir
from clip_jax.trees import first_difference, flat, path_name


def complete_config(
  config: Config,
  workdir: Workdir | None = None,
  stated: Collection[str] = (),
) -> Start:
  """Fills what a config leaves open, from `initialize_from` where it is given.

  Args:
    config: not changed.
    workdir: of the run. Its checkpoints, if any, describe how the run began:
      the model that it started from may be gone by then.
    stated: dotted names of the fields that the command line gives.
  Raises:
    UsageError: there is no model at `initialize_from`, or it contradicts the
      config.
    FailureError: there is one, and it cannot be read.
  """
  if not config.initialize_from:
    _check_without_model(config)
    return Start(with_defaults(config))
  from clip_jax.training.inheritance import inherit

  if workdir is not None:
    saved = read_saved_config(workdir) or {}
    if 'tokenizer' not in stated and saved.get('tokenizer') == INHERITED:
      config = copy.deepcopy(config)
      config.tokenizer = INHERITED  # even if the recipe's file exists by now
    own = read_description(workdir.name)
    if own is not None:
      return inherit(config, own, f'the run in {workdir.name}', stated)
  from clip_jax.inference.loading import read_model

  loaded = read_model(config.initialize_from, dtype=np.dtype(np.float32))
  name = f'initialize_from={config.initialize_from}'
  return inherit(config, loaded.description, name, stated, loaded)


def _check_without_model(config: Config) -> None:
  """Refuses fields that mean nothing without a model to start from."""
  for name, is_given in (
    ('initialize_new_vocabulary=True', config.initialize_new_vocabulary),
    (f'tokenizer={INHERITED}', config.tokenizer == INHERITED),
  ):
    if is_given:
      raise UsageError(
        f'{name} says how to start from a model: name that in initialize_from.'
      )


def initial_state(
  program: TrainProgram, seed: int, start: Start | None = None
) -> TrainState:
  """Returns the state before the first update.

  The optimizer starts anew in any case, and so does the schedule.

  Args:
    program: of the run.
    seed: of the random weights.
    start: its weights, if any, are used instead, the temperature too, resized
      to the program's model. They are removed from it, to free their memory.
  Raises:
    UsageError: the weights are not those of the program's model.
  """
  state = sharded_init(program.module, program.optimizer, program.mesh, seed)
  if start is None or start.weights is None:
    return state
  loaded, start.weights = start.weights, None
  model = program.module.config
  variables, _ = resize_model(
    loaded.variables,
    loaded.description.model,
    image_size=model.image.image_size,
    context_length=model.text.context_length,
    method=loaded.positions,
    text_method=start.config.initialize_text_positions,
  )
  params = flat(variables['params'])
  if model.initial_logit_bias is None:
    params.pop('logit_bias', None)
  arrays = {
    'params': {k: v for k, v in params.items() if k not in start.reinitialized},
    'batch_stats': flat(variables.get('batch_stats', {})),
  }
  _check_shapes(
    loaded.origin, arrays['params'], state.params, start.reinitialized
  )
  _check_shapes(loaded.origin, arrays['batch_stats'], state.batch_stats)
  return dataclasses.replace(
    state,
    params=_replace_leaves(arrays['params'], state.params),
    batch_stats=_replace_leaves(arrays['batch_stats'], state.batch_stats),
  )


def _check_shapes(
  origin: str,
  arrays: Mapping[str, Any],
  state: Any,
  reinitialized: Collection[str] = (),
) -> None:
  """Refuses arrays whose names or shapes differ from those of a state."""
  expected = {k: v for k, v in flat(state).items() if k not in reinitialized}
  differing = first_difference(arrays, expected)
  if differing is not None:
    path, old, new = differing
    raise UsageError(
      f'initialize_from={origin} is another model: its {path} is {old}, and '
      f'{new} in the config.'
    )


def _replace_leaves(arrays: Mapping[str, Any], state: Any) -> Any:
  """Replaces leaves of a state by arrays, in their dtypes and shardings.

  Leaves without an array are kept.
  """

  def replace(path, leaf):
    array = arrays.get(path_name(path))
    if array is None:
      return leaf
    return jax.make_array_from_callback(
      leaf.shape, leaf.sharding, lambda index: array[index].astype(leaf.dtype)
    )

  return jax.tree_util.tree_map_with_path(replace, state)
