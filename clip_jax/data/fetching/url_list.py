"""Reads lists of URLs: Parquet, CSV, TSV, JSON lines or plain text.

The kind is told by the content. What is read at a time is a batch of rows, so
that a list may be longer than the memory.
"""

import codecs
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from clip_jax.data import storage
from clip_jax.data.sources.delimited import DelimitedRows
from clip_jax.errors import FailureError, UsageError
from clip_jax.files import is_url

Row = dict[str, Any]

# Names of columns that are tried where none is given, in any case of letters.
_DEFAULTS = {'url': ('url',), 'caption': ('caption', 'text')}
# Columns that are ours in what is written; a list's own get a prefix.
OUR_COLUMNS = (
  'key', 'status', 'error_message', 'width', 'height', 'original_width',
  'original_height',
)  # fmt: skip
# Columns whose cells stay texts, whatever they look like.
_TEXTS = ('url', 'caption', 'sha256')
_NUMBER = re.compile(r'-?(?:0|[1-9]\d{0,17})(\.\d+)?(?:[eE][+-]?\d{1,3})?')
_MAX_LINE = 2**24  # characters
_BATCH_ROWS = 10_000


class ListColumns(NamedTuple):
  """The names of a list's columns; '' is the usual name, if it is there.

  Attributes:
    url: of what is fetched: url, in any case of letters, unless it is given.
    caption: of the texts: caption or text, unless it is given.
  """

  url: str = ''
  caption: str = ''


def read_batches(path: str, columns: ListColumns) -> Iterator[pa.Table]:
  """Yields the rows of a list, some thousands at a time.

  The columns are called url, caption (if there is one), sha256 (if there is
  one), and as in the list. Captions are texts or, where a row has several,
  lists of texts.

  Raises:
    UsageError: the list has no such column, or is no list.
    FailureError: it cannot be read.
  """
  try:
    with storage.open_file(path) as file:
      if file.peek(4)[:4] == b'PAR1':
        yield from _read_parquet(path, cast(IO[bytes], file), columns)
        return
      if file.peek(2)[:2] == b'\x1f\x8b':
        file = gzip.open(file)  # type: ignore[assignment]  # noqa: SIM115
      text = io.TextIOWrapper(file, 'utf-8-sig', 'strict', newline='')
      rows = _read_rows(path, _lines(path, text), columns)
      while batch := list(itertools.islice(rows, _BATCH_ROWS)):
        yield _table_of(batch)
  except UnicodeDecodeError as error:
    raise UsageError(
      f'{path}: not UTF-8 ({error.reason}): save the list as UTF-8.'
    ) from error
  except (EOFError, zlib.error, OSError, pa.ArrowException) as error:
    raise FailureError(f'{path}: damaged: {error}') from error


def _read_parquet(
  path: str, file: IO[bytes], columns: ListColumns
) -> Iterator[pa.Table]:
  parquet = pq.ParquetFile(file)
  names = _new_names(path, parquet.schema_arrow.names, columns)
  for batch in parquet.iter_batches(_BATCH_ROWS):
    table = pa.Table.from_batches([batch]).rename_columns(names)
    yield _with_caption_lists(table) if _has_caption_lists(table) else table


def _new_names(
  path: str, available: Sequence[str], columns: ListColumns
) -> list[str]:
  """Returns the names that a list's columns get.

  Raises:
    UsageError: there is no column of URLs, or none of a name that was given.
  """
  url = _find(path, available, 'url', columns.url)
  if url is None:
    raise UsageError(
      f'{path}: no column url; it has {", ".join(available)}: name the one of '
      'URLs by --url_column.'
    )
  caption = _find(path, available, 'caption', columns.caption)
  renamed = {url: 'url'} | ({caption: 'caption'} if caption else {})
  names: list[str] = []
  for name in available:
    new = renamed.get(name, name)
    taken = ('url', 'caption', *OUR_COLUMNS) if name not in renamed else ()
    while new in taken or new in names:
      new = f'list_{new}'
    names.append(new)
  return names


def _find(
  path: str, available: Sequence[str], kind: str, wanted: str
) -> str | None:
  if wanted:
    if wanted not in available:
      raise UsageError(
        f'{path}: no column {wanted!r}; it has {", ".join(available)}.'
      )
    return wanted
  for usual in _DEFAULTS[kind]:
    for name in available:
      if name.lower() == usual:
        return name
  return None


def _lines(path: str, text: io.TextIOWrapper) -> Iterator[str]:
  """Yields lines, with their ends.

  Raises:
    UsageError: one is longer than any line of a list.
  """
  while line := text.readline(_MAX_LINE):
    if len(line) == _MAX_LINE:
      raise UsageError(f'{path}: a line of over {_MAX_LINE:,} characters.')
    yield line


def _read_rows(
  path: str, lines: Iterator[str], columns: ListColumns
) -> Iterator[Row]:
  filled = ((n, line) for n, line in enumerate(lines) if line.strip())
  empty, first = next(filled, (0, ''))
  # With the empty lines before, so that errors name the right line.
  every = itertools.chain(itertools.repeat('\n', empty), [first], lines)
  start = first.lstrip()
  if not start:
    raise UsageError(f'{path}: no URLs in it.')
  if '\0' in start:
    raise UsageError(
      f'{path}: neither Parquet nor text: use Parquet, CSV, TSV, JSON lines, '
      'or a URL a line.'
    )
  if start.startswith('{'):
    yield from _read_json_lines(path, every, columns)
  elif start.startswith('['):
    raise UsageError(f'{path}: a JSON array: save an object a line instead.')
  elif start.lower().startswith(('http://', 'https://')):
    yield from _read_plain(every)
  else:
    yield from _read_delimited(path, first, every, columns)


