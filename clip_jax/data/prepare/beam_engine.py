"""Runs jobs on Apache Beam; see `engine`.

Without a runner among its options, Beam runs on this machine, by `FnApiRunner`
and processes: `DirectRunner` would first try to fetch another program from the
network. A job says by files whether it is done, which works with any runner:
the pipeline has no output that a runner would have to keep.
"""

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from clip_jax.data import storage
from clip_jax.data.prepare.engine import Job
from clip_jax.errors import UsageError, one_line

_HERE = 'apache_beam.runners.portability.fn_api_runner.FnApiRunner'
_POLL_SECONDS = 0.5
_MAX_REASON_BYTES = 2**20


def run(
  jobs: Sequence[Job], workers: int, stage: str, options: Sequence[str]
) -> Iterator[str]:
  """Runs jobs and yields '' for each that is done, or why one failed.

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
  errors: list[Exception] = []

  def work() -> None:
    try:
      pipeline.run().wait_until_finish()
    except Exception as error:  # of any runner
      errors.append(error)

  # A daemon, so that Ctrl-C ends the command.
  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  waiting = {job.marker for job in jobs}
  while waiting:
    thread.join(_POLL_SECONDS)
    is_over = not thread.is_alive()
    names = storage.list_folder(stage)
    done = waiting.intersection(storage.join(stage, name) for name in names)
    waiting -= done
    yield from [''] * len(done)
    if is_over:
      break
  thread.join()
  if reason := storage.read_all(failure, _MAX_REASON_BYTES).decode():
    yield reason
  elif errors:
    yield f'Beam: {type(errors[0]).__name__}: {one_line(str(errors[0]))}'
  elif waiting:
    yield f'Beam ended and left out {len(waiting):,} of {len(jobs):,} tasks.'


def _make_pipeline(
  jobs: Sequence[Job], workers: int, failure: str, options: Sequence[str]
) -> Any:
  try:
    import apache_beam as beam  # pyright: ignore[reportMissingImports]
    from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]
      PipelineOptions,
      StandardOptions,
    )
  except ImportError as error:
    raise UsageError(
      '--engine=beam needs an extra: pip install ".[beam]"'
    ) from error

  logging.getLogger('apache_beam').setLevel(logging.CRITICAL)
  # Beam's parser prints its usage and exits.
  with contextlib.redirect_stderr(None):
    try:
      parsed = PipelineOptions(list(options))
      runner = parsed.view_as(StandardOptions).runner
    except (SystemExit, ValueError) as error:
      raise UsageError(
        f'--beam_options={" ".join(options)}: Beam does not take these.'
      ) from error
  if runner is None:
    mode = 'multi_processing' if workers > 1 else 'in_memory'
    parsed = PipelineOptions(
      [
        *options,
        f'--runner={_HERE}',
        f'--direct_num_workers={workers}',
        f'--direct_running_mode={mode}',
        '--default_sdk_harness_log_level=CRITICAL',
      ]
    )
  elif runner.lower() in ('direct', 'directrunner', 'switchingdirectrunner'):
    raise UsageError(
      f'--beam_options: {runner} would fetch and start another program; leave '
      'the runner out to run on this machine.'
    )
  pipeline = beam.Pipeline(options=parsed)
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
