"""Cleans texts before they are tokenised, in one of the ways of open_clip.

Mojibake and HTML entities are undone, as in the original, and blanks become
single spaces. Then, as in open_clip's `tokenizer_kwargs.clean`,

  lower         makes letters small: what CLIP was trained with
  whitespace    leaves them
  canonicalize  makes them small and drops the punctuation: SigLIP
"""

import html
import re
import string
from collections.abc import Callable

import ftfy

from clip_jax.errors import UsageError

# ASCII that no step of `repair` changes but at its ends: no entity, none of
# the control characters that ftfy removes (it leaves tab, line feed, form
# feed and, as a line feed, carriage return: all blanks in the end).
_IN_ORDER = re.compile(r"[\t\n\f\r -%'-~]*").fullmatch
_NO_PUNCTUATION = str.maketrans('_', ' ', string.punctuation.replace('_', ''))


def in_order(text: str) -> bool:
  """Returns whether `repair` would leave the text as it is, blanks aside."""
  if text.isascii() and text.isprintable():
    return '&' not in text
  return _IN_ORDER(text) is not None


def repair(text: str) -> str:
  """Returns the text with its characters repaired, its blanks as they were."""
  if in_order(text):
    return text
  # The original unescapes twice; ftfy does so too where there is no '<'.
  return html.unescape(html.unescape(ftfy.fix_text(text)))


def _lower_words(text: str) -> list[str]:
  """Returns the words of the repaired text, in small letters."""
  return repair(text).lower().split()


def _words_as_written(text: str) -> list[str]:
  return repair(text).split()


def _words_without_punctuation(text: str) -> list[str]:
  """Removes ASCII punctuation, and makes '_' a blank."""
  return repair(text).translate(_NO_PUNCTUATION).lower().split()


WORDS: dict[str, Callable[[str], list[str]]] = {
  'lower': _lower_words,
  'whitespace': _words_as_written,
  'canonicalize': _words_without_punctuation,
}


def cleaner_named(cleaning: str) -> Callable[[str], list[str]]:
  """Returns the function of a name in `WORDS`, from a text to cleaned words.

  Raises:
    UsageError: there is no such name.
  """
  if not isinstance(cleaning, str) or cleaning not in WORDS:
    raise UsageError(
      f'no cleaning {cleaning!r} of texts: one of {", ".join(WORDS)}.'
    )
  return WORDS[cleaning]


def clean(text: str, cleaning: str = 'lower') -> str:
  """Returns the cleaned text, its words one space apart."""
  return ' '.join(cleaner_named(cleaning)(text))
