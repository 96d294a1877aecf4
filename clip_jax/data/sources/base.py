"""The interface of all sources, and the parts that they have in common."""

import abc
from collections.abc import Iterator, Sequence
from typing import NotRequired, TypedDict

from clip_jax.data.decoding import CorruptImageError

DEFAULT_CAPTIONS = ('caption',)
# The records that are read to learn whether a source has captions: all of a
# small source, a sample of a large one.
SAMPLE_RECORDS = 100_000


class Record(TypedDict):
  """An image with its texts and labels; see `clip_jax.data.sources`."""

  id: str
  image: bytes
  caption: list[str]
  columns: NotRequired[list[int]]  # of each caption, where there are several
  label: NotRequired[int]
  labels: NotRequired[list[int]]  # of multi-label data, instead of `label`
  difficult: NotRequired[list[int]]  # of these, neither yes nor no is right


class Source(abc.ABC):
  """Records by index, of which there may be 10^9.

  It pickles, so that worker processes can have it. A subclass has `__len__`,
  `__getitem__` and `id`; where it knows its records without reading them, it
  also overrides `captions`, `captioned` and `outline`.

  Attributes:
    spec: the SPEC of the data.
    label_names: the name of each label, where the data have such.
    notices: lines about what was left out or inferred, which are printed once
      to the person who named the data.
    remedy: what would give the records a caption or a label, for errors about
      the lack of one; '' where nothing is known.
  """

  spec: str
  label_names: tuple[str, ...] | None = None
  notices: tuple[str, ...] = ()
  remedy: str = ''

  @abc.abstractmethod
  def __len__(self) -> int:
    """Returns the number of records."""

  @abc.abstractmethod
  def __getitem__(self, index: int) -> Record:
    """Returns the record at 0 <= index < len(self).

    Raises:
      CorruptImageError: its image is missing or cannot be read.
    """

  @abc.abstractmethod
  def id(self, index: int) -> str:
    """Returns the record's id, known also where its image is unreadable."""

  def captions(self, index: int) -> list[str]:
    """Returns the record's captions; a corrupt record has none.

    It reads the whole record. A source that can read less overrides it.
    """
    try:
      return self[index]['caption']
    except CorruptImageError:
      return []

  def captioned(self) -> Sequence[int] | None:
    """Returns the indices of the records with a caption.

    None means that all of them have one, or that they would have to be read to
    find out.
    """
    return None

  def outline(self) -> Iterator[str]:
    """Yields a line for each record, which changes when the record does.

    A source whose records would have to be read for that yields none.
    """
    yield from ()

  def texts(self, most_records: int | None = None) -> Iterator[str]:
    """Yields the captions of records, in order.

    Args:
      most_records: of a source with more records, no more than so many are
        read, evenly spaced; None reads all.
    """
    most = len(self) if most_records is None else most_records
    for index in sample_indices(len(self), most):
      yield from self.captions(index)

  def has_captions(self) -> bool:
    """Returns whether a record has a caption, of `SAMPLE_RECORDS` at most."""
    return any(True for _ in self.texts(SAMPLE_RECORDS))

  @property
  def hint(self) -> str:
    """The remedy in brackets, to follow a message, or ''."""
    return f' ({self.remedy})' if self.remedy else ''


def sample_indices(length: int, most: int) -> range:
  """Returns all of range(length), or at most `most` of it, evenly spaced."""
  return range(0, length, max(1, -(-length // max(1, most))))
