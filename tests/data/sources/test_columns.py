import pytest

from clip_jax.data.sources import parse_spec
from clip_jax.data.sources.columns import (
  caption_columns,
  label_captions,
  number_labels,
  require_columns,
  texts_of,
)
from clip_jax.errors import UsageError

SPEC = parse_spec('csv:pairs.csv')


def test_labelled_data_may_lack_the_default_column_of_captions():
  assert caption_columns(SPEC, ('caption',), ['label'], labelled=True) == []
  for wanted, labelled in ((('caption',), False), (('title',), True)):
    with pytest.raises(UsageError, match=f"no column '{wanted[0]}'; it has"):
      caption_columns(SPEC, wanted, ['label'], labelled=labelled)


def test_an_error_about_a_column_says_what_to_do():
  for wanted, available, message in (
    ('image', ['filepath', 'title'], 'filepath, title: rename the column'),
    ('image', ['URL', 'TEXT'], 'TEXT, URL: clip-jax data fetch downloads'),
    ('caption', ['image', 'title'], r'image, title: --captions=NAME \(in a'),
    ('label', ['image'], 'it has image$'),
    ('image', [], 'it has none$'),
  ):
    with pytest.raises(UsageError, match=message):
      require_columns(SPEC, [wanted], available)


def test_captions_come_from_columns_in_the_order_that_was_asked_for():
  columns = caption_columns(SPEC, ('b', 'a'), ['a', 'b', 'c'], labelled=False)
  assert columns == ['b', 'a']


def test_a_cell_holds_a_text_or_a_list_of_texts():
  cells = ['one', 'zwei ü'.encode(), ['three', b'four'], []]
  assert texts_of(cells) == ['one', 'zwei ü', 'three', 'four']
  with pytest.raises(UnicodeDecodeError):
    texts_of([b'\xff'])


def test_labels_that_are_numbers_stay_and_others_are_numbered_by_name():
  assert number_labels(['7', '', '-1', '0']) == ([7, -1, -1, 0], None)
  names = ('cat', 'red_apple')
  assert number_labels(['red_apple', 'cat', '']) == ([1, 0, -1], names)
  assert number_labels(['7', 'cat']) == ([0, 1], ('7', 'cat'))


def test_the_names_of_labels_are_captions():
  assert label_captions(('cat', 'red_apple'), [1, -1]) == ['red apple']
