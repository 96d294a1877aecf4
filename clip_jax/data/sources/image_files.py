"""Sources whose images are files of their own, named by a folder or a table."""

import abc
import codecs
import os
from collections.abc import Iterator, Sequence

from clip_jax.data.decoding import read_bytes as read_image_bytes
from clip_jax.data.sources import Record, Source, Spec
from clip_jax.data.sources.columns import Captions
from clip_jax.errors import FailureError, UsageError
from clip_jax.files import read_bytes

# The most bytes of a table or of a file of captions: it is read as a whole.
_MAX_BYTES = 2 * 2**30


class FileSource(Source):
  """Images in files of their own, whose paths and captions are in memory.

  Attributes:
    _paths: each image's path, as the source names it.
    _labels: each image's label, or None where the data have none.
  """

  _paths: list[str]
  _labels: list[int] | None

  @abc.abstractmethod
  def file(self, index: int) -> str:
    """Returns the path of the record's image file."""

  def numbered_captions(self, index: int) -> Captions:
    """Returns the record's captions, with the column of each."""
    return {'caption': self.captions(index)}

  def __len__(self) -> int:
    return len(self._paths)

  def captioned(self) -> Sequence[int] | None:
    with_texts = [i for i in range(len(self)) if self.captions(i)]
    return with_texts if len(with_texts) < len(self) else None

  def __getitem__(self, index: int) -> Record:
    record: Record = {
      'id': self.id(index),
      'image': read_image_bytes(self.file(index)),
      **self.numbered_captions(index),
    }
    if self._labels is not None:
      record['label'] = self._labels[index]
    return record

  def outline(self) -> Iterator[str]:
    for index in range(len(self)):
      label = self._labels[index] if self._labels is not None else None
      try:
        status = os.stat(self.file(index))
        file = (status.st_size, status.st_mtime_ns)
      except (OSError, ValueError) as error:  # reading the image says why
        file = (getattr(error, 'errno', None),)
      yield repr((self.id(index), self.captions(index), label, *file))


def read_text(spec: Spec, path: str) -> str:
  """Reads UTF-8, or the UTF-16 that spreadsheets write, by its mark.

  Raises:
    UsageError: it cannot be read, or is in another encoding; the message names
      the line.
  """
  try:
    data = read_bytes(path, _MAX_BYTES)
  except FailureError as error:
    raise spec.error(str(error)) from error
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
