"""Worker processes that read data, and end with the process they read for."""

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

from absl import flags

if TYPE_CHECKING:
  import grain


def read_in_processes(
  batches: 'grain.IterDataset[Any]', workers: int, prefetch: int
) -> 'grain.IterDataset[Any]':
  """Returns a dataset of the same batches, which worker processes make.

  Args:
    batches: pickles.
    workers: how many processes.
    prefetch: batches that each makes ahead.
  """
  import grain

  if not flags.FLAGS.is_parsed():  # Called from Python; Grain insists.
    flags.FLAGS.mark_as_parsed()
  return batches.mp_prefetch(
    grain.MultiprocessingOptions(
      num_workers=workers, per_worker_buffer_size=prefetch
    ),
    worker_init_fn=lambda *_: end_with_parent(),
  )


def end_with_parent(parent: Any = None) -> None:
  """Makes a worker end as soon as the process that started it is gone.

  And not before: a terminal's Ctrl-C and a scheduler's SIGTERM go to all
  processes, but only the first may know what is left to do.

  Args:
    parent: a connection that is closed when the worker is to end; by default,
      multiprocessing's own to the parent. (The kernel's signal for this would
      come when the thread that started the worker ends.)
  """
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  if parent is None:
    process = multiprocessing.parent_process()
    assert process is not None
    parent = process.sentinel

  def watch() -> None:
    connection.wait([parent])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
