"""Encodes texts and images at the same time.

While images wait for disks and decoders, the device is free for the prompts.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from clip_jax.evaluation.features.extraction import may_overlap
from clip_jax.evaluation.types import Options
from clip_jax.progress import Progress

Texts = TypeVar('Texts')
Images = TypeVar('Images')


def encode_concurrently(
  options: Options,
  texts: Callable[[Options], Texts],
  images: Callable[[Options], Images],
) -> tuple[Texts, Images]:
  """Returns the encoded texts and images; on several devices in turn.

  Where one of the two fails, the other stops at its next item.

  Args:
    options: given to both, with a `progress` that can stop them.
    texts, images: read their items through `options.progress`.
  Raises:
    Whatever the first one raises that fails.
  """
  if not may_overlap():
    return texts(options), images(options)
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

  with ThreadPoolExecutor(1, thread_name_prefix='texts') as pool:
    of_texts = pool.submit(run, texts)
    try:
      of_images = run(images)
    except _StoppedError:
      of_texts.result()  # raises why
      raise
    return of_texts.result(), of_images


class _StoppedError(Exception):
  """Ends one of the two after the other has failed."""


def _stoppable(progress: Progress, stop: threading.Event) -> Progress:
  """Returns a `Progress` that ends with an error once it is told to stop."""

  def stoppable(
    items: Iterable[Any], total: int, unit: str, /, **counts: Any
  ) -> Iterator[Any]:
    for item in progress(items, total, unit, **counts):
      if stop.is_set():
        raise _StoppedError
      yield item

  return stoppable
