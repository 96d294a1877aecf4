"""Checkpoints: a training state and what its arrays mean, kept by Orbax.

    WORKDIR/checkpoints/STEP/
      params, opt_state   arrays; of a ResNet, batch_stats too
      description         JSON: model, tokenizer, preprocessing
      position            JSON: step, and the seed that orders the data

A checkpoint is written under a temporary name in the background and renamed
when it is whole, so that a run can be killed at any moment. The description
travels with the arrays: no flag can read them with another activation,
tokenizer or image size.
"""

import dataclasses
import errno
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from clip_jax.checkpoint_arrays import HostCopy, restore_numpy
from clip_jax.errors import FailureError, UsageError, print_warnings
from clip_jax.files import check_folder
from clip_jax.models.counting import check_variables
from clip_jax.models.description import Description
from clip_jax.parallel import distributed, peer_failures
from clip_jax.trees import flat

_TREES = ('params', 'opt_state', 'batch_stats')
_ITEMS = (*_TREES, 'description', 'position')

# Files of a checkpoint that are read as a whole.
_DESCRIBED_IN = (
  *('metadata', '_METADATA', '_sharding', '.zarray', '.json'),
  'manifest.ocdbt',
)

_CHUNK = 4 * 2**20  # bytes


@dataclasses.dataclass(frozen=True)
class Restored:
  """What `Checkpoints.restore` found."""

  params: Any
  opt_state: Any
  batch_stats: Any
  step: int


