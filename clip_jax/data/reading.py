"""A source's pictures, decoded by threads before they are asked for, and what
is said of those that cannot be read.
"""

import collections
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from clip_jax.data.images import (
  CorruptImageError,
  Preprocessing,
  decode,
  preprocess,
)
from clip_jax.data.sources import Record, Source

_AHEAD = 64  # pictures


class Read(NamedTuple):
  """One record: with its picture, or with the reason why there is none.

  Attributes:
    record: without its bytes; of an unreadable one, the id only.
    picture: decoded, in its own mode, or prepared; None where it cannot be
      read, or is known.
    reason: why it cannot be read, or ''.
    digest: of its bytes; see `digest_of`.
  """

  record: Record
  picture: Image.Image | None
  reason: str
  digest: bytes = b''


def digest_of(content: bytes) -> bytes:
  """Sixteen bytes that tell a picture's file, or a text, from all others."""
  return hashlib.blake2b(content, digest_size=16).digest()


def read_ahead(
  source: Source,
  indices: Iterable[int],
  is_known: Callable[[bytes], bool] = lambda digest: False,
  preprocessing: Preprocessing | None = None,
) -> Iterator[Read]:
  """Reads and decodes records, in the order of the indices.

  Close the iterator to end its threads early.

  Args:
    is_known: asked by threads; a picture of such a digest is not decoded.
    preprocessing: also prepares each image, as large as the model reads it (a
      second time changes nothing): what waits then takes little memory,
      however large photographs are, and what cannot be prepared is unreadable.
  """
  pool = ThreadPoolExecutor(
    min(os.cpu_count() or 1, 16), thread_name_prefix='read'
  )
  waiting: collections.deque[Future[Read]] = collections.deque()
  try:
    for index in indices:
      waiting.append(pool.submit(_read, source, index, is_known, preprocessing))
      if len(waiting) > _AHEAD:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


def _read(
  source: Source,
  index: int,
  is_known: Callable[[bytes], bool],
  preprocessing: Preprocessing | None,
) -> Read:
  try:
    record = source[index]
    digest = digest_of(record['image'])
    picture = None
    if not is_known(digest):
      picture = decode(record['image'])
      if preprocessing is not None:
        picture = Image.fromarray(preprocess(picture, preprocessing))
  except CorruptImageError as error:
    unread: Record = {'id': source.id(index), 'image': b'', 'caption': []}
    return Read(unread, None, str(error))
  kept: Record = {**record, 'image': b''}
  return Read(kept, picture, '', digest)


def too_many_corrupt(spec: str, limit: int, corrupt: Mapping[str, str]) -> str:
  """The line that ends the work when more than `limit` are unreadable."""
  return (
    f'data {spec!r}: over max_corrupt_records={limit} records are '
    f'corrupt{_some(corrupt)}.'
  )


def none_readable(spec: str, corrupt: Mapping[str, str]) -> str:
  """The line for a source of which nothing can be read."""
  return f'data {spec!r}: no readable picture{_some(corrupt)}.'


def _some(corrupt: Mapping[str, str]) -> str:
  if not corrupt:
    return ''
  first = itertools.islice(corrupt.items(), 3)
  return ': ' + '; '.join(f'{key}: {reason}' for key, reason in first)
