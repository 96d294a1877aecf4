"""Cleans texts of the web, and tells their language."""

import functools
import html
import re
from collections.abc import Sequence
from typing import Any

import ftfy

from clip_jax.errors import UsageError

_TAG = re.compile(r'<!--.*?-->|</?[a-zA-Z][^<>]{0,500}>', re.DOTALL)
# Control characters, and those that only change how others are shown.
_CONTROL = re.compile(
  r'[\x00-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069'
  r'\ufeff\ufff9-\ufffc]'
)


def clean(text: str) -> str:
  """Returns a text as a person would read it, on one line.

  HTML entities and tags go, mojibake is repaired and Unicode is in NFC (ftfy),
  control characters are blanks, and blanks are single spaces.
  """
  if not (text.isascii() and text.isprintable() and '&' not in text):
    # The web escapes some texts twice.
    text = ftfy.fix_text(html.unescape(html.unescape(text)))
    text = _CONTROL.sub(' ', text)
  if '<' in text:
    text = _TAG.sub(' ', text)
  return ' '.join(text.split())


@functools.cache
def _identifier() -> Any:
  try:
    from py3langid import langid
  except ImportError as error:
    raise UsageError(
      'languages need an extra: pip install ".[curate]"'
    ) from error
  return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)


def known_languages() -> list[str]:
  """Returns the ISO 639-1 codes of the languages that can be told, sorted.

  Raises:
    UsageError: py3langid is not installed.
  """
  return sorted(_identifier().labels)


def check_languages(languages: Sequence[str]) -> None:
  """Refuses codes of languages that cannot be told.

  Raises:
    UsageError: one is not known, or py3langid is not installed.
  """
  if not languages:
    return
  known = known_languages()
  for language in languages:
    if language not in known:
      raise UsageError(
        f'--languages={language}: use all, or ISO 639-1 codes among '
        f'{", ".join(known)}.'
      )


def languages_of(texts: Sequence[str]) -> list[str]:
  """Returns the language of each text, as an ISO 639-1 code.

  The model is py3langid's, of 97 languages; a text of a few words, or of names
  alone, has hardly a language, and its code is a guess.
  """
  classify = _identifier().classify
  return [classify(text)[0] for text in texts]