class Checkpoints:
  """The checkpoints of one run, for its training loop.

  Args:
    workdir: the run directory; `checkpoints/` is made in it.
    keep: how many of the newest stay.
    best_metric: a name such as 'eval/zero_shot/top1'; the checkpoint with its
      highest value (of a loss, its lowest) stays too. Empty: none.
  """

  def __init__(self, workdir: str | Path, *, keep: int, best_metric: str = ''):
    _quiet()
    self._root = epath.Path(workdir) / 'checkpoints'
    self._best_metric = best_metric
    self._copy = HostCopy()
    policies = ocp.checkpoint_managers.preservation_policy
    sign = -1 if best_metric.endswith('/loss') else 1

    def goodness(metrics: Mapping[str, float]) -> float:
      return sign * metrics[best_metric]

    kept: list[Any] = [policies.LatestN(keep)]
    if best_metric:
      kept.append(
        policies.BestN(
          get_metric_fn=goodness,
          n=1,
          keep_checkpoints_without_metrics=False,
        )
      )
    self._manager = ocp.CheckpointManager(
      self._root.absolute(),
      item_names=_ITEMS,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept),
        # Orbax writes metrics to the disk only where it is told of a best.
        best_fn=goodness if best_metric else None,
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(barrier_sync_fn=_meet),
      ),
    )

  def save(
    self,
    state: Any,
    description: Description,
    *,
    seed: int,
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Copies the state from the devices and writes it in the background.

    Args:
      state: a `TrainState`; its step names the checkpoint.
      description: of the model.
      seed: the run's; with the step, the position in the data.
      metrics: measured at this step; the best one is kept by them.
    Raises:
      FailureError: this save, or the one before it, could not be written.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    self._check_space(state)
    metrics = dict(metrics or {})
    if self._best_metric not in metrics:
      metrics = {}
    self.wait()
    arrays = self._copy.of(_arrays(state))
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          **{k: _in_chunks(tree) for k, tree in arrays.items()},
          description=ocp.args.JsonSave(description.to_dict()),
          position=ocp.args.JsonSave({'step': step, 'seed': seed}),
        ),
        metrics=metrics or None,
      )
    except Exception as error:
      self._blame(error)
      raise

  @property
  def is_saving(self) -> bool:
    """Whether something is still being written."""
    return self._manager.is_saving_in_progress()

  def wait(self) -> None:
    """Returns once all that was saved is on the disk.

    Raises:
      FailureError: it could not be written.
    """
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      self._blame(error)
      raise

  def latest(self) -> int | None:
    """The step of the newest checkpoint that is whole, or None."""
    self.wait()
    return self._manager.latest_step()

  def restore(
    self,
    abstract: Any,
    description: Description,
    *,
    seed: int,
  ) -> Restored | None:
    """The newest checkpoint that can be read, or None where there is none.

    A damaged one is reported on stderr. Once an older one was read, it is set
    aside as `STEP.damaged`, so that the run can write that step again.

    Args:
      abstract: a `TrainState` of shapes, dtypes and shardings.
      description, seed: what the run that goes on has.
    Raises:
      UsageError: the checkpoint has another description or seed.
      FailureError: there are checkpoints, and none can be read.
    """
    damaged = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      found = self._try(step, abstract, description, seed)
      # Where one process cannot read its part, none goes on from it.
      if not distributed.all_processes_agree(found is not None):
        damaged.append(step)
        continue
      if not found:
        raise UsageError(
          f'{self._root / str(step)} was written with another model, '
          'tokenizer, preprocessing or seed than the config gives now (is the '
          "tokenizer's file another one?): restore that, or use another "
          '--workdir.'
        )
      for other in damaged:
        self._set_aside(other)
      return Restored(
        found['params'],
        found['opt_state'],
        found.get('batch_stats', {}),
        step,
      )
    if damaged:
      raise FailureError(
        f'none of the {len(damaged)} checkpoints in {self._root} can be read; '
        'they are left as they are: restore one, or use another --workdir.'
      )
    return None

  def _try(
    self, step: int, abstract: Any, description: Description, seed: int
  ) -> dict[str, Any] | None:
    """The arrays of a step by item; None: damaged; {}: another run's."""
    try:
      check_folder(self._root / str(step), _DESCRIBED_IN)
      found = self._manager.restore(
        step,
        args=ocp.args.Composite(
          description=ocp.args.JsonRestore(), position=ocp.args.JsonRestore()
        ),
      )
      if (
        Description.from_dict(found['description']) != description
        or found['position']['seed'] != seed
      ):
        return {}
      arrays = self._manager.restore(
        step,
        args=ocp.args.Composite(
          **{
            name: ocp.args.StandardRestore(tree)
            for name, tree in _arrays(abstract).items()
          }
        ),
      )
      return {name: arrays[name] for name in _arrays(abstract)}
    except (PermissionError, MemoryError, jax.errors.JaxRuntimeError):
      raise  # not the checkpoint's fault
    except Exception as error:  # whatever a damaged file makes a reader do
      peer_failures.wait_if_peer_lost(error)
      _report_damage(self._root / str(step), error)
      return None

  def close(self) -> None:
    """Waits for the last write, and ends the writing threads."""
    self.wait()
    self._manager.close()

  def _check_space(self, state: Any) -> None:
    """Refuses before anything is written, where the disk's space is known."""
    if not os.path.isdir(self._root):  # gs:// and the like
      return
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(self._root).free
    if free < needed:
      raise self._failure(
        OSError(
          errno.ENOSPC,
          f'No space left: {free:,} bytes are free, {needed:,} are needed',
        )
      )

  def _set_aside(self, step: int) -> None:
    if distributed.is_first_process():
      damaged = self._root / f'{step}.damaged'
      if damaged.exists():
        damaged.rmtree()
      (self._root / str(step)).rename(damaged)
    distributed.barrier(f'checkpoint {step} set aside')
    self._manager.reload()

  def _blame(self, error: Exception) -> None:
    """Blames the disk for an error, unless others or the devices are at fault.

    Raises:
      FailureError: it was the disk.
    """
    peer_failures.wait_if_peer_lost(error)
    if not isinstance(error, jax.errors.JaxRuntimeError):
      raise self._failure(error) from error

  def _failure(self, error: Exception) -> FailureError:
    text = ' '.join(str(error).split())
    full = 'No space left' in text or 'RESOURCE_EXHAUSTED' in text
    why = 'the disk is full' if full else text[:300]
    self._manager.reload()
    latest = self._manager.latest_step()
    start = 'the start' if latest is None else f'step {latest}'
    return FailureError(
      f'a checkpoint could not be written to {self._root}: {why}. '
      f'Mend that and run the same command again: it goes on from {start}.'
    )


