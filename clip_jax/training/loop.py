"""The training loop: batches in; metrics, checkpoints and evaluations out."""

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from clip_jax.checkpoints.manager import Checkpoints
from clip_jax.errors import FailureError, UsageError
from clip_jax.parallel import distributed
from clip_jax.training.config import Config, Start, has_text_features
from clip_jax.training.metrics import evaluation_metrics, is_evaluated
from clip_jax.training.monitor import RunMonitor
from clip_jax.training.prefetch import Prefetcher
from clip_jax.training.profile import Profile
from clip_jax.training.run import (
  Run,
  complete_config,
  initial_state,
  prepare_run,
)
from clip_jax.training.run_summary import describe_raised_total, introduce_run
from clip_jax.training.saved_config import check_saved_config, claim_workdir
from clip_jax.training.state import TrainState
from clip_jax.training.stop_signal import StopSignal
from clip_jax.training.watchdog import Watchdog
from clip_jax.training.workdir import REPORT, Workdir, open_workdir
from clip_jax.training.writers import FinishedRun, Outputs, default_outputs

if TYPE_CHECKING:
  from clip_jax.evaluation import Evaluation


@dataclasses.dataclass(frozen=True)
class TrainingOutcome:
  """The outcome of a call of `train`.

  Attributes:
    step: updates done.
    finished: False where the run was asked to stop, and has saved.
    metrics: of the last evaluation.
    report: the path of the page, where the run has finished.
  """

  step: int
  finished: bool
  metrics: Mapping[str, float]
  report: str | None


def train(
  config: Config,
  workdir: str | Path,
  outputs: Outputs | None = None,
  profile: Profile | None = None,
  stated: Collection[str] = (),
) -> TrainingOutcome:
  """Trains a model, or resumes from the newest checkpoint of the workdir.

  The parameters after the last step are the same bits whether the run was
  interrupted or not: a step is a function of the state and of the records that
  (seed, step) name. In a run of several processes each calls this, with the
  same arguments.

  Args:
    config: the fields of configs/base.py.
    workdir: the run directory (training/README.md), also in an object store.
    outputs: what writes the numbers and the report; see `default_outputs`.
    profile: the steps to trace.
    stated: dotted names of the fields that the command line gives: a recipe
      gives way to the weights of `initialize_from`, these do not.
  Raises:
    UsageError: the config is impossible, or the workdir is another run's.
    FailureError: too many corrupt records or skipped steps, a full disk, no
      readable checkpoint.
  """
  outputs = outputs or default_outputs()
  profile = profile or Profile(0, 0)
  profile.check(config.total_steps)
  with open_workdir(workdir) as directory:
    start = complete_config(config, directory, stated)
    total_before = check_saved_config(directory, start.config)
    run = prepare_run(start.config, start.inherited)
    with claim_workdir(directory, run.config), StopSignal() as stop:
      return _train(run, start, directory, total_before, stop, outputs, profile)


def _train(
  run: Run,
  start: Start,
  workdir: Workdir,
  total_before: int | None,
  stop: StopSignal,
  outputs: Outputs,
  profile: Profile,
) -> TrainingOutcome:
  config = run.config
  checkpoints = Checkpoints(
    workdir.name,
    keep=config.checkpoint.keep,
    best_metric=config.checkpoint.best_metric,
  )
  for note in start.notes:
    _print(note)
  state = _restore(run, checkpoints)
  if state is None:
    state = initial_state(run.program, config.seed, start)
  first = int(state.step)
  if total_before is not None:
    rates = config.optimizer.to_dict()
    _print(
      describe_raised_total(rates, total_before, config.total_steps, first)
    )
  if first < config.total_steps and distributed.is_first_process():
    introduce_run(run, workdir, first)
    profile.warn_if_passed(first)
  try:
    state, evaluations = _run_steps(
      run, state, workdir, checkpoints, stop, outputs, profile
    )
  except (FailureError, UsageError):
    checkpoints.wait()  # what was saved before is worth keeping
    raise
  checkpoints.close()
  step, metrics = int(state.step), evaluation_metrics(evaluations)
  if step < config.total_steps:
    _print(f'{stop.name}: saved step {step:,} in {workdir.name}')
    return TrainingOutcome(step, False, metrics, None)
  unchanged = step == first and not evaluations
  if unchanged and distributed.all_processes_agree(workdir.has(REPORT)):
    _print(f'{workdir.name} is trained already; nothing to do.')
  elif outputs.report is not None:
    from clip_jax.training.evaluations import model_of

    _print('writing the report')
    outputs.report(
      FinishedRun(
        workdir.folder,
        workdir.name,
        config,
        model_of(run, state),
        run.evaluation_source if has_text_features(config) else None,
        evaluations,
      )
    )
  return TrainingOutcome(step, True, metrics, workdir.path(REPORT))


