"""Runs jobs on Ray Data, on this machine; see `engine`."""

import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

from clip_jax.data.prepare.engine import Job
from clip_jax.data.prepare.local_engine import Outcome
from clip_jax.errors import UsageError, one_line

# It holds pickled jobs and reasons alone, and Ray wants this much at least.
_OBJECT_STORE_BYTES = 100 * 2**20
_MAX_BLOCKS = 1_000


def run(jobs: Sequence[Job], workers: int) -> Iterator[Outcome]:
  """Runs jobs and yields how each ended, in the order in which they do.

  Ray listens on the loopback interface alone.

  Args:
    workers: processes.
  Raises:
    UsageError: Ray is not installed.
  """
  # Ray asks at its import, and replaces 127.0.0.1 by another address of the
  # machine, unless it takes it for one that is no member of a cluster.
  os.environ.setdefault('RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER', '0')
  os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
  try:
    import ray  # pyright: ignore[reportMissingImports]
    import ray.data  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise UsageError(
      '--engine=ray needs an extra: pip install ".[ray]"'
    ) from error

  # It is slow to start, so that it stays for the next stage. One that a
  # program has connected to is used as it is.
  if not ray.is_initialized():
    ray.init(
      address='local',
      num_cpus=workers,
      include_dashboard=False,
      object_store_memory=_OBJECT_STORE_BYTES,
      log_to_driver=False,
      logging_level=logging.ERROR,
      _node_ip_address='127.0.0.1',
    )
  context = ray.data.DataContext.get_current()
  context.enable_progress_bars = False
  logging.getLogger('ray.data').setLevel(logging.ERROR)
  workers = min(workers, len(jobs))
  data = ray.data.from_items(
    [{'index': i, 'job': pickle.dumps(job)} for i, job in enumerate(jobs)],
    override_num_blocks=min(len(jobs), _MAX_BLOCKS),
  )
  try:
    for row in data.map(_run_job, concurrency=workers).iter_rows():
      yield Outcome(row['index'], row['reason'])
  except ray.exceptions.RayError as error:
    text = one_line(str(error))
    yield Outcome(0, f'Ray: {type(error).__name__}: {text}')


def _run_job(row: dict[str, Any]) -> dict[str, Any]:
  return {'index': row['index'], 'reason': pickle.loads(row['job']).run()}
