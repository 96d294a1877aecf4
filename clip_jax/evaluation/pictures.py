"""A source's pictures on their way to an encoder; what cannot be read is left
out and counted.
"""

import collections
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from PIL import Image

from clip_jax.data.images import CorruptImageError, decode
from clip_jax.data.sources import Record, Source
from clip_jax.errors import FailureError

_AHEAD = 64  # pictures read before they are asked for


class Pictures(Iterator[Image.Image]):
  """The readable pictures of a source, once each, in its order.

  Attributes:
    records: of the pictures given so far, without the pictures.
    corrupt: id to reason, of those left out so far.
  """

  def __init__(self, source: Source, max_corrupt_records: int):
    """Reads nothing yet.

    Args:
      source: records by index.
      max_corrupt_records: how many may be left out; one more and iterating
        raises FailureError, as it does where none at all could be read.
    """
    self.records: list[Record] = []
    self.corrupt: dict[str, str] = {}
    self._source = source
    self._limit = max_corrupt_records
    self._pictures = self._read_all()

  def __next__(self) -> Image.Image:
    return next(self._pictures)

  def _read_all(self) -> Iterator[Image.Image]:
    indices = iter(range(len(self._source)))
    pool = ThreadPoolExecutor(
      min(os.cpu_count() or 1, 16), thread_name_prefix='read'
    )
    waiting: collections.deque[tuple[int, Future]] = collections.deque()
    try:
      for index in indices:
        waiting.append((index, pool.submit(self._read, index)))
        if len(waiting) > _AHEAD:
          yield from self._next_of(waiting)
      while waiting:
        yield from self._next_of(waiting)
    finally:
      pool.shutdown(cancel_futures=True)
    if not self.records:
      raise FailureError(
        f'data {self._source.spec!r}: no readable picture{_some(self.corrupt)}.'
      )

  def _next_of(
    self, waiting: collections.deque[tuple[int, Future]]
  ) -> Iterator[Image.Image]:
    index, future = waiting.popleft()
    try:
      record, picture = future.result()
    except CorruptImageError as error:
      self.corrupt[self._source.id(index)] = str(error)
      if len(self.corrupt) > self._limit:
        raise FailureError(
          f'data {self._source.spec!r}: over max_corrupt_records='
          f'{self._limit} records are corrupt{_some(self.corrupt)}.'
        ) from error
      return
    self.records.append(record)
    yield picture

  def _read(self, index: int) -> tuple[Record, Image.Image]:
    record = self._source[index]
    picture = decode(record['image'])
    kept: Record = {**record, 'image': b''}
    return kept, picture


def _some(corrupt: dict[str, str]) -> str:
  if not corrupt:
    return ''
  first = itertools.islice(corrupt.items(), 3)
  return ': ' + '; '.join(f'{key}: {reason}' for key, reason in first)
