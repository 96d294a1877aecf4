"""Writes the checkpoints of a run while it trains, and restores its state."""

import dataclasses
import errno
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from clip_jax.checkpoints.reading import (
  TEXT_FILES,
  absolute,
  report_damage,
  silence_orbax,
)
from clip_jax.errors import FailureError, UsageError
from clip_jax.files import check_folder
from clip_jax.models.description import Description
from clip_jax.parallel import distributed

_TREES = ('params', 'opt_state', 'batch_stats', 'ema', 'teacher')
_ITEMS = (*_TREES, 'description', 'position')

_CHUNK = 4 * 2**20  # bytes

# The last part of the names of metrics whose lowest value is the best.
_LOWER_IS_BETTER = ('loss', 'ece', 'largest_difference')
# Errors of reading that are not the fault of a file.
_SYSTEM_ERRORS = {
  *(errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE),
  *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOTCONN),
  *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
}
# TensorStore raises a ValueError that begins with one of these; a missing file
# is NOT_FOUND, and a corrupt one INVALID_ARGUMENT or DATA_LOSS.
_STORE_ERROR = re.compile(
  '(UNAVAILABLE|UNAUTHENTICATED|PERMISSION_DENIED|DEADLINE_EXCEEDED|'
  'RESOURCE_EXHAUSTED|ABORTED|CANCELLED|UNKNOWN): '
)


@dataclasses.dataclass(frozen=True)
class Restored:
  """The arrays and the step of a restored checkpoint."""

  params: Any
  opt_state: Any
  batch_stats: Any
  ema: Any
  teacher: Any
  step: int


class Checkpoints:
  """The checkpoints of one run, for its training loop.

  Args:
    workdir: the run directory; `checkpoints/` is made in it.
    keep: how many of the newest stay.
    best_metric: a name such as 'eval/zero_shot/top1'; the checkpoint with its
      highest value (of `_LOWER_IS_BETTER`, its lowest) stays too. Empty: none.
  """

  def __init__(self, workdir: str | Path, *, keep: int, best_metric: str = ''):
    silence_orbax()
    self._root = epath.Path(workdir) / 'checkpoints'
    self._best_metric = best_metric
    self._host_copy = HostCopy()
    policies = ocp.checkpoint_managers.preservation_policy
    sign = -1 if best_metric.rpartition('/')[2] in _LOWER_IS_BETTER else 1

    def score(metrics: Mapping[str, float]) -> float:
      if best_metric not in metrics:  # the run had another one before
        return -math.inf
      return sign * metrics[best_metric]

    kept: list[Any] = [policies.LatestN(keep)]
    if best_metric:
      kept.append(
        policies.BestN(
          get_metric_fn=score,
          n=1,
          keep_checkpoints_without_metrics=False,
        )
      )
    self._manager = ocp.CheckpointManager(
      absolute(self._root),
      item_names=_ITEMS,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept),
        # Orbax writes metrics to the disk only where it is told of a best.
        best_fn=score if best_metric else None,
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(barrier_sync_fn=_barrier),
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
      metrics: measured at this step; the best one is kept by them. None where
        it was not evaluated.
    Raises:
      UsageError: `best_metric` is not among them; the step is saved.
      FailureError: this save, or the one before it, could not be written.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    self._check_space(state)
    kept = metrics if metrics and self._best_metric in metrics else {}
    self.wait()
    arrays = self._host_copy.copy(_arrays(state))
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          **{k: _save_in_chunks(tree) for k, tree in arrays.items()},
          description=ocp.args.JsonSave(description.to_dict()),
          position=ocp.args.JsonSave({'step': step, 'seed': seed}),
        ),
        metrics=dict(kept) or None,
      )
    except Exception as error:
      self._raise_failure(error)
      raise
    if metrics is not None and self._best_metric and not kept:
      self.wait()
      names = [name for name in metrics if not name.endswith('_chance')]
      raise UsageError(
        f'checkpoint.best_metric={self._best_metric!r} is not among the '
        f'metrics of step {step:,}, which is saved: use one of '
        f'{", ".join([*names, repr("")])} (none).'
      )

  @property
  def is_saving(self) -> bool:
    """True while a checkpoint is being written."""
    return self._manager.is_saving_in_progress()

  def wait(self) -> None:
    """Waits until all that was saved is on the disk.

    Raises:
      FailureError: it could not be written.
    """
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      self._raise_failure(error)
      raise

  def latest(self) -> int | None:
    """Returns the step of the newest whole checkpoint, or None."""
    self.wait()
    return self._manager.latest_step()

  def restore(
    self,
    abstract: Any,
    description: Description,
    *,
    seed: int,
  ) -> Restored | None:
    """Restores the newest readable checkpoint; returns None if there is none.

    A damaged one is reported on stderr. Once an older one was read, it is moved
    to `STEP.damaged`, so that the run can write that step again. One that the
    system or the network keeps from being read is not damaged.

    Args:
      abstract: a `TrainState` of shapes, dtypes and shardings.
      description, seed: of the run that resumes.
    Raises:
      UsageError: the checkpoint has another description or seed.
      FailureError: there are checkpoints, and none can be read, or one cannot
        be read now.
    """
    damaged = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      arrays = None
      for is_last in (False, True):  # the cause may pass in a moment
        arrays = self._restore_step(step, abstract, description, seed, is_last)
        # If one process cannot read its shards, no process resumes from this
        # step.
        if distributed.all_processes_agree(arrays is not None):
          break
      else:
        damaged.append(step)
        continue
      if not arrays:
        raise UsageError(
          f'{self._root / str(step)} was written with another model, '
          'tokenizer, preprocessing or seed than the config gives now (is the '
          "tokenizer's file another one?): restore that, or use another "
          '--workdir.'
        )
      for other in damaged:
        self._set_aside(other)
      return Restored(
        arrays['params'],
        arrays['opt_state'],
        arrays.get('batch_stats', {}),
        arrays.get('ema', {}),
        arrays.get('teacher', {}),
        step,
      )
    if damaged:
      raise FailureError(
        f'none of the {len(damaged)} checkpoints in {self._root} can be read; '
        'they are left as they are: restore one, or use another --workdir.'
      )
    return None

  def _restore_step(
    self,
    step: int,
    abstract: Any,
    description: Description,
    seed: int,
    is_last: bool,
  ) -> dict[str, Any] | None:
    """Returns the arrays by item; None if damaged, {} if of another run.

    Args:
      step, abstract, description, seed: as in `restore`.
      is_last: there is no other attempt, and errors are told.
    """
    try:
      check_folder(self._root / str(step), TEXT_FILES)
      metadata = self._manager.restore(
        step,
        args=ocp.args.Composite(
          description=ocp.args.JsonRestore(), position=ocp.args.JsonRestore()
        ),
      )
      if (
        Description.from_dict(metadata['description']) != description
        or metadata['position']['seed'] != seed
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
    except (MemoryError, jax.errors.JaxRuntimeError):
      raise  # these are not the fault of the checkpoint
    except Exception as error:  # a damaged file may raise anything
      _wait_if_peer_lost(error)
      if is_last:
        directory = self._root / str(step)
        if _is_of_system(error):
          reason = ' '.join(str(error).split())[:300].rstrip('.')
          raise FailureError(
            f'checkpoint {directory} cannot be read now, and is left as it is: '
            f'{reason}. Mend that and run the same command again.'
          ) from error
        report_damage(directory, error)
      return None

  def close(self) -> None:
    """Waits for the last write, and ends the writing threads."""
    self.wait()
    self._manager.close()

  def _check_space(self, state: Any) -> None:
    """Refuses to write to a local disk that has too little space."""
    if not os.path.isdir(self._root):  # gs:// and the like
      return
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(_arrays(state)))
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

  def _raise_failure(self, error: Exception) -> None:
    """Raises a FailureError, unless other processes or the devices failed."""
    _wait_if_peer_lost(error)
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


