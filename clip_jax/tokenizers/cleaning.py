"""Text repair, as in the original: what the byte-pair encoding sees.

Mojibake and HTML entities are undone, blanks become single spaces, letters
small. `clean` is what CLIP was trained with; `canonicalize` also drops the
punctuation, as SigLIP's authors do.
"""

import html
import re
import string

import ftfy

# ASCII that no step of `repair` changes but at its ends: no entity, none of
# the control characters that ftfy removes (it leaves tab, line feed, form
# feed and, as a line feed, carriage return: all blanks in the end).
_IN_ORDER = re.compile(r"[\t\n\f\r -%'-~]*").fullmatch
_NO_PUNCTUATION = str.maketrans('_', ' ', string.punctuation.replace('_', ''))


def in_order(text: str) -> bool:
  """Whether `repair` would leave the text as it is, blanks aside."""
  if text.isascii() and text.isprintable():
    return '&' not in text
  return _IN_ORDER(text) is not None


def repair(text: str) -> str:
  """Characters repaired; blanks and letters as they were."""
  if in_order(text):
    return text
  # The original unescapes twice; ftfy does so too where there is no '<'.
  return html.unescape(html.unescape(ftfy.fix_text(text)))


def words(text: str) -> list[str]:
  """What stands between the blanks of the repaired text, in small letters."""
  return repair(text).lower().split()


def clean(text: str) -> str:
  """Repaired, in small letters, single spaces."""
  return ' '.join(words(text))


def canonicalize(text: str) -> str:
  """As `clean`, without ASCII punctuation; '_' is a blank."""
  return ' '.join(repair(text).translate(_NO_PUNCTUATION).lower().split())
