"""The two kinds of error that a user meets, and the warnings beside them.

A message is one line: what was wrong, where, and what would be right.
"""

import itertools
import sys
from collections.abc import Collection, Iterable, Sequence

_MAX_MESSAGE = 600  # characters; names and values in it may come from a file


class UsageError(ValueError):
  """The call was wrong (exit code 2): a flag, a key, a path, a SPEC."""

  def __str__(self) -> str:
    return one_line(super().__str__())


class FailureError(RuntimeError):
  """The call was right and the work failed (exit code 1)."""

  def __str__(self) -> str:
    return one_line(super().__str__())


class MissingModelError(UsageError, FileNotFoundError):
  """A reference to a model that is not there (exit code 2)."""


class MissingFileError(FailureError, FileNotFoundError):
  """A file that was named and is not there (exit code 1)."""


def print_warnings(lines: Iterable[str]) -> None:
  """Prints each different line once on stderr: what makes results doubtful."""
  _print_once('warning', lines)


def print_notes(lines: Iterable[str]) -> None:
  """Prints each different line once on stderr: what is good to know."""
  _print_once('note', lines)


def _print_once(kind: str, lines: Iterable[str]) -> None:
  for line in dict.fromkeys(lines):
    print(f'{kind}: {one_line(line)}', file=sys.stderr)


def one_line(text: str) -> str:
  """Returns a text as one line that a terminal can show.

  Control characters, which could move its cursor or change its colours, and
  surrogates, which stand for bytes of file names that are not UTF-8, are
  escaped; the middle of a long text is left out.
  """
  line = ' '.join(part.strip() for part in text.splitlines() if part.strip())
  line = ''.join(x if x.isprintable() else escaped(x) for x in line)
  if len(line) > _MAX_MESSAGE:
    line = f'{line[: _MAX_MESSAGE * 2 // 3]} … {line[-_MAX_MESSAGE // 3 :]}'
  return line


def escaped(character: str) -> str:
  """Returns a character's escape in ASCII: \\xe9, \\u2026."""
  return character.encode('unicode_escape', 'backslashreplace').decode('ascii')


def reason_of(error: OSError) -> str:
  """Returns why the system refused: 'no space left on device'."""
  return (error.strerror or str(error)).lower()


def first_few(texts: Sequence[str], separator: str = ', ') -> str:
  """Returns the first three of some texts, and how many more there are."""
  more = f' and {len(texts) - 3:,} more' if len(texts) > 3 else ''
  return f'{separator.join(texts[:3])}{more}'


def quote_first(names: Iterable[str], count: int) -> str:
  """Returns up to three of `count` names in quotation marks."""
  shown = [repr(name) for name in itertools.islice(names, 3)]
  return ', '.join(shown) + (', …' if count > len(shown) else '')


def plural(count: int, word: str) -> str:
  """Returns '1 image' or '1,200 images'."""
  return f'{count:,} {word}{"" if count == 1 else "s"}'


def check_choice(name: str, value: str, known: Collection[str]) -> None:
  """Refuses a value that is none of a few.

  Raises:
    UsageError: it names what was set, and what is known.
  """
  if value not in known:
    raise UsageError(f'{name}={value!r}: choose one of {", ".join(known)}.')