def steps_of(workdir: str | Path) -> list[int]:
  """The steps of a run's whole checkpoints, newest first."""
  root = epath.Path(workdir) / 'checkpoints'
  if not root.is_dir():
    return []
  names = (path.name for path in root.iterdir() if path.is_dir())
  return sorted((int(name) for name in names if is_step(name)), reverse=True)


def read_description(workdir: str | Path) -> Description | None:
  """The description of a run's newest checkpoint that has a readable one."""
  _quiet()
  root = epath.Path(workdir) / 'checkpoints'
  for step in steps_of(workdir):
    try:
      return _description(root / str(step))
    except Exception:  # `restore` says which are damaged
      continue
  return None


def is_step(name: str) -> bool:
  """Whether a folder's name is a step in ASCII digits ('²' is none)."""
  return name.isascii() and name.isdigit()


def load_variables(
  reference: str | Path,
) -> tuple[dict[str, Any], Description, int]:
  """Variables without the optimizer's, as they are wanted for inference.

  Args:
    reference: a run's workdir (its newest readable checkpoint), or one
      checkpoint's directory.
  Returns:
    Collections by name ('params', and a ResNet's 'batch_stats') of numpy
    arrays, their description, and their step.
  Raises:
    UsageError: there is no checkpoint at `reference`.
    FailureError: there are, and none can be read.
  """
  _quiet()
  directories = list(_candidates(Path(reference)))
  if not directories:
    raise UsageError(
      f'no checkpoint in {reference}: expected the workdir of a run, or one '
      'of its checkpoints/STEP.'
    )
  for directory in directories:
    try:
      return (*_read(directory), int(directory.name))
    except Exception as error:
      _report_damage(directory, error)
  raise FailureError(f'no checkpoint in {reference} can be read.')


def _candidates(reference: Path) -> Iterator[Path]:
  if is_step(reference.name) and (reference / 'params').is_dir():
    yield reference
  for step in steps_of(reference):
    yield reference / 'checkpoints' / str(step)


def _read(directory: Path) -> tuple[dict[str, Any], Description]:
  """Variables as numpy, wherever the run's devices were."""
  check_folder(directory, _DESCRIBED_IN)
  path = epath.Path(directory).absolute()
  variables = {
    name: restore_numpy(path / name)
    for name in ('params', 'batch_stats')
    if name == 'params' or (path / name).exists()
  }
  description = _description(path)
  check_variables(description.model, flat(variables), str(directory))
  return variables, description


def _description(path: epath.Path) -> Description:
  with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
    return Description.from_dict(reader.restore(path / 'description'))


def _arrays(state: Any) -> dict[str, Any]:
  """The items of a state that hold arrays; only a ResNet has 'batch_stats'."""
  trees = {name: getattr(state, name) for name in _TREES}
  return {name: tree for name, tree in trees.items() if tree}


def _in_chunks(tree: Any) -> ocp.args.StandardSave:
  """Large arrays in pieces: reading one decodes few of them at a time."""
  pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK), tree)
  return ocp.args.StandardSave(tree, save_args=pieces)


def _meet(*, key: str, timeout_ms: int) -> None:
  """Waits for all processes as Orbax does; one that has failed does not.

  Orbax's thread would wait with its error, for minutes, for others that wait
  for what failed.
  """
  if sys.exc_info()[1] is None:
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _quiet() -> None:
  """Orbax logs what it raises as well; one of the two is enough."""
  logging.getLogger('absl').setLevel(logging.CRITICAL)


def _report_damage(directory: Any, error: Exception) -> None:
  reason = ' '.join(str(error).split())[:200]
  print_warnings(
    [
      f'checkpoint {directory} cannot be read ({type(error).__name__}: '
      f'{reason}); trying the one before.'
    ]
  )