def _read_plain(lines: Iterable[str]) -> Iterator[Row]:
  """Yields a URL a line, with a caption where a tab follows it."""
  for line in lines:
    url, tab, caption = line.strip().partition('\t')
    if url:
      yield {'url': url.strip(), **({'caption': caption} if tab else {})}


def _read_json_lines(
  path: str, lines: Iterable[str], columns: ListColumns
) -> Iterator[Row]:
  """Yields the objects; a line that is none has no URL."""
  known: dict[tuple[str, ...], list[str]] = {}
  for line in lines:
    if not line.strip():
      continue
    try:
      content = json.loads(line)
    except (ValueError, RecursionError):
      content = None
    if not isinstance(content, dict):
      yield {'url': None}
      continue
    keys = tuple(content)
    if keys not in known:
      try:
        known[keys] = _new_names(path, keys, columns)
      except UsageError:
        if not known:  # in the first line: it is the list's fault
          raise
        yield {'url': None}
        continue
    yield dict(zip(known[keys], content.values(), strict=True))


def _read_delimited(
  path: str, header: str, lines: Iterator[str], columns: ListColumns
) -> Iterator[Row]:
  """Yields the rows of a table with a header.

  Raises:
    UsageError: a row has more cells than the header, or a quote that does not
      close; the message names the line.
  """
  names: list[str] = []

  def is_row(cells: Sequence[str]) -> bool:
    return bool(names) and is_url(cells[names.index('url')].strip())

  delimiter = max('\t,;|', key=header.count)
  rows = DelimitedRows(path, lines, delimiter, is_row, _MAX_LINE)
  _, first = next(rows, (0, []))
  names += _new_names(path, [cell.strip() for cell in first], columns)
  for _, cells in rows:
    cells += [''] * (len(names) - len(cells))
    yield {
      name: cell if name in _TEXTS else _value_of(cell)
      for name, cell in zip(names, cells, strict=False)
    }


def _value_of(cell: str) -> str | int | float | None:
  """Returns a cell as a number, if it is one; an empty one is None.

  What a number would write otherwise is a text, such as the id 12e4 or 3.10.
  """
  if not cell:
    return None
  number = json.loads(cell) if _NUMBER.fullmatch(cell) else None
  return number if json.dumps(number) == cell else cell


def join_batches(batches: Sequence[pa.Table]) -> pa.Table:
  """Joins batches; columns of several types become text, captions lists."""
  if not batches:
    return pa.table({})
  if any(map(_has_caption_lists, batches)):
    batches = [_with_caption_lists(batch) for batch in batches]
  try:
    return pa.concat_tables(batches, promote_options='permissive')
  except pa.ArrowException:
    return pa.concat_tables(
      [_table_of(batch.to_pylist(), as_text=True) for batch in batches],
      promote_options='permissive',
    )


def _table_of(rows: Sequence[Row], *, as_text: bool = False) -> pa.Table:
  """Returns rows as a table; values of several types become JSON text."""
  names = dict.fromkeys(name for row in rows for name in row)
  arrays: dict[str, pa.Array] = {}
  for name in names:
    values = [_without_surrogates(row.get(name)) for row in rows]
    if name == 'caption' and any(isinstance(x, list) for x in values):
      arrays[name] = _caption_lists(values)
      continue
    try:
      arrays[name] = pa.array(values, pa.string() if as_text else None)
    except (pa.ArrowException, OverflowError):
      arrays[name] = pa.array(
        [None if x is None else _text_of(x) for x in values], pa.string()
      )
  return pa.table(arrays)


def has_several_captions(table: pa.Table) -> bool:
  """Returns whether a row has more than one caption."""
  if not _has_caption_lists(table):
    return False
  return any(len(x or ()) > 1 for x in table.column('caption').to_pylist())


def _has_caption_lists(table: pa.Table) -> bool:
  if 'caption' not in table.column_names:
    return False
  kind, types = table.schema.field('caption').type, pa.types
  return types.is_list(kind) or types.is_large_list(kind)


def _with_caption_lists(table: pa.Table) -> pa.Table:
  """Returns rows that have lists of texts as their captions."""
  if 'caption' not in table.column_names:
    return table
  position = table.column_names.index('caption')
  lists = _caption_lists(table.column('caption').to_pylist())
  return table.set_column(position, 'caption', lists)


def _caption_lists(values: Sequence[Any]) -> pa.Array:
  """Returns lists of texts; null where a row has no value."""
  lists = [x if isinstance(x, list | None) else [x] for x in values]
  return pa.array(
    [x and [_text_of(item) for item in x if item is not None] for x in lists],
    pa.list_(pa.string()),
  )


def _text_of(value: Any) -> str:
  """Returns a value of JSON as text."""
  if isinstance(value, str):
    return _without_surrogates(value)
  return json.dumps(value, default=str)


def _without_surrogates(value: Any) -> Any:
  """Returns a value of JSON, whose escapes may make half a character."""
  if isinstance(value, str):
    return codecs.encode(value, 'utf-8', 'replace').decode()
  return value
