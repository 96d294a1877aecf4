"""Texts and pictures through their towers at the same time.

Pictures wait for disks and decoders, which leaves the device to the prompts.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from clip_jax.evaluation.types import Options
from clip_jax.progress import Progress

First = TypeVar('First')
Second = TypeVar('Second')


def may_overlap() -> bool:
  """Whether two calls of an encoder may compute at the same time.

  What is split over devices has to be started in the same order on each.
  """
  return jax.device_count() == 1


def at_once(
  options: Options,
  first: Callable[[Options], First],
  second: Callable[[Options], Second],
) -> tuple[First, Second]:
  """Both results; one after the other where they may not overlap.

  Where one of the two fails, the other stops at its next item.

  Args:
    options: given to both, with a `progress` that can stop them.
    first, second: read their items through `options.progress`.
  Raises:
    Whatever the first one raises that fails.
  """
  if not may_overlap():
    return first(options), second(options)
  stop = threading.Event()
  options = dataclasses.replace(
    options, progress=_stoppable(options.progress, stop)
  )

  def run(function: Callable[[Options], Any]) -> Any:
    try:
      return function(options)
    except BaseException:
      stop.set()
      raise

  with ThreadPoolExecutor(1, thread_name_prefix='at_once') as pool:
    aside = pool.submit(run, first)
    try:
      result = run(second)
    except _StoppedError:
      aside.result()  # raises why
      raise
    return aside.result(), result


class _StoppedError(Exception):
  """Ends work whose result nobody will see."""


def _stoppable(progress: Progress, stop: threading.Event):
  """A `Progress` that ends with an error once it is told to stop."""

  def watched(
    items: Iterable[Any], total: int, unit: str, /, *, done: int = 0
  ) -> Iterator[Any]:
    for item in progress(items, total, unit, done=done):
      if stop.is_set():
        raise _StoppedError
      yield item

  return watched
