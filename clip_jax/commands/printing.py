"""What the verbs share on the way in and out: word lists, JSON, progress."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from clip_jax.errors import UsageError


def print_json(value: Any) -> None:
  """One JSON document on stdout."""
  print(json.dumps(value, ensure_ascii=False, indent=2))


def watch(items: Iterable[Any], total: int, unit: str) -> Iterator[Any]:
  """Shows on stderr how far an iteration is: a bar on a terminal; elsewhere a
  line every ten seconds, so that short work says nothing.

  Args:
    items: passed on as they are.
    total: how many there will be.
    unit: what they are: 'images'.
  """
  if sys.stderr.isatty():
    from tqdm import tqdm

    # leave=False: the bar makes way for the result.
    yield from tqdm(items, total=total, unit=f' {unit}', leave=False)
    return
  said = time.monotonic()
  for done, item in enumerate(items):
    if time.monotonic() - said > 10:
      said = time.monotonic()
      print(f'{done:,} of {total:,} {unit}', file=sys.stderr, flush=True)
    yield item


def report_corrupt(corrupt: dict[str, str]) -> None:
  """Names on stderr the pictures that were left out, up to five."""
  if not corrupt:
    return
  for key, reason in list(corrupt.items())[:5]:
    print(f'left out {key}: {reason}', file=sys.stderr)
  print(f'{len(corrupt):,} corrupt in all.', file=sys.stderr)


def words_of(flag: str, value: str) -> list[str]:
  """The items of a flag: 'a,b,c', or '@FILE' with one a line.

  Raises:
    UsageError: the file is missing or is not UTF-8.
  """
  if value.startswith('@'):
    return [text for _, text in lines_of(flag, value[1:])]
  return [word.strip() for word in value.split(',')] if value.strip() else []


def lines_of(flag: str, path: str) -> list[tuple[int, str]]:
  """The lines of a UTF-8 file that are not blank, with their numbers from 1.

  Raises:
    UsageError: it is missing, or a line of it is not UTF-8.
  """
  try:
    with open(path, 'rb') as file:
      lines = file.read().split(b'\n')
  except OSError as error:
    raise UsageError(
      f'--{flag}: {path}: {(error.strerror or str(error)).lower()}.'
    ) from error
  found = []
  for number, line in enumerate(lines, 1):
    try:
      text = line.decode('utf-8-sig' if number == 1 else 'utf-8').strip()
    except UnicodeDecodeError as error:
      raise UsageError(
        f'--{flag}: {path}, line {number}: not UTF-8 '
        f'(byte 0x{line[error.start]:02x}); save the file as UTF-8.'
      ) from error
    if text:
      found.append((number, text))
  return found


def require(value: str | None, flag: str, example: str) -> str:
  """A flag's value.

  Raises:
    UsageError: it was not given.
  """
  if not value:
    raise UsageError(f'no --{flag}: {example}.')
  return value


def no_words(verb: str, words: list[str]) -> None:
  """Refuses arguments that are not flags.

  Raises:
    UsageError: there are some.
  """
  if words:
    raise UsageError(f'{verb} takes flags only, not {words[0]!r}.')