def _restore(run: Run, checkpoints: Checkpoints) -> TrainState | None:
  """Returns the state of the newest checkpoint, or None where none is."""
  restored = checkpoints.restore(
    run.program.state, run.description, seed=run.config.seed
  )
  if restored is None:
    return None
  if restored.step > run.config.total_steps:  # its config.json is gone
    raise UsageError(
      f'the workdir has a checkpoint of step {restored.step:,}, beyond '
      f'total_steps={run.config.total_steps:,}: raise it, or use another '
      '--workdir.'
    )
  step = jax.make_array_from_callback(
    (),
    run.program.state.step.sharding,
    lambda _: np.asarray(restored.step, np.int32),
  )
  return TrainState(
    step,
    restored.params,
    restored.opt_state,
    restored.batch_stats,
    restored.ema,
    restored.teacher,
  )


def _run_steps(
  run: Run,
  state: TrainState,
  workdir: Workdir,
  checkpoints: Checkpoints,
  stop: StopSignal,
  outputs: Outputs,
  profile: Profile,
) -> tuple[TrainState, Mapping[str, 'Evaluation']]:
  """Trains until the last step or a signal.

  Returns:
    The last state, and the last evaluation.
  """
  config = run.config
  first, total = int(state.step), config.total_steps
  evaluations: Mapping[str, Evaluation] = {}
  with (
    contextlib.closing(run.batches(first)) as batches,
    RunMonitor(
      run, workdir.folder, first, batches, outputs.writers, checkpoints.latest
    ) as monitor,
    Watchdog(config.stall_seconds) as watchdog,
    profile,
  ):
    prefetcher = Prefetcher(
      itertools.islice(monitor.checked_batches(), total - first),
      run.program.mesh,
      config.data.batch_size,
      monitor.step_finished,
      watchdog,
      f'input (data.train={config.data.train})',
    )

    def measure(step: int) -> Mapping[str, 'Evaluation']:
      if run.evaluation_source is None:
        return {}
      from clip_jax.training.evaluations import evaluate, model_of

      with prefetcher.paused(), watchdog.activity('evaluating'):
        evaluations = evaluate(run, model_of(run, state))
      monitor.evaluated(step, evaluation_metrics(evaluations))
      return evaluations

    def save(metrics: Mapping[str, float] | None = None) -> None:
      with prefetcher.paused(), watchdog.activity('writing a checkpoint'):
        workdir.publish()
        checkpoints.save(
          state, run.description, seed=config.seed, metrics=metrics
        )

    every = config.evaluation.every_steps
    if first and _is_due(first, every, total):
      is_done = is_evaluated(workdir.folder, first)
      if not distributed.all_processes_agree(is_done):  # saved, and then ended
        evaluations = measure(first)
    for step in range(first + 1, total + 1):
      profile.before_step(step, workdir.folder, prefetcher.drain)
      train_step = run.program.step_after(step - 1)
      state, metrics = train_step(state, prefetcher.next())
      prefetcher.submit(
        step, metrics, log=_is_due(step, config.log_every_steps, total)
      )
      monitor.step_launched(step)
      stopping = step < total and stop.requested(step)
      saving = stopping or _is_due(step, config.checkpoint.every_steps, total)
      evaluating = not stopping and _is_due(step, every, total)
      # An evaluation may take long, or fail: it waits, unless its metrics tell
      # whether the checkpoint is the best.
      by_metric = evaluating and config.checkpoint.best_metric != ''
      if saving and not by_metric:
        save()
      if evaluating:
        evaluations = measure(step)
      if saving and by_metric:
        save(evaluation_metrics(evaluations))
      if stopping:
        break
  return state, evaluations


def _is_due(step: int, every: int, total: int) -> bool:
  """Returns True at each multiple of `every` (0: none), and at the end."""
  return step == total or (every > 0 and step % every == 0)


def _print(message: str) -> None:
  """Prints a message on stderr, in the first process."""
  if distributed.is_first_process():
    print(message, file=sys.stderr)