def _is_of_system(error: BaseException | None) -> bool:
  """Returns whether the system or the network failed, and not a file."""
  while error is not None:
    if isinstance(error, ConnectionError | TimeoutError):
      return True
    if isinstance(error, OSError) and error.errno in _SYSTEM_ERRORS:
      return True
    if _STORE_ERROR.match(str(error)):
      return True
    error = error.__cause__ or error.__context__
  return False


def _arrays(state: Any) -> dict[str, Any]:
  """Returns the items of a state that hold arrays, by name."""
  trees = {name: getattr(state, name) for name in _TREES}
  return {name: tree for name, tree in trees.items() if tree}


def _save_in_chunks(tree: Any) -> ocp.args.StandardSave:
  """Saves large arrays in chunks, of which a reader decodes few at a time."""
  chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK), tree)
  return ocp.args.StandardSave(tree, save_args=chunks)


def _wait_if_peer_lost(error: Exception) -> None:
  """Does not return where the error comes of another process that was lost."""
  from clip_jax.parallel import peer_failures

  peer_failures.wait_if_peer_lost(error)


def _barrier(*, key: str, timeout_ms: int) -> None:
  """Waits for all processes as Orbax does, except after an error.

  Orbax's thread would wait with its error, for minutes, for processes that wait
  for what failed.
  """
  if sys.exc_info()[1] is None:
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


class HostCopy:
  """Copies trees of the same shapes repeatedly into the same memory.

  From an accelerator Orbax copies arrays to the host. Arrays on a CPU it reads
  where they are, and a step that is to update memory that is being read has to
  allocate new memory instead: gigabytes of fresh pages, which cost many times
  what copying into known ones does.
  """

  def __init__(self) -> None:
    self._copy: Any = None

  def copy(self, tree: Any) -> Any:
    """Returns a finished copy of the tree; off CPUs, the tree itself.

    The previous copy is consumed. Should it still be read, JAX allocates new
    memory.
    """
    if not all(_on_cpu(leaf) for leaf in jax.tree.leaves(tree)):
      return tree
    before, self._copy = self._copy, None
    copy = _copy(tree) if before is None else _copy_into(before, tree)
    self._copy = jax.block_until_ready(copy)
    return self._copy


def _on_cpu(leaf: jax.Array) -> bool:
  return all(device.platform == 'cpu' for device in leaf.devices())


@jax.jit
def _copy(tree: Any) -> Any:
  return jax.tree.map(jnp.copy, tree)


@jax.jit(donate_argnums=0, keep_unused=True)
def _copy_into(memory: Any, tree: Any) -> Any:
  del memory  # JAX gives it to the result
  return jax.tree.map(jnp.copy, tree)
