"""Parts through an encoder, one call a part, without a pause between them."""

import collections
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from clip_jax.data.sources import Record
from clip_jax.inference.bulk.parts import Part
from clip_jax.inference.classifier import check_finite


class Item(NamedTuple):
  """One record on its way to the encoder.

  Attributes:
    content: a picture or a text; None where it cannot be read, or is known.
    reason: why it cannot, or ''.
    record: a picture's, without the picture.
    digest: of the content; see `digest_of`.
    known: the row of an earlier table that is of the same content, which needs
      no encoding; -1 where there is none.
  """

  id: str
  caption: str
  content: Any
  reason: str = ''
  record: Record | None = None
  digest: bytes = b''
  known: int = -1


class Encoded(NamedTuple):
  """A part and what became of its records."""

  part: Part
  items: list[Item]  # without their content
  vectors: Float[np.ndarray, 'N E']  # of those that were encoded


def encode_parts(
  encode: Callable[[Iterable[Any]], np.ndarray],
  parts: Iterable[Part],
  items: Iterator[Item],
  *,
  overlap: bool = True,
) -> Generator[Encoded, None, None]:
  """Encodes parts in their order.

  While the device finishes one part, and while the caller stores it, the host
  already decodes the next: its call starts when the first has read its last
  record. Each part is batched by itself, so that its rows are the same bits
  whichever parts were made before in this process.

  Args:
    encode: an iterable of contents to rows of unit length.
    parts: which records.
    items: those records, of all the parts, in order; read by one thread at a
      time.
    overlap: False runs one call at a time, for an encoder whose computations
      span devices: those must be started in one order everywhere.
  Raises:
    FailureError: an embedding is not finite; and whatever `items` raises.
  """
  stop = threading.Event()
  pool = ThreadPoolExecutor(2, thread_name_prefix='encode')
  calls: collections.deque[tuple[Part, _Reader, Future]] = collections.deque()

  def finish() -> Encoded:
    part, reader, rows = calls.popleft()
    vectors = rows.result()
    check_finite(vectors, part.kind)
    return Encoded(part, reader.items, vectors)

  try:
    for part in parts:
      if calls and not overlap:
        yield finish()
      if calls:
        calls[-1][1].done.wait()
      reader = _Reader(items, len(part), stop)
      rows = pool.submit(encode, reader)
      # A call that fails may leave records unread.
      rows.add_done_callback(lambda _, reader=reader: reader.done.set())
      calls.append((part, reader, rows))
      if len(calls) > 1:
        yield finish()
    while calls:
      yield finish()
  finally:
    stop.set()
    pool.shutdown(cancel_futures=True)


class _Stopped(Exception):
  """Ends an encoder's call whose result nobody waits for."""


class _Reader:
  """The contents of one part's records, from a stream that parts share.

  Attributes:
    items: the records that were read, without their content.
    done: set when this part has read its last.
  """

  def __init__(self, stream: Iterator[Item], count: int, stop: threading.Event):
    self.items: list[Item] = []
    self.done = threading.Event()
    self._stream = stream
    self._count = count
    self._stop = stop

  def __iter__(self) -> Iterator[Any]:
    try:
      for item in islice(self._stream, self._count):
        if self._stop.is_set():
          raise _Stopped
        self.items.append(item._replace(content=None))
        if not item.reason and item.known < 0:
          yield item.content
    finally:
      self.done.set()
