"""Text repair: the fast path never differs from the whole repair."""

import html

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.errors import UsageError
from clip_jax.tokenizers import cleaning
from tests.tokenizers import byte_pair_reference as reference
from tests.tokenizers.test_clip import ENTRIES, GOLDEN, UNICODE


def test_every_golden_text():
  for entry in ENTRIES:
    assert cleaning.clean(entry['text']) == entry['clean']


@pytest.mark.parametrize('case', GOLDEN['clean_functions'])
def test_golden_cleaners(case):
  for name in ('lower', 'canonicalize', 'whitespace'):
    assert cleaning.clean(case['text'], name) == case[name]


def test_an_unknown_cleaning_names_the_known():
  with pytest.raises(UsageError, match=r"'upper' .* lower, whitespace, canon"):
    cleaning.cleaner_named('upper')


def test_every_ascii_character_alone_and_inside_words():
  for code in range(128):
    for text in (chr(code), f'a{chr(code)}b', f' {chr(code)}\r\nx'):
      assert cleaning.clean(text) == reference.clean(text), repr(text)


@settings(max_examples=300)
@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_text_in_order_is_left_alone_by_the_repair(text):
  if cleaning.in_order(text):
    repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
    assert repaired.split() == text.split()
  assert cleaning.clean(text) == reference.clean(text)


@settings(max_examples=200)
@given(UNICODE)
def test_any_text_equals_the_reference(text):
  assert cleaning.clean(text) == reference.clean(text)
