"""A source's pictures on their way to an encoder; what cannot be read is left
out and counted.
"""

from collections.abc import Iterator

from PIL import Image

from clip_jax.data.reading import (
  none_readable,
  read_ahead,
  too_many_corrupt,
)
from clip_jax.data.sources import Record, Source
from clip_jax.errors import FailureError


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
    for read in read_ahead(self._source, range(len(self._source))):
      if read.picture is not None:
        self.records.append(read.record)
        yield read.picture
        continue
      self.corrupt[read.record['id']] = read.reason
      if len(self.corrupt) > self._limit:
        raise FailureError(
          too_many_corrupt(self._source.spec, self._limit, self.corrupt)
        )
    if not self.records:
      raise FailureError(none_readable(self._source.spec, self.corrupt))
