"""Encodes records shard by shard, without a pause between the shards.

Used to write embeddings in bulk, and by the evaluation for its features.
"""

import collections
import dataclasses
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

import jax

from clip_jax.data.decoding import check_corrupt
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.reading import read_ahead
from clip_jax.data.sources import Record, Source
from clip_jax.inference.classifier import check_finite
from clip_jax.inference.shards import Shard

Features = TypeVar('Features')  # float32 arrays [N, …], in any tree


class Item(NamedTuple):
  """One record on its way to the encoder.

  Attributes:
    content: an image or a text; None where it cannot be read, or need not be.
    reason: why it cannot be read, or ''.
    record: an image's, without its bytes.
    digest: of the content; see `clip_jax.data.reading.digest_of`.
    reused_row: the row of an earlier table that is of the same content, which
      needs no encoding; -1 where there is none.
  """

  id: str
  caption: str
  content: Any
  reason: str = ''
  record: Record | None = None
  digest: bytes = b''
  reused_row: int = -1


def image_items(
  source: Source,
  indices: Iterable[int],
  corrupt: Mapping[str, str],
  max_corrupt: int,
  *,
  reused_row: Callable[[bytes], int] = lambda digest: -1,
  preprocessing: Preprocessing | None = None,
) -> Generator[Item, None, None]:
  """Yields images of a source in the order of the indices, decoded ahead.

  Args:
    corrupt: id to reason, of images that were left out before.
    max_corrupt: how many may be.
    reused_row: digest to row; see `Item`. Such images are not decoded.
    preprocessing: of the model that they are for; None leaves them as they are.
  Raises:
    FailureError: with those that come, too many are corrupt.
  """
  corrupt = dict(corrupt)
  for read in read_ahead(
    source, indices, lambda digest: reused_row(digest) >= 0, preprocessing
  ):
    key = read.record['id']
    if read.reason:
      corrupt[key] = read.reason
      check_corrupt(corrupt, max_corrupt, source.spec)
      yield Item(key, '', None, read.reason)
    else:
      yield Item(
        key,
        (read.record['caption'] or [''])[0],
        read.image,
        record=read.record,
        digest=read.digest,
        reused_row=reused_row(read.digest),
      )


@dataclasses.dataclass(frozen=True)
class EncodedShard(Generic[Features]):
  """A shard and what became of its records.

  Attributes:
    items: all of its records, without their content.
    features: of those that were encoded, in their order.
  """

  shard: Shard
  items: list[Item]
  features: Features

  @property
  def corrupt(self) -> dict[str, str]:
    """Id to reason, of the records that could not be read."""
    return {item.id: item.reason for item in self.items if item.reason}


def encode_shards(
  encode: Callable[[Iterable[Any]], Features],
  shards: Iterable[Shard],
  items: Iterator[Item],
  *,
  overlap: bool = True,
) -> Generator[EncodedShard[Features], None, None]:
  """Encodes shards in their order.

  While the device finishes one shard, and while the caller stores it, the host
  already decodes the next: its call starts when the first has read its last
  record. Each shard is batched by itself, so that its rows are the same bits
  whichever shards were made before in this process.

  Args:
    encode: an iterable of contents to features.
    shards: which records.
    items: those records, of all the shards, in order; read by one thread at a
      time.
    overlap: False runs one call at a time, for an encoder whose computations
      span devices: those must be started in one order everywhere.
  Raises:
    FailureError: a feature is not finite; and whatever `items` raises.
  """
  stop = threading.Event()
  pool = ThreadPoolExecutor(2, thread_name_prefix='encode')
  calls: collections.deque[tuple[Shard, _ShardReader, Future[Features]]] = (
    collections.deque()
  )

  def finish() -> EncodedShard[Features]:
    shard, reader, call = calls.popleft()
    features = call.result()
    for array in jax.tree.leaves(features):
      check_finite(array, shard.kind)
    return EncodedShard(shard, reader.items, features)

  try:
    for shard in shards:
      if calls and not overlap:
        yield finish()
      if calls:
        calls[-1][1].done.wait()
      reader = _ShardReader(items, len(shard), stop)
      call = pool.submit(encode, reader)
      # A call that fails is done, even if it has not read its last record.
      call.add_done_callback(lambda _, reader=reader: reader.done.set())
      calls.append((shard, reader, call))
      if len(calls) > 1:
        yield finish()
    while calls:
      yield finish()
  finally:
    stop.set()
    pool.shutdown(cancel_futures=True)


class _Stopped(Exception):
  """Ends an encoder's call whose result is no longer needed."""


class _ShardReader:
  """The contents of one shard's records, from a stream that shards share.

  Attributes:
    items: the records that were read, without their content.
    done: set when this shard has read its last.
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
        if not item.reason and item.reused_row < 0:
          yield item.content
    finally:
      self.done.set()
