"""Reads a table of delimited text, as spreadsheets save it, row by row.

A quote that never closes makes the rest of the file one cell, and a comma that
is not quoted one more. Python's own reader accepts that in silence; here it is
an error, which names the line.
"""

import csv
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from clip_jax.errors import UsageError

_DELIMITERS = {',': 'comma', '\t': 'tab', ';': 'semicolon', '|': 'bar'}
_MAX_CELL = 2**31 - 1  # characters; Python's own limit is 131,072
_QUOTED = re.compile(r'"(?:[^"]|"")*+" *')
_SPACE = re.compile(' *')
_LINE_BREAK = re.compile(r'\r\n|\r|\n')


class DelimitedTable:
  """The rows of a table with a header.

  Attributes:
    columns: the header's names, in order.
  """

  def __init__(self, path: str, text: str, image: str):
    """Reads the header.

    Args:
      path: of the table; paths of images are relative to its folder.
      text: the whole file.
      image: the name of the column of images, which tells what separates
        the columns: commas, tabs, semicolons or bars.
    Raises:
      UsageError: the header is damaged.
    """
    self._path = path
    self._image = image
    delimiter, lines = self._find_delimiter(text)
    self._rows = DelimitedRows(path, lines, delimiter, self._is_row)
    self.columns: Sequence[str] = ()
    self._header_line, header = next(self._rows, (1, []))
    self.columns = [cell.strip() for cell in header]
    if any('\0' in name for name in self.columns):
      raise UsageError(
        f'{path}: NUL characters in the header, so this is not UTF-8: save '
        'the file as UTF-8'
      )

  def require_single(self, names: Iterable[str]) -> None:
    """Refuses columns of the same name, of which only one would be read.

    Raises:
      UsageError: two have one name; the message names the header's line.
    """
    for name in names:
      if (times := self.columns.count(name)) > 1:
        raise UsageError(
          f'{self._path}, line {self._header_line}: {times} columns are '
          f'called {name!r}: rename all but one'
        )

  def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the line where each row begins, and its cells by column.

    Space around cells is removed, missing cells are '', and empty rows are
    skipped.

    Raises:
      UsageError: a row has more cells than the header, or a quote that does
        not close; the message names the line.
    """
    for line, cells in self._rows:
      row = dict.fromkeys(self.columns, '')
      row.update(zip(self.columns, map(str.strip, cells), strict=False))
      yield line, row

  def _is_row(self, cells: Sequence[str]) -> bool:
    """Returns whether a line within a cell is a row: it names a file."""
    if self._image not in self.columns:
      return False
    name = cells[self.columns.index(self._image)].strip()
    folder = os.path.dirname(self._path)
    path = os.path.join(folder, os.path.expanduser(name))
    return bool(name) and os.path.isfile(path)

  def _find_delimiter(self, text: str) -> tuple[str, Iterable[str]]:
    """Finds the delimiter by which the header has the column of images.

    Returns:
      The delimiter, and the lines of the table.
    """
    lines: Iterable[str] = io.StringIO(text, newline='')
    first = re.finditer(r'[^\r\n]+', text)
    header = next(first, [''])[0]
    if match := re.fullmatch(r'sep=(.)', header):  # a line of Excel's own
      next(lines)
      lines = itertools.chain(['\n'], lines)  # so that lines keep their numbers
      header = next(first, [''])[0]
      if match[1] in _DELIMITERS:
        return match[1], lines

    def fitness(delimiter: str) -> tuple[bool, int]:
      cells = next(csv.reader([header], delimiter=delimiter), [])
      return self._image in [cell.strip() for cell in cells], len(cells)

    return max(_DELIMITERS, key=fitness), lines


class DelimitedRows(Iterator[tuple[int, list[str]]]):
  """The rows of a delimited text, each with the line where it begins.

  The first row is the header. No other row may have more cells, unless they are
  empty. Empty rows are skipped. Only one row is held in memory.
  """

  def __init__(
    self,
    path: str,
    lines: Iterable[str],
    delimiter: str,
    is_row: Callable[[Sequence[str]], bool],
    max_cell: int = _MAX_CELL,
  ):
    """Remembers what to read; no line is read yet.

    Args:
      path: of the text, for errors.
      lines: with their ends.
      delimiter: a comma, tab, semicolon or bar.
      is_row: tells of the cells of a line within a quoted cell, as many as the
        header's, whether they are a row that the quote swallowed.
      max_cell: characters of a cell.
    """
    csv.field_size_limit(max_cell)
    self._path = path
    self._lines = _Lines(lines)
    self._delimiter = delimiter
    self._is_row = is_row
    self._rows = self._read(self._lines)
    self._width = 0

  def __next__(self) -> tuple[int, list[str]]:
    """Returns the next row.

    Raises:
      UsageError: it has more cells than the header, or a quote that does not
        close; the message names the line.
    """
    while True:
      self._lines.of_row.clear()
      line = self._lines.count + 1
      try:
        cells = next(self._rows, [])
      except csv.Error as error:  # such as a cell that is too long
        self._check_quotes(line)
        raise UsageError(
          f'{self._path}, line {line}: not a table: {error}'
        ) from error
      if not self._lines.of_row:
        raise StopIteration
      self._check_quotes(line)
      if any(cell.strip() for cell in cells):
        self._check_width(line, cells)
        return line, cells

  def _check_width(self, line: int, cells: Sequence[str]) -> None:
    self._width = self._width or len(cells)
    if any(cell.strip() for cell in cells[self._width :]):
      raise UsageError(
        f'{self._path}, line {line}: {len(cells)} cells, where the header has '
        f'{self._width}: put a text with a {_DELIMITERS[self._delimiter]} in '
        'it into double quotes'
      )

  def _check_quotes(self, first: int) -> None:
    """Refuses a row of several lines of which a cell is not closed.

    Args:
      first: the line where the row begins.
    """
    if len(self._lines.of_row) == 1 and not self._lines.ended:
      return
    text = ''.join(self._lines.of_row)
    for start in self._cell_starts(text):
      if text[start : start + 1] != '"':
        continue
      quoted = _QUOTED.match(text, start)
      end = quoted.end() if quoted else start
      closed = text[end : end + 1] in ('', '\r', '\n', self._delimiter)
      within = _LINE_BREAK.split(text[start:end])[1:]
      if not closed or any(map(self._is_swallowed, within)):
        line = first + len(_LINE_BREAK.findall(text, 0, start))
        raise UsageError(
          f'{self._path}, line {line}: a double quote opens a cell that is '
          'not closed in its row: close it, or write quotes within a text '
          'twice ("")'
        )

  def _cell_starts(self, text: str) -> Iterator[int]:
    """Yields where the cells of a row begin, behind space."""
    start = 0
    while 0 <= start < len(text):
      space = _SPACE.match(text, start)
      start = space.end() if space else start
      yield start
      quoted = _QUOTED.match(text, start)
      end = text.find(self._delimiter, quoted.end() if quoted else start)
      start = end + 1 if end >= 0 else -1

  def _is_swallowed(self, line: str) -> bool:
    """Returns whether a line within a cell is a row."""
    cells = next(self._read([line]), [])
    return len(cells) == self._width and self._is_row(cells)

  def _read(self, lines: Iterable[str]) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=self._delimiter, skipinitialspace=True)


class _Lines(Iterator[str]):
  """Lines, for a reader that may join them into a row.

  Attributes:
    count: the number of lines read so far.
    of_row: the lines read since this list was cleared.
    ended: whether the reader asked for a line after the last one.
  """

  def __init__(self, lines: Iterable[str]):
    self._lines = iter(lines)
    self.count = 0
    self.of_row: list[str] = []
    self.ended = False

  def __next__(self) -> str:
    line = next(self._lines, None)
    if line is None:
      self.ended = True
      raise StopIteration
    self.count += 1
    self.of_row.append(line)
    return line
