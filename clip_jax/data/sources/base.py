"""What every source is, and the parts that several of them use."""

import abc
import os
from collections.abc import Iterator, Sequence
from typing import NotRequired, TypedDict

from clip_jax.errors import UsageError
from clip_jax.files import typed_place

DEFAULT_CAPTIONS = ('caption',)


class Record(TypedDict):
  """One picture with its texts; see the module's docstring."""

  id: str
  image: bytes
  caption: list[str]
  label: NotRequired[int]
  labels: NotRequired[list[int]]  # of multi-label data, instead of `label`
  difficult: NotRequired[list[int]]  # of these, neither yes nor no is right


class Source(abc.ABC):
  """Records by index. Pickles, so that worker processes can have it."""

  spec: str
  label_names: tuple[str, ...] | None = None

  @abc.abstractmethod
  def __len__(self) -> int: ...

  @abc.abstractmethod
  def __getitem__(self, index: int) -> Record:
    """The record at 0 <= index < len(self).

    Raises:
      CorruptImageError: its picture is missing or cannot be read.
    """

  @abc.abstractmethod
  def id(self, index: int) -> str:
    """The record's id, known also where its picture cannot be read."""

  @abc.abstractmethod
  def captions(self, index: int) -> list[str]:
    """The record's captions, without reading its picture where possible."""

  def texts(self) -> Iterator[str]:
    """Every caption of every record, in order; corrupt records have none."""
    for index in range(len(self)):
      yield from self.captions(index)

  def outline(self) -> Iterator[str]:
    """A line a record that changes with it, where no picture has to be read.

    Of a source whose records have to be read for that there are none.
    """
    yield from ()


def outline_of(path: str, *known: object) -> str:
  """A line of what is known of a picture, with its file's size and time."""
  try:
    status = os.stat(path)
    file = (status.st_size, status.st_mtime_ns)
  except OSError as error:  # reading it will say so, too
    file = (error.errno,)
  return repr((*known, *file))


def words(class_name: str) -> str:
  return class_name.replace('_', ' ')


def local_path(spec: str, location: str) -> str:
  """The path of a location; `#split` is a sub-folder of it."""
  folder, hash_sign, split = location.rpartition('#')
  if hash_sign and not os.path.exists(os.path.expanduser(location)):
    folder = typed_place(folder)
    if os.path.isfile(folder):
      raise UsageError(
        f'data {spec!r}: a file has no splits; leave out #{split}'
      )
    return os.path.join(folder, split)
  return typed_place(location)


def read_text(spec: str, path: str) -> str:
  """A UTF-8 file; a UsageError that names the line where it is not."""
  try:
    with open(path, 'rb') as file:
      data = file.read()
  except OSError as error:
    raise UsageError(f'data {spec!r}: {path}: {error.strerror}') from error
  try:
    return data.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    line = data.count(b'\n', 0, error.start) + 1
    raise UsageError(
      f'{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); '
      'save the file as UTF-8'
    ) from error


def require_columns(
  spec: str, wanted: Sequence[str], there: Sequence[str]
) -> None:
  for name in wanted:
    if name not in there:
      raise UsageError(
        f'data {spec!r}: no column {name!r}; it has {", ".join(sorted(there))}'
      )
