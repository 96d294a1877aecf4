"""Reads the lines of a text file by index, without holding them in memory."""

import array
import io
import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO, overload

from clip_jax.errors import FailureError, UsageError, reason_of
from clip_jax.files import open_regular, typed_path

# Files that are open already, as a shell's `<(command)` is.
_OPEN_ALREADY = ('/dev/stdin', '/dev/fd/', '/proc/self/fd/')


_MAX_LINE = 16 * 2**20  # bytes


class TextLines(Sequence[str]):
  """The lines of a UTF-8 file that are not blank, without space around them.

  Only their positions are in memory, sixteen bytes a line. One thread at a time
  may read.

  Attributes:
    numbers: the line number in the file, from 1, of each line.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads the file once.

    Raises:
      UsageError: it is missing, no regular file, or a line of it is not UTF-8.
    """
    path = typed_path(path)
    self.numbers = array.array('q')
    self._starts = array.array('q')
    try:
      self._file = _open_lines(path)
      start = 0
      lines = iter(lambda: self._file.readline(_MAX_LINE + 1), b'')
      for number, line in enumerate(lines, 1):
        if len(line) > _MAX_LINE:
          raise UsageError(
            f'{path}, line {number}: over {_MAX_LINE:,} bytes, which is no '
            'text for a model.'
          )
        if _decode_line(line, number, path):
          self.numbers.append(number)
          self._starts.append(start)
        start += len(line)
    except OSError as error:
      raise UsageError(f'{os.fspath(path)}: {reason_of(error)}.') from error
    self._path = path

  def __len__(self) -> int:
    return len(self.numbers)

  @overload
  def __getitem__(self, index: int) -> str: ...

  @overload
  def __getitem__(self, index: slice) -> list[str]: ...

  def __getitem__(self, index: int | slice) -> str | list[str]:
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    self._file.seek(self._starts[index])
    return _decode_line(self._file.readline(), self.numbers[index], self._path)

  def __iter__(self) -> Iterator[str]:
    return (self[i] for i in range(len(self)))


def _open_lines(path: os.PathLike) -> BinaryIO | io.BytesIO:
  """Opens a file, or reads the whole of a pipe that is open already."""
  if os.fspath(path).startswith(_OPEN_ALREADY):
    with open(path, 'rb') as file:
      return io.BytesIO(file.read())
  try:
    return open_regular(path)
  except FailureError as error:
    raise UsageError(str(error)) from error


def _decode_line(line: bytes, number: int, path: str | os.PathLike) -> str:
  try:
    return line.decode('utf-8-sig' if number == 1 else 'utf-8').strip()
  except UnicodeDecodeError as error:
    raise UsageError(
      f'{os.fspath(path)}, line {number}: not UTF-8 '
      f'(byte 0x{line[error.start]:02x}); save the file as UTF-8.'
    ) from error
