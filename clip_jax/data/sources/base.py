"""The type of all sources, and the parts that several of them use."""

import abc
import codecs
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NotRequired, TypedDict

from clip_jax.data.decoding import read_bytes as read_image_bytes
from clip_jax.errors import FailureError, UsageError
from clip_jax.files import read_bytes, typed_place

# The most bytes of a table or of a file of captions: it is read as a whole.
_MAX_BYTES = 2 * 2**30
DEFAULT_CAPTIONS = ('caption',)


class Record(TypedDict):
  """An image with its texts and labels; see `clip_jax.data.sources`."""

  id: str
  image: bytes
  caption: list[str]
  label: NotRequired[int]
  labels: NotRequired[list[int]]  # of multi-label data, instead of `label`
  difficult: NotRequired[list[int]]  # of these, neither yes nor no is right


class Source(abc.ABC):
  """Records by index; it pickles, so that worker processes can have it.

  Attributes:
    spec: what was opened.
    label_names: the name of each label, where the data have such.
    notices: lines about what was left out or understood; whoever opens a
      source for a person prints them, once.
    remedy: what would give records a caption or a label, for the error of who
      needs one; '' where nothing is known.
  """

  spec: str
  label_names: tuple[str, ...] | None = None
  notices: tuple[str, ...] = ()
  remedy: str = ''

  @abc.abstractmethod
  def __len__(self) -> int: ...

  @abc.abstractmethod
  def __getitem__(self, index: int) -> Record:
    """Returns the record at 0 <= index < len(self).

    Raises:
      CorruptImageError: its image is missing or cannot be read.
    """

  @abc.abstractmethod
  def id(self, index: int) -> str:
    """Returns the record's id, known also where its image is unreadable."""

  @abc.abstractmethod
  def captions(self, index: int) -> list[str]:
    """Returns the record's captions, without its image where possible."""

  def texts(self) -> Iterator[str]:
    """Yields the captions of all records in order; corrupt ones have none."""
    for index in range(len(self)):
      yield from self.captions(index)

  @property
  def hint(self) -> str:
    """The remedy, in brackets behind a message, or ''."""
    return f' ({self.remedy})' if self.remedy else ''

  def captioned(self) -> Sequence[int] | None:
    """Returns the indices of records with a caption, if that is known.

    None: it is not known, or all of them have one.
    """
    return None

  def outline(self) -> Iterator[str]:
    """Yields a line for each record, which changes when the record does.

    A source whose records would have to be read for that yields none.
    """
    yield from ()


class FileSource(Source):
  """Images in files of their own, with captions that are known beforehand.

  Attributes:
    _paths: the images, as the source names them.
    _labels: of each image, or None where there are none.
  """

  _paths: list[str]
  _labels: list[int] | None

  @abc.abstractmethod
  def file(self, index: int) -> str:
    """Returns the path of the record's image file."""

  def __len__(self) -> int:
    return len(self._paths)

  def captioned(self) -> Sequence[int] | None:
    with_texts = [i for i in range(len(self)) if self.captions(i)]
    return with_texts if len(with_texts) < len(self) else None

  def __getitem__(self, index: int) -> Record:
    record: Record = {
      'id': self.id(index),
      'image': read_image_bytes(self.file(index)),
      'caption': self.captions(index),
    }
    if self._labels is not None:
      record['label'] = self._labels[index]
    return record

  def outline(self) -> Iterator[str]:
    for index in range(len(self)):
      label = self._labels[index] if self._labels is not None else None
      known = self.id(index), self.captions(index), label
      yield outline_of(self.file(index), *known)


def outline_of(path: str, *known: object) -> str:
  """Returns a line of what is known of an image, with its file's status."""
  try:
    status = os.stat(path)
    file = (status.st_size, status.st_mtime_ns)
  except (OSError, ValueError) as error:  # reading it will say so, too
    file = (getattr(error, 'errno', None),)
  return repr((*known, *file))


def words(class_name: str) -> str:
  return class_name.replace('_', ' ')


def local_path(spec: str, location: str) -> str:
  """Returns the path of a location; `#split` is a sub-folder of it."""
  folder, hash_sign, split = location.rpartition('#')
  if hash_sign and not os.path.exists(os.path.expanduser(location)):
    folder = typed_place(folder)
    if os.path.isfile(folder):
      raise UsageError(
        f'data {spec!r}: a file has no splits; leave out #{split}'
      )
    return os.path.join(folder, split)
  return typed_place(location)


def some(names: Iterable[str], count: int) -> str:
  """Returns up to three names of `count` things, for a message."""
  shown = [repr(name) for name in itertools.islice(names, 3)]
  return ', '.join(shown) + (', …' if count > len(shown) else '')


def plural(count: int, word: str) -> str:
  """Returns '1 image' or '1,200 images'."""
  return f'{count:,} {word}{"" if count == 1 else "s"}'


def read_text(spec: str, path: str) -> str:
  """Reads UTF-8, or the UTF-16 that spreadsheets write, by its mark.

  Raises:
    UsageError: it cannot be read, or is in another encoding; the message names
      the line.
  """
  try:
    data = read_bytes(path, _MAX_BYTES)
  except FailureError as error:
    raise UsageError(f'data {spec!r}: {error}') from error
  encoding = 'utf-8-sig'
  if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    encoding = 'utf-16'
  try:
    return data.decode(encoding)
  except UnicodeDecodeError as error:
    line = data.count(b'\n', 0, error.start) + 1
    name = 'UTF-16' if encoding == 'utf-16' else 'UTF-8'
    raise UsageError(
      f'{path}, line {line}: not {name} (byte 0x{data[error.start]:02x}); '
      'save the file as UTF-8'
    ) from error


def require_columns(
  spec: str, wanted: Sequence[str], there: Sequence[str]
) -> None:
  known = ', '.join(sorted(there)) or 'none'
  for name in wanted:
    if name not in there:
      raise UsageError(f'data {spec!r}: no column {name!r}; it has {known}')
