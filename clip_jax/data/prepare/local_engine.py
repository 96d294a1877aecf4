"""Runs jobs in processes of this machine; see `engine`."""

import multiprocessing
from collections.abc import Generator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, Protocol, runtime_checkable

from clip_jax.data.worker_processes import end_with_parent


class Outcome(NamedTuple):
  """The result of a job.

  Attributes:
    job: its index; 0 where it is not known which of them failed.
    reason: why it failed, or ''.
  """

  job: int
  reason: str = ''


@runtime_checkable
class Job(Protocol):
  """The interface of a job that a process runs; it pickles."""

  @property
  def name(self) -> str:
    """Says in errors which job it is."""
    ...

  def run(self) -> str:
    """Does the job, and returns '' or why it failed."""
    ...


def run(jobs: Sequence[Job], workers: int) -> Generator[Outcome, None, None]:
  """Runs jobs and yields how each ended, in the order in which they do.

  Closing the iterator ends the processes at once. One worker is this process.
  """
  workers = min(workers, len(jobs))
  if workers <= 1:
    for index, job in enumerate(jobs):
      yield Outcome(index, job.run())
    return
  # Forked processes would inherit the locks of JAX's and Arrow's threads.
  context = multiprocessing.get_context('spawn')
  # A worker would wait for tasks for ever, as it holds both ends of the queue.
  # Only this process holds the other end of this pipe.
  pipe: Any = context.Pipe(duplex=False)
  reader, writer = pipe
  pool = futures.ProcessPoolExecutor(
    workers, context, end_with_parent, (reader,)
  )
  waiting = iter(range(len(jobs)))
  running: dict[futures.Future[str], int] = {}
  try:
    while True:
      # A task more than workers, so that none of them has to wait for us.
      while len(running) <= workers and (index := next(waiting, -1)) >= 0:
        running[pool.submit(jobs[index].run)] = index
      if not running:
        break
      done, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
      for future in done:
        yield Outcome(running[future], future.result())
        del running[future]
    pool.shutdown()
  except BrokenProcessPool:
    indices = list(running.values())[:workers]
    names = ', '.join(jobs[index].name for index in indices)
    yield Outcome(
      indices[0],
      'a worker process was killed, as by the system where memory runs out '
      f'(use fewer --workers then), during one of {names}.',
    )
  finally:
    writer.close()  # ends the workers
    pool.shutdown(cancel_futures=True)
    reader.close()
