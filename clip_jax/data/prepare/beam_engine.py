"""Runs jobs on Apache Beam; see `engine`.

Without a runner among its options, Beam runs on this machine, by `FnApiRunner`
and processes: `DirectRunner` would first try to fetch another program from the
network. A job says by files whether it is done, which works with any runner:
the pipeline has no output that a runner would have to keep.
"""

import contextlib
import functools
import io
import logging
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from clip_jax.data import storage
from clip_jax.data.prepare.engine import Job
from clip_jax.data.prepare.local_engine import Outcome
from clip_jax.errors import UsageError, one_line

_POLL_SECONDS = 0.5
_MAX_REASON_BYTES = 2**20


def run(
  jobs: Sequence[Job], workers: int, stage: str, options: Sequence[str]
) -> Iterator[Outcome]:
  """Runs jobs and yields those that are done, or why one failed.

  Args:
    workers: processes, where Beam runs on this machine.
    stage: the folder of the markers.
    options: of Beam.
  Raises:
    UsageError: Beam is not installed, or an option is wrong.
  """
  failure = storage.join(stage, 'failure.txt')
  storage.write_bytes(failure, b'')
  pipeline = _make_pipeline(jobs, workers, failure, options)
  errors: list[BaseException] = []

  def work() -> None:
    try:
      pipeline.run().wait_until_finish()
    except (Exception, SystemExit) as error:  # of any runner
      errors.append(error)

  # A daemon, so that Ctrl-C ends the command.
  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  waiting = {job.marker: index for index, job in enumerate(jobs)}
  while waiting:
    thread.join(_POLL_SECONDS)
    is_over = not thread.is_alive()
    names = storage.list_folder(stage)
    for marker in [storage.join(stage, name) for name in names]:
      if marker in waiting:
        yield Outcome(waiting.pop(marker))
    if is_over:
      break
  thread.join()
  if reason := storage.read_all(failure, _MAX_REASON_BYTES).decode():
    yield Outcome(0, reason)
  elif errors:
    text = one_line(str(errors[0]))
    yield Outcome(0, f'Beam: {type(errors[0]).__name__}: {text}')
  elif waiting:
    left = f'{len(waiting):,} of {len(jobs):,}'
    yield Outcome(0, f'Beam ended and left out {left} tasks.')


def _make_pipeline(
  jobs: Sequence[Job], workers: int, failure: str, options: Sequence[str]
) -> Any:
  try:
    with _without_logging():
      import apache_beam as beam  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise UsageError(
      '--engine=beam needs an extra: pip install ".[beam]"'
    ) from error

  logging.getLogger('apache_beam').setLevel(logging.CRITICAL)
  parsed, runner_name = _parse(options)
  runner = None
  if runner_name is None:
    parsed, _ = _parse([*options, f'--direct_num_workers={workers}'])
    runner = _runner_of_this_machine(workers)
  elif runner_name.lower() in ('direct', 'directrunner'):
    raise UsageError(
      f'--beam_options: {runner_name} would fetch and start another program; '
      'leave the runner out to run on this machine.'
    )
  pipeline = beam.Pipeline(runner, parsed)
  _ = (
    pipeline
    | beam.Create(list(jobs))
    | beam.Reshuffle()  # else one worker would have them all
    | beam.Map(functools.partial(_run_job, failure))
  )
  return pipeline


def _run_job(failure: str, job: Job) -> None:
  """Runs a job, unless another one has failed; says so where it fails."""
  if storage.read_all(failure, _MAX_REASON_BYTES):
    return
  if reason := job.run():
    storage.write_bytes(failure, reason.encode('utf-8', 'surrogateescape'))


def _parse(options: Sequence[str]) -> tuple[Any, str | None]:
  """Returns options as Beam has them, and the runner that they name."""
  from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]
    PipelineOptions,
    StandardOptions,
  )

  # Beam's parser prints its usage and exits.
  with contextlib.redirect_stderr(io.StringIO()) as printed:
    try:
      parsed = PipelineOptions(list(options))
      parsed.get_all_options()  # parses, which waits until it is asked for
      return parsed, parsed.view_as(StandardOptions).runner
    except (SystemExit, ValueError) as error:
      reason = (printed.getvalue() or str(error)).strip().splitlines()[-1:]
      raise UsageError(
        f'--beam_options={shlex.join(options)}: {"".join(reason)}'
      ) from error


def _runner_of_this_machine(workers: int) -> Any:
  from apache_beam.runners.portability import (  # pyright: ignore[reportMissingImports]
    fn_api_runner,
  )
  from apache_beam.transforms import (  # pyright: ignore[reportMissingImports]
    environments,
  )

  if workers == 1:
    return fn_api_runner.FnApiRunner()
  # As for --direct_running_mode=multi_processing, without the lines that each
  # process logs of its own life.
  command = (
    f'{shlex.quote(sys.executable)} -m '
    'apache_beam.runners.worker.sdk_worker_main 2>/dev/null'
  )
  return fn_api_runner.FnApiRunner(
    environments.SubprocessSDKEnvironment.from_command_string(command)
  )


@contextlib.contextmanager
def _without_logging() -> Iterator[None]:
  """Keeps Beam from logging, and from setting logging up, while it loads."""
  root = logging.getLogger()
  handlers = list(root.handlers)
  logging.disable(logging.WARNING)
  try:
    yield
  finally:
    logging.disable(logging.NOTSET)
    root.handlers[:] = handlers
