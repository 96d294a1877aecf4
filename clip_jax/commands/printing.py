"""Prints results: metrics, JSON, and text that any terminal can show."""

import codecs
import io
import json
import math
import re
import sys
from typing import Any

from clip_jax.errors import escaped, one_line

# The last words of the names of what is counted, such as overlap_examples.
_COUNTED = ('examples', 'texts', 'templates', 'groups', 'classes')
_PLAIN = ('p_value', 'C')
# And of differences of two rates, which are points and no percentages.
_POINTS = ('gain', 'robustness', 'difference', 'minus_clean')


# How our own characters look where a terminal has ASCII only.
_ASCII = {
  '…': '...', '█': '#', '–': '-', '—': '-', '→': '->', '×': 'x', '·': '-',
  '±': '+-', '≤': '<=', '≥': '>=', '°': ' degrees', ' ': ' ', '’': "'",
}  # fmt: skip
_HANDLER = 'clip_jax'


def print_everything(*streams: Any) -> None:
  """Lets streams print any text: what their encoding lacks is replaced.

  Of our own characters by what is near to them in ASCII, of others, such as
  surrogates, which stand for bytes of file names that are not UTF-8, by their
  escapes.
  """
  codecs.register_error(_HANDLER, _replaced)
  for stream in streams:
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors=_HANDLER)


def _replaced(error: UnicodeError) -> tuple[str, int]:
  if not isinstance(error, UnicodeEncodeError):
    raise error
  text = error.object[error.start : error.end]
  return ''.join(_ASCII.get(x) or escaped(x) for x in text), error.end


def say(line: str) -> None:
  """Prints a line on stderr, for the person who waits."""
  print(line, file=sys.stderr)


def print_json(value: Any) -> None:
  """Prints one JSON document, in ASCII where stdout is not UTF-8.

  Surrogates, of file names that are not UTF-8, are escaped, as os.fsencode
  takes them back; numbers that are not finite, which JSON has not, are null.
  """
  utf8 = codecs.lookup(sys.stdout.encoding or 'ascii').name == 'utf-8'
  text = json.dumps(_finite(value), ensure_ascii=not utf8, indent=2)
  print(re.sub('[\ud800-\udfff]', lambda x: f'\\u{ord(x[0]):04x}', text))


def _finite(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _finite(x) for key, x in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(x) for x in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def metric(name: str, value: float) -> str:
  """Returns the value of an evaluator's metric as it is printed.

  That is a count, a fraction in percent, or a difference of two in points.
  """
  if name in _PLAIN:
    return f'{value:10.4g}'
  if name.split('_')[-1] in _COUNTED or name.startswith('shots_to_match'):
    whole = value == int(value)
    return f'{value:8,.0f}' if whole else f'{value:10,.1f}'
  if name.endswith(_POINTS):
    return f'{100 * value:+8.2f} points'
  return f'{100 * value:8.2f} %'


def chance(level: float | None) -> str:
  """' (chance 0.5 %)', beside an accuracy; '' where there is no level."""
  return '' if level is None else f' (chance {100 * level:.3g} %)'


def report_corrupt(corrupt: dict[str, str]) -> None:
  """Names on stderr the images that were left out, up to five."""
  if not corrupt:
    return
  for key, reason in list(corrupt.items())[:5]:
    print(one_line(f'left out {key}: {reason}'), file=sys.stderr)
  print(f'{len(corrupt):,} corrupt in all.', file=sys.stderr)
