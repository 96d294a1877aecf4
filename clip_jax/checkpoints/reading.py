"""Reads checkpoints for inference, and what describes them."""

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from orbax.checkpoint import type_handlers

from clip_jax.errors import FailureError, UsageError, print_warnings
from clip_jax.files import check_folder
from clip_jax.models.counting import TRAINING_ONLY, check_variables
from clip_jax.models.description import Description
from clip_jax.trees import flat, nested, path_name

# Files of a checkpoint that are read as a whole, by the end of their name.
TEXT_FILES = (
  *('metadata', '_METADATA', '_sharding', '.zarray', '.json'),
  'manifest.ocdbt',
)


def steps_of(workdir: str | os.PathLike) -> list[int]:
  """Returns the steps of a run's whole checkpoints, newest first."""
  root = epath.Path(workdir) / 'checkpoints'
  if not root.is_dir():
    return []
  names = (path.name for path in root.iterdir() if path.is_dir())
  return sorted((int(name) for name in names if is_step(name)), reverse=True)


def read_description(workdir: str | os.PathLike) -> Description | None:
  """Returns the newest readable description of a run's checkpoints."""
  silence_orbax()
  root = epath.Path(workdir) / 'checkpoints'
  for step in steps_of(workdir):
    try:
      return _read_item_description(root / str(step))
    except Exception:  # `Checkpoints.restore` reports damage
      continue
  return None


def absolute(path: Any) -> epath.Path:
  """Returns a path from the root; a URL stays as it is.

  epath's own `absolute` takes gs://BUCKET for a folder of the current one.
  """
  path = epath.Path(path)
  return path if '://' in os.fspath(path) else path.absolute()


def is_step(name: str) -> bool:
  """Returns whether a folder's name is a step in ASCII digits ('²' is none)."""
  return name.isascii() and name.isdigit()


def load_variables(
  reference: str | os.PathLike, *, averaged: bool = True
) -> tuple[dict[str, Any], Description, int]:
  """Reads the variables of a checkpoint, without the optimizer's state.

  Args:
    reference: a run's workdir (its newest readable checkpoint), or one
      checkpoint's directory; also in an object store, as gs://BUCKET/RUN.
    averaged: weights are their moving averages, where the run keeps these
      (`optimizer.ema_decay`).
  Returns:
    Collections by name ('params', and a ResNet's 'batch_stats') of numpy
    arrays, their description, and their step.
  Raises:
    UsageError: there is no checkpoint at `reference`.
    FailureError: there are, and none can be read.
  """
  silence_orbax()
  directories = list(_candidates(epath.Path(reference)))
  if not directories:
    raise UsageError(
      f'no checkpoint in {reference}: expected the workdir of a run, or one '
      'of its checkpoints/STEP.'
    )
  for directory in directories:
    try:
      return (*_read(directory, averaged), int(directory.name))
    except Exception as error:
      report_damage(directory, error)
  raise FailureError(f'no checkpoint in {reference} can be read.')


def _candidates(reference: epath.Path) -> Iterator[epath.Path]:
  if is_step(reference.name) and (reference / 'params').is_dir():
    yield reference
  for step in steps_of(reference):
    yield reference / 'checkpoints' / str(step)


def _read(
  directory: epath.Path, averaged: bool
) -> tuple[dict[str, Any], Description]:
  """Reads variables as numpy arrays, wherever the run's devices were."""
  check_folder(directory, TEXT_FILES)
  path = absolute(directory)
  averages = {}
  if averaged and (path / 'ema').exists():
    averages = flat(restore_numpy(path / 'ema', _is_training_only))
  params = flat(
    restore_numpy(
      path / 'params',
      lambda name: name in averages or _is_training_only(name),
    )
  )
  variables = {'params': nested(params | averages)}
  if (path / 'batch_stats').exists():
    variables['batch_stats'] = restore_numpy(path / 'batch_stats')
  description = _read_item_description(path)
  check_variables(description.model, flat(variables), str(directory))
  return variables, description


def _is_training_only(name: str) -> bool:
  return name.startswith(f'{TRAINING_ONLY}/')


def _read_item_description(path: epath.Path) -> Description:
  with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
    return Description.from_dict(reader.restore(path / 'description'))


def restore_numpy(
  path: epath.Path, without: Callable[[str], bool] = lambda name: False
) -> Any:
  """Reads one item of a checkpoint in little more memory than it takes.

  Orbax would read a tree at once, into memory that a device then copies. Here
  TensorStore, in which Orbax keeps arrays, writes each to where it stays.

  Args:
    path: of the item's directory.
    without: whether the array at a path is not read; there is None in its
      place.
  Returns:
    A tree of numpy arrays, which a CPU device takes without a copy.
  Raises:
    Exception: whatever Orbax and TensorStore raise on a damaged one.
  """
  with ocp.PyTreeCheckpointer() as reader:
    tree = reader.metadata(path).item_metadata.tree
  named, structure = jax.tree_util.tree_flatten_with_path(tree)
  leaves = [leaf for _, leaf in named]
  is_read = [not without(path_name(name)) for name, _ in named]
  context = type_handlers.get_ts_context(use_ocdbt=True)
  arrays: list[Any] = [None] * len(leaves)
  # The largest first: while it is decoded, most of the memory is still free.
  for i in sorted(range(len(leaves)), key=lambda i: -np.prod(leaves[i].shape)):
    if is_read[i]:
      arrays[i] = _read_array(path, leaves[i].name, context)
  return jax.tree.unflatten(structure, arrays)


def _read_array(path: epath.Path, name: str, context: ts.Context) -> np.ndarray:
  from clip_jax.interop.tensor_file import empty_aligned

  info = type_handlers.ParamInfo(name=name, parent_dir=path, use_zarr3=False)
  spec = type_handlers.get_json_tspec_read(info, use_ocdbt=True)
  store = ts.open(spec, open=True, read=True, context=context).result()
  array = empty_aligned(tuple(store.shape), store.dtype.numpy_dtype)
  ts.array(array).write(store).result()
  return array


def silence_orbax() -> None:
  """Silences Orbax's log, which repeats what it raises."""
  logging.getLogger('absl').setLevel(logging.CRITICAL)


def report_damage(directory: Any, error: Exception) -> None:
  """Warns on stderr of a checkpoint that cannot be read."""
  reason = ' '.join(str(error).split())[:200]
  print_warnings(
    [
      f'checkpoint {directory} cannot be read ({type(error).__name__}: '
      f'{reason}); trying the one before.'
    ]
  )
