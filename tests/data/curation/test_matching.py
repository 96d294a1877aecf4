"""Which texts have which queries: whole words, whatever case and script."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.data.curation.matching import Matcher, normalise


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('St. Mary', 'st mary'),
    ("T-shirt, the dog's", 't shirt the dog s'),
    ('Straße ÉCOLE ﬁ', 'strasse école fi'),
    ('赤いTシャツ', '赤い t シャツ'),
    ('यह हिन्दी है', 'यह हिन्दी है'),
    ('!?', ''),
    ('', ''),
  ],
)
def test_words_are_small_letters_and_digits_with_single_spaces(text, words):
  assert normalise(text) == words
  assert normalise(words) == words


def test_queries_are_matched_as_whole_words_where_a_script_has_spaces():
  queries = ['cat', 'new york', '猫', 't シャツ', 'हिन्दी', 'ปลา', 'a']
  matcher = Matcher(queries)

  def match(text):
    return [queries[x] for x in matcher.match([text])[0].tolist()]

  assert match('A cat, in New-York! concatenated') == ['cat', 'new york', 'a']
  assert match('catalogue of new yorkers') == []
  assert match('黒猫が') == ['猫']
  assert match('赤いTシャツ') == ['t シャツ']
  assert match('यह हिन्दी है') == ['हिन्दी']
  assert match('กินปลา') == ['ปลา']
  assert match('cat cat CAT') == ['cat']


def test_matches_of_several_texts_are_told_apart_by_their_ends():
  matcher = Matcher(['one', 'two'])
  indices, ends = matcher.match(['two one', 'none', 'two'])
  assert indices.dtype == ends.dtype == np.int32
  assert indices.tolist() == [0, 1, 1]
  assert ends.tolist() == [0, 2, 2, 3]


_WORDS = st.sampled_from(['a', 'b', 'ab', 'ba', 'aab', 'b a'])


@given(
  st.lists(_WORDS, min_size=1, unique=True),
  st.lists(st.sampled_from(['a', 'b', 'ab', 'ba', 'aab', 'c']), max_size=8),
)
def test_every_query_of_a_text_is_found_and_no_other(queries, words):
  text = ' '.join(words)
  indices, _ = Matcher(queries).match([text])
  expected = [i for i, x in enumerate(queries) if f' {x} ' in f' {text} ']
  assert indices.tolist() == expected


@given(st.text())
def test_any_text_is_normalised_once_and_for_all(text):
  once = normalise(text)
  assert '  ' not in once
  assert normalise(once).split() == normalise(normalise(once)).split()
