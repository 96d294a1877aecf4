"""Reads a source's images ahead, in threads, and names the unreadable ones."""

import collections
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from PIL import Image

from clip_jax.data.decoding import CorruptImageError, decode, first_reasons
from clip_jax.data.images import preprocess
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.sources import Record, Source

Read = TypeVar('Read')  # what is read of a record

_AHEAD = 64  # images


class PreparedImage(Image.Image):
  """An image in the size in which a model reads it.

  To resize and crop it again might change it: see `Preprocessing.resize_to`.
  """

  @classmethod
  def of(cls, image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Returns what `preprocess` makes of a decoded image.

    Raises:
      CorruptImageError: as of `preprocess`.
    """
    prepared = Image.fromarray(preprocess(image, preprocessing))
    prepared.__class__ = cls  # as Pillow makes no images of subclasses
    return prepared


class DecodedRecord(NamedTuple):
  """A record with its image, or with the reason why there is none.

  Attributes:
    record: the record without the bytes of its image; of an unreadable one,
      the id only.
    image: decoded, in its own mode, or a `PreparedImage`; None where it cannot
      be read, or where `is_known` says that it need not be.
    reason: why it cannot be read, or ''.
    digest: the digest of its bytes; see `digest_of`.
  """

  record: Record
  image: Image.Image | None
  reason: str
  digest: bytes = b''


def digest_of(content: bytes) -> bytes:
  """Returns the digest, 16 bytes, of an image's file or of a text."""
  return hashlib.blake2b(content, digest_size=16).digest()


def read_ahead(
  source: Source,
  indices: Iterable[int],
  is_known: Callable[[bytes], bool] = lambda digest: False,
  preprocessing: Preprocessing | None = None,
) -> Iterator[DecodedRecord]:
  """Reads and decodes records, in the order of the indices.

  Close the iterator to end its threads early.

  Args:
    source: has the records.
    indices: the records to read.
    is_known: is called by the threads with the digest of an image, which is not
      decoded where it returns True.
    preprocessing: applied to each image where it is given. The images that wait
      then take little memory, however large the photographs are; a model takes
      them as they are. An image that it cannot be applied to is unreadable.
  """
  return map_ahead(
    lambda index: _read(source, index, is_known, preprocessing), indices
  )


def map_ahead(
  read: Callable[[int], Read], indices: Iterable[int]
) -> Iterator[Read]:
  """Calls a function with each index, by threads, some indices ahead.

  Close the iterator to end its threads early.
  """
  pool = ThreadPoolExecutor(
    min(os.cpu_count() or 1, 16), thread_name_prefix='read'
  )
  waiting: collections.deque[Future[Read]] = collections.deque()
  try:
    for index in indices:
      waiting.append(pool.submit(read, index))
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
) -> DecodedRecord:
  try:
    record = source[index]
    digest = digest_of(record['image'])
    image = None
    if not is_known(digest):
      image = decode(record['image'])
      if preprocessing is not None:
        image = PreparedImage.of(image, preprocessing)
  except CorruptImageError as error:
    unread: Record = {'id': source.id(index), 'image': b'', 'caption': []}
    return DecodedRecord(unread, None, str(error))
  rest: Record = {**record, 'image': b''}
  return DecodedRecord(rest, image, '', digest)


def none_readable(spec: str, corrupt: Mapping[str, str]) -> str:
  """Returns the error for a source of which nothing can be read."""
  return f'data {spec!r}: no readable image{first_reasons(corrupt)}.'
