"""Texts of the web, as a person would read them, and their languages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.data.curation.cleaning import (
  check_languages,
  clean,
  languages_of,
)
from clip_jax.errors import UsageError


@pytest.mark.parametrize(
  ('text', 'cleaned'),
  [
    ('a &amp;amp; b', 'a & b'),
    ('a <b>bold</b> <br/>word<!-- no\n -->', 'a bold word'),
    ('&lt;p&gt;Hi&lt;/p&gt;', 'Hi'),
    ('1 < 2 > 0, I <3 you', '1 < 2 > 0, I <3 you'),
    ('schÃ¶n', 'schön'),
    ('e\u0301tude', 'étude'),
    ('tab\tnew\nline\u00a0 no\u200bthing\x00', 'tab new line no thing'),
    ('\u202eright to left', 'right to left'),
    ('plain', 'plain'),
    ('<b></b>', ''),
  ],
)
def test_texts_are_cleaned(text, cleaned):
  assert clean(text) == cleaned


@given(st.text())
def test_a_cleaned_text_is_one_line_without_control_characters(text):
  cleaned = clean(text)
  assert cleaned == ' '.join(cleaned.split())
  assert not any(x < ' ' or '\x7f' <= x <= '\x9f' for x in cleaned)


def test_languages_are_told():
  texts = [
    'A small dog is playing with a ball in the garden',
    'Ein kleiner Hund spielt mit einem Ball im Garten',
    'Un petit chien joue avec une balle dans le jardin',
    '小さな犬が庭でボールで遊んでいます',
    '',
  ]
  assert languages_of(texts)[:4] == ['en', 'de', 'fr', 'ja']


def test_unknown_languages_are_refused():
  check_languages(['en', 'de'])
  check_languages([])
  with pytest.raises(UsageError, match='--languages=english: use all, or ISO'):
    check_languages(['english'])
