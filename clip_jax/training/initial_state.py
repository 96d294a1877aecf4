"""The state before the first update: of new weights, or a trained model's."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax

from clip_jax.errors import UsageError
from clip_jax.models.positions import resize_model
from clip_jax.training.initialization import Start
from clip_jax.training.program import Program
from clip_jax.training.state import TrainState, sharded_init
from clip_jax.trees import first_difference, flat, path_name


def first_state(
  program: Program, seed: int, start: Start | None = None
) -> TrainState:
  """Returns the state before the first update.

  The optimizer starts anew in any case, and so does the schedule.

  Args:
    program: the run's.
    seed: of the initial weights.
    start: whose weights are taken instead, the temperature's too, at the sizes
      of the program's model; they are gone from it then.
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
    'params': {k: v for k, v in params.items() if k not in start.anew},
    'batch_stats': flat(variables.get('batch_stats', {})),
  }
  _check_shapes(loaded.origin, arrays['params'], state.params, start.anew)
  _check_shapes(loaded.origin, arrays['batch_stats'], state.batch_stats)
  return dataclasses.replace(
    state,
    params=_placed(arrays['params'], state.params),
    batch_stats=_placed(arrays['batch_stats'], state.batch_stats),
  )


def _check_shapes(
  origin: str,
  found: Mapping[str, Any],
  state: Any,
  anew: Collection[str] = (),
) -> None:
  """Refuses arrays of other names or shapes than a state has."""
  wanted = {k: v for k, v in flat(state).items() if k not in anew}
  differing = first_difference(found, wanted)
  if differing is not None:
    path, old, new = differing
    raise UsageError(
      f'initialize_from={origin} is another model: its {path} is {old}, and '
      f'{new} in the config.'
    )


def _placed(found: Mapping[str, Any], state: Any) -> Any:
  """Arrays in the dtypes of a state's, and where those are.

  A leaf of the state that none is found for stays.
  """

  def place(path, leaf):
    array = found.get(path_name(path))
    if array is None:
      return leaf
    return jax.make_array_from_callback(
      leaf.shape, leaf.sharding, lambda part: array[part].astype(leaf.dtype)
    )

  return jax.tree_util.tree_map_with_path(place, state)
