"""The loop: batches in; metrics, checkpoints, evaluations and a report out."""

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import jax
import numpy as np

from clip_jax.checkpoints import Checkpoints
from clip_jax.errors import FailureError, UsageError
from clip_jax.inference.model import Model
from clip_jax.parallel import distributed
from clip_jax.report.training import FILE as REPORT
from clip_jax.report.training import write_report
from clip_jax.training import run_directory
from clip_jax.training.config import Config
from clip_jax.training.evaluations import Evaluations, evaluate, named
from clip_jax.training.feed import Feed
from clip_jax.training.initial_state import first_state
from clip_jax.training.initialization import Start, find_start
from clip_jax.training.journal import Journal
from clip_jax.training.opening import (
  describe_run,
  draw_captions,
  warn_of_cut_captions,
  warn_of_training_data,
)
from clip_jax.training.optimizer import describe_raised
from clip_jax.training.profile import Profile
from clip_jax.training.run import Run, make_run
from clip_jax.training.state import TrainState
from clip_jax.training.stop_signal import StopSignal
from clip_jax.training.watchdog import Watchdog
from clip_jax.training.workdir import Workdir, opened


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a call of `train` ended."""

  step: int
  finished: bool  # False: asked to stop, and saved
  metrics: Mapping[str, float]  # the last evaluation's
  report: str | None  # the path of the page


def train(
  config: Config,
  workdir: str | Path,
  command: str | None = None,
  profile: Profile | None = None,
  stated: Collection[str] = (),
) -> Outcome:
  """Trains, or goes on where the workdir's newest checkpoint is.

  The parameters after the last step are the same bits whether the run was
  interrupted or not: a step is a function of the state and of the records that
  (seed, step) name. Of several processes each calls this, with the same
  arguments.

  Args:
    config: the fields of configs/base.py.
    workdir: the run directory (DESIGN, section 3.4), also in an object store.
    command: how the run was started, for its report.
    profile: the steps to trace.
    stated: dotted names of the fields that the command line gives: a recipe
      gives way to the weights of `initialize_from`, these do not.
  Raises:
    UsageError: the config is impossible, or the workdir is another run's.
    FailureError: too many corrupt records or steps that are not finite, a full
      disk, no readable checkpoint.
  """
  profile = profile or Profile(0, 0)
  profile.check(config.total_steps)
  with opened(workdir) as place:
    start = find_start(config, place, stated)
    before = run_directory.check(place, start.config)
    run = make_run(start.config, start.kept)
    with run_directory.claimed(place, run.config), StopSignal() as stop:
      return _train(run, start, place, before, stop, command, profile)


def _train(
  run: Run,
  start: Start,
  workdir: Workdir,
  steps_before: int | None,
  stop: StopSignal,
  command: str | None,
  profile: Profile,
) -> Outcome:
  config = run.config
  checkpoints = Checkpoints(
    workdir.name,
    keep=config.checkpoint.keep,
    best_metric=config.checkpoint.best_metric,
  )
  for note in start.notes:
    _say(note)
  state = _start(run, start, checkpoints)
  first = int(state.step)
  if steps_before is not None:
    total = run.config.total_steps
    rates = run.config.optimizer.to_dict()
    _say(describe_raised(rates, steps_before, total, first))
  if first < run.config.total_steps and distributed.is_first_process():
    captions, are_all = draw_captions(run.sources)
    _say(describe_run(run, workdir, first, captions, are_all))
    warn_of_cut_captions(run, captions)
    if run.evaluation_source is not None:
      warn_of_training_data(run)
  try:
    state, evaluations = _steps(run, state, workdir, checkpoints, stop, profile)
  except FailureError:
    checkpoints.wait()  # what was saved before is worth keeping
    raise
  checkpoints.close()
  step = int(state.step)
  if step < config.total_steps:
    _say(f'{stop.name}: saved step {step:,} in {workdir.name}')
    return Outcome(step, False, named(evaluations), None)
  if step == first and distributed.all_processes_agree(workdir.has(REPORT)):
    _say(f'{workdir.name} is trained already; nothing to do.')
  else:
    _say('writing the report')
    write_report(
      workdir.folder,
      model_of(run, state),
      run.evaluation_source,
      evaluation=evaluations.get('zero_shot'),
      command=command,
      templates=tuple(config.evaluation.templates),
      seed=config.seed,
      shown_as=workdir.name,
    )
  return Outcome(step, True, named(evaluations), workdir.path(REPORT))


def _start(run: Run, start: Start, checkpoints: Checkpoints) -> TrainState:
  """The newest checkpoint's state, or the first one."""
  seed = run.config.seed
  restored = checkpoints.restore(run.program.state, run.description, seed=seed)
  if restored is None:
    return first_state(run.program, seed, start)
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
    step, restored.params, restored.opt_state, restored.batch_stats
  )


def _steps(
  run: Run,
  state: TrainState,
  workdir: Workdir,
  checkpoints: Checkpoints,
  stop: StopSignal,
  profile: Profile,
) -> tuple[TrainState, Evaluations]:
  """Trains until the last step or a signal; the last state, and evaluation."""
  config = run.config
  first, total = int(state.step), config.total_steps
  evaluations: Evaluations = {}
  with (
    contextlib.closing(run.batches(first)) as batches,
    Journal(run, workdir.folder, first, batches, checkpoints.latest) as journal,
    Watchdog(config.stall_seconds) as watchdog,
    profile,
  ):
    feed = Feed(
      itertools.islice(journal.passing(), total - first),
      run.program.mesh,
      config.data.batch_size,
      journal.finished,
      watchdog,
      f'input (data.train={config.data.train})',
    )
    for step in range(first + 1, total + 1):
      profile.reach(step, workdir.folder, feed.drain)
      state, metrics = run.program.train_step(state, feed.next())
      feed.launched(
        step, metrics, log=_due(step, config.log_every_steps, total)
      )
      journal.launched(step)
      measured = {}
      if _due(step, config.evaluation.every_steps, total):
        with feed.paused(), watchdog.doing('evaluating'):
          evaluations = evaluate(run, model_of(run, state))
        measured = named(evaluations)
        journal.evaluated(step, measured)
      stopping = stop.at(step)
      if _due(step, config.checkpoint.every_steps, total) or stopping:
        with feed.paused(), watchdog.doing('writing a checkpoint'):
          workdir.publish()
          checkpoints.save(
            state, run.description, seed=config.seed, metrics=measured
          )
      if stopping:
        break
  return state, evaluations


def _say(message: str) -> None:
  if distributed.is_first_process():
    print(message, file=sys.stderr)


def model_of(run: Run, state: TrainState) -> Model:
  """A state as a model to use, on the run's devices."""
  return Model(
    run.description,
    state.variables,
    mesh=run.program.mesh,
    dtype=run.config.model.dtype,
    batch_size=run.config.evaluation.batch_size,
    step=int(state.step),
  )


def _due(step: int, every: int, total: int) -> bool:
  """At each multiple of `every` (0: none), and at the end."""
  return step == total or (every > 0 and step % every == 0)
