"""The loop: batches in; metrics, checkpoints, evaluations and a report out."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from clip_jax.checkpoints import Checkpoints
from clip_jax.data.pipeline import Batches
from clip_jax.evaluation import Evaluation, Options, find_evaluator
from clip_jax.inference.model import Model
from clip_jax.training import run_directory
from clip_jax.training.config import Config
from clip_jax.training.feed import Feed
from clip_jax.training.metrics import MetricsWriter
from clip_jax.training.progress import Progress
from clip_jax.training.report import write_report
from clip_jax.training.run import Run, make_run, warn_of_cut_captions
from clip_jax.training.state import TrainState, sharded_init
from clip_jax.training.stop_signal import StopSignal
from clip_jax.training.utilization import model_flops_utilization

Evaluations = Mapping[str, Evaluation]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a call of `train` ended."""

  step: int
  finished: bool  # False: asked to stop, and saved
  metrics: Mapping[str, float]  # the last evaluation's
  report: Path | None


def train(
  config: Config, workdir: str | Path, command: str | None = None
) -> Outcome:
  """Trains, or goes on where the workdir's newest checkpoint is.

  The parameters after the last step are the same bits whether the run was
  interrupted or not: a step is a function of the state and of the records that
  (seed, step) name.

  Args:
    config: the fields of configs/base.py.
    workdir: the run directory (DESIGN, section 3.4).
    command: how the run was started, for its report.
  Raises:
    UsageError: the config is impossible, or the workdir is another run's.
    FailureError: too many corrupt records, a full disk, no readable checkpoint.
  """
  workdir = Path(workdir)
  run_directory.check(workdir, config)
  run = make_run(config)
  with run_directory.claimed(workdir, config), StopSignal() as stop:
    return _train(run, workdir, stop, command)


def _train(
  run: Run, workdir: Path, stop: StopSignal, command: str | None
) -> Outcome:
  config = run.config
  checkpoints = Checkpoints(
    workdir,
    keep=config.checkpoint.keep,
    best_metric=config.checkpoint.best_metric,
  )
  state = _start(run, checkpoints)
  first = int(state.step)
  with MetricsWriter(workdir) as writer:
    writer.truncate_after(first)
    state, evaluations = _steps(run, state, checkpoints, writer, stop)
  checkpoints.close()
  step = int(state.step)
  if step < config.total_steps:
    print(f'{stop.name}: saved step {step:,} in {workdir}', file=sys.stderr)
    return Outcome(step, False, named(evaluations), None)
  report = workdir / 'report.html'
  if step > first or not report.exists():
    print('writing the report', file=sys.stderr)
    report = write_report(
      workdir,
      model_of(run, state),
      run.evaluation_source,
      evaluation=evaluations.get('zero_shot'),
      command=command,
      templates=tuple(config.evaluation.templates),
      seed=config.seed,
    )
  else:
    print(f'{workdir} is trained already; nothing to do.', file=sys.stderr)
  return Outcome(step, True, named(evaluations), report)


def _start(run: Run, checkpoints: Checkpoints) -> TrainState:
  """The newest checkpoint's state, or the first one."""
  seed = run.config.seed
  restored = checkpoints.restore(run.program.state, run.description, seed=seed)
  if restored is None:
    return sharded_init(
      run.program.module, run.program.optimizer, run.program.mesh, seed
    )
  step = jax.device_put(
    jnp.asarray(restored.step, jnp.int32), run.program.state.step.sharding
  )
  return TrainState(
    step, restored.params, restored.opt_state, restored.batch_stats
  )


def _steps(
  run: Run,
  state: TrainState,
  checkpoints: Checkpoints,
  writer: MetricsWriter,
  stop: StopSignal,
) -> tuple[TrainState, Evaluations]:
  """Trains until the last step or a signal; the last state, and evaluation."""
  config = run.config
  first, total = int(state.step), config.total_steps
  evaluations: Evaluations = {}
  batches = run.batches(first)
  feed = Feed(batches, run.program.mesh)
  warn_of_cut_captions(run)
  with Progress(total, config.data.batch_size, start_step=first) as progress:
    for step in range(first + 1, total + 1):
      state, metrics = run.program.train_step(state, feed.next())
      feed.launched(metrics)
      progress.update(step)
      if _due(step, config.log_every_steps, total):
        numbers = _measure(run, feed, batches)
        writer.write(step, numbers)
        progress.report(step, numbers)
      measured = {}
      if _due(step, config.evaluation.every_steps, total):
        with feed.paused():
          evaluations = evaluate(run, state)
        measured = named(evaluations)
        if measured:
          writer.write(step, measured)
          progress.log(f'step {step:,}: {_in_words(measured)}')
      if _due(step, config.checkpoint.every_steps, total) or stop:
        with feed.paused():
          checkpoints.save(
            state, run.description, seed=config.seed, metrics=measured
          )
      if stop:
        break
  batches.close()
  return state, evaluations


def _measure(run: Run, feed: Feed, batches: Batches) -> dict[str, float]:
  """What is logged of the steps since the last time."""
  numbers = feed.numbers()
  numbers['train/corrupt_records'] = len(batches.corrupt)
  utilization = model_flops_utilization(
    run.description.model,
    numbers['train/examples_per_second'],
    jax.devices()[0].device_kind,
    jax.device_count(),
  )
  if utilization is not None:
    numbers['train/mfu'] = utilization
  return numbers


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


def evaluate(run: Run, state: TrainState) -> dict[str, Evaluation]:
  """The config's evaluations of a state, by the name of their task."""
  source = run.evaluation_source
  if source is None:
    return {}
  model = model_of(run, state)
  options = Options(
    templates=tuple(run.config.evaluation.templates),
    max_corrupt_records=run.config.data.max_corrupt_records,
  )
  return {
    task: find_evaluator(task)(model, source, options)
    for task in run.config.evaluation.tasks
  }


def named(evaluations: Evaluations) -> dict[str, float]:
  """Metrics under their names in metrics.jsonl: eval/EVALUATOR/METRIC."""
  return {
    f'eval/{task}/{name}': value
    for task, evaluation in evaluations.items()
    for name, value in evaluation.metrics.items()
  }


def _due(step: int, every: int, total: int) -> bool:
  """At each multiple of `every` (0: none), and at the end."""
  return step == total or (every > 0 and step % every == 0)


def _in_words(metrics: Mapping[str, float]) -> str:
  return ', '.join(
    f'{name.removeprefix("eval/")} {value:.4g}'
    for name, value in metrics.items()
  )
