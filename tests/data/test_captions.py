"""Which captions are drawn, from weighted columns and through filters."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_jax.data import captions
from clip_jax.data.captions import CaptionRule
from clip_jax.data.examples import CaptionChoice
from clip_jax.data.pipeline import training_batches
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.sources import open_source
from clip_jax.errors import FailureError, UsageError
from tests.data.images import write_images
from tests.data.sources.tables import rows, write_parquet


def record(texts, columns=None):
  made = {'id': 'x', 'image': b'', 'caption': texts}
  return made if columns is None else made | {'columns': columns}


def lengths(texts):
  """A tokenizer of two tokens: the length of the text and its first letter."""
  return np.array([[len(x), ord(x[0])] for x in texts], np.int32)


def batches(source, **options):
  """Batches of four of small images."""
  return training_batches(
    source, tokenizer=lengths, preprocessing=Preprocessing(8), batch_size=4,
    seed=1, threads=0, **options,
  )  # fmt: skip


def test_without_weights_each_text_is_as_likely():
  choice = CaptionChoice(
    *CaptionRule().choose(record(['a', 'b', 'c'], [0, 0, 1]))
  )
  assert choice == CaptionChoice(['a', 'b', 'c'])
  rng, twin = np.random.default_rng(3), np.random.default_rng(3)
  assert [choice.draw(rng) for _ in range(50)] == [
    'abc'[twin.integers(3)] for _ in range(50)
  ]


def test_a_single_caption_takes_no_number_of_the_generator():
  rng = np.random.default_rng(3)
  assert CaptionChoice(['a']).draw(rng) == 'a'
  assert rng.integers(100) == np.random.default_rng(3).integers(100)


def test_columns_are_drawn_by_their_weights():
  rule = CaptionRule((0.75, 0.25, 0.0))
  choice = CaptionChoice(*rule.choose(record(list('abcd'), [0, 0, 1, 2])))
  assert choice == CaptionChoice(['a', 'b', 'c'], [0.375, 0.375, 0.25])
  rng = np.random.default_rng(0)
  drawn = collections.Counter(choice.draw(rng) for _ in range(4000))
  assert abs(drawn['c'] / 4000 - 0.25) < 0.03
  assert abs(drawn['a'] / 4000 - 0.375) < 0.03


def test_a_record_that_lacks_a_column_has_the_others():
  rule = CaptionRule((0.75, 0.2, 0.05))
  choice = CaptionChoice(*rule.choose(record(['x', 'y'], [1, 2])))
  assert choice.probabilities == pytest.approx([0.8, 0.2])
  assert not CaptionRule((1.0, 0.0)).choose(record(['x'], [1]))[0]


@given(
  st.lists(st.tuples(st.text(min_size=1), st.integers(0, 2)), max_size=6),
  st.tuples(*[st.floats(0.001, 1000)] * 3),
)
def test_probabilities_are_those_of_the_columns_that_are_there(pairs, weights):
  texts, columns = [x for x, _ in pairs], [x for _, x in pairs]
  choice = CaptionChoice(*CaptionRule(weights).choose(record(texts, columns)))
  if not pairs:
    assert choice.texts == []
    return
  assert sum(choice.probabilities) == pytest.approx(1)
  present = sum(weights[x] for x in set(columns))
  for column in set(columns):
    total = sum(
      p for p, x in zip(choice.probabilities, columns, strict=True)
      if x == column
    )  # fmt: skip
    assert total == pytest.approx(weights[column] / present)


def test_filters_count_characters_and_words():
  rule = CaptionRule(
    min_characters=3, max_characters=12, min_words=2, max_words=3,
    drop=r'(?i)\.jpe?g$',
  )  # fmt: skip
  texts = ['ab', 'a b', 'one', 'a b c d', 'a b x.JPG', 'four words here']
  choice = CaptionChoice(*rule.choose(record([*texts, 'two words'])))
  assert choice == CaptionChoice(['a b', 'two words'])
  assert rule.filters and not CaptionRule((1.0,)).filters


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'min_words': -1}, 'min_words=-1'),
    ({'min_words': 5, 'max_words': 4}, 'min_words=5 and max_words=4'),
    ({'drop': '('}, r"drop='\(' is no regular expression"),
    ({'weights': (1.0, -1.0)}, 'caption_weights'),
    ({'weights': (0.0, 0.0)}, 'caption_weights'),
    ({'weights': (float('nan'),)}, 'caption_weights'),
  ],
)
def test_impossible_rules_are_refused(fields, message):
  with pytest.raises(UsageError, match=message):
    CaptionRule(**fields)


def test_each_column_needs_a_weight():
  with pytest.raises(UsageError, match='one weight for each'):
    CaptionRule((0.5, 0.5)).check_columns(('caption',))


@pytest.mark.parametrize('kind', ['folder', 'csv', 'parquet'])
def test_sources_number_the_columns_of_captions(tmp_path, kind):
  write_images(tmp_path, ['blue_cat/a.png', 'red/b.png'])
  if kind == 'folder':
    source = open_source(f'folder:{tmp_path}', captions=('caption', 'filename'))
    assert source[0]['caption'] == ['blue cat', 'a']
    assert source[0]['columns'] == [0, 1]
    return
  if kind == 'csv':
    table = 'image,alt,made\nred/b.png,,x\nblue_cat/a.png,y,z\nred/b.png,u,v\n'
    (tmp_path / 't.csv').write_text(table)
    spec = f'csv:{tmp_path}/t.csv'
  else:
    columns = {'alt': [['', 'u'], ['y']], 'made': [['x', 'v'], ['z']]}
    spec = write_parquet(tmp_path / 't.parquet', rows(2, **columns))
  source = open_source(spec, captions=('alt', 'made'))
  pairs = sorted(zip(source[0]['caption'], source[0]['columns'], strict=True))
  assert pairs == [('u', 0), ('v', 1), ('x', 1)]
  assert source[1]['columns'] == [0, 1]
  assert 'columns' not in open_source(spec, captions=('made',))[0]


def test_records_without_a_passing_caption_are_replaced_and_counted(tmp_path):
  texts = ['good one', 'bad', None, 'good two'] * 3
  spec = write_parquet(tmp_path / 't.parquet', rows(12, caption=texts))
  source = open_source(spec)
  rule = CaptionRule(min_words=2)
  stream = batches(source, captions=rule)
  for _ in range(3):
    assert (next(stream)['tokens'][:, 0] == 8).all()
  assert stream.corrupt == {}
  assert stream.filtered == 9  # six of twelve, three of which pass over two
  resumed = batches(source, captions=rule, start_step=2)
  again = batches(source, captions=rule)
  for _ in range(2):
    next(again)
  assert (next(resumed)['image'] == next(again)['image']).all()


def test_a_filter_that_leaves_nothing_fails_in_one_line(tmp_path, monkeypatch):
  spec = write_parquet(tmp_path / 't.parquet', rows(12))
  source = open_source(spec)
  rule = CaptionRule(max_characters=3)
  with pytest.raises(FailureError, match=r'12 records in a row.*data\.filter'):
    next(batches(source, captions=rule))
  with pytest.raises(
    UsageError, match=r'none of its 12 captions passes data\.f'
  ):
    rule.describe([source])
  monkeypatch.setattr(captions, '_SAMPLE', 4)
  assert '0 of 4 captions of a sample pass' in rule.describe([source])[0]


def test_what_passes_is_said_before_a_run(tmp_path):
  texts = ['a', 'a b', 'a b c', None]
  source = open_source(
    write_parquet(tmp_path / 't.parquet', rows(4, caption=texts))
  )
  rule = CaptionRule(min_words=2)
  (line,) = rule.describe([source])
  assert line.endswith('2 of 3 captions pass data.filter (min_words=2)')
  assert CaptionRule((1.0,)).describe([source]) == []


def test_each_template_is_as_likely():
  rule = CaptionRule(templates=('a photo of a {}.', '{}', 'two {}, {}'))
  choice = CaptionChoice(*rule.choose(record(['cat'])))
  assert choice == CaptionChoice(['a photo of a cat.', 'cat', 'two cat, cat'])
  rng = np.random.default_rng(0)
  drawn = collections.Counter(choice.draw(rng) for _ in range(3000))
  assert all(abs(drawn[text] / 3000 - 1 / 3) < 0.03 for text in choice.texts)


def test_templates_keep_the_weights_of_columns_and_the_filter():
  rule = CaptionRule((0.8, 0.2), max_characters=3, templates=('a {}', 'the {}'))
  assert rule.filters
  choice = CaptionChoice(
    *rule.choose(record(['cat', 'horse', 'pet'], [0, 0, 1]))
  )
  assert choice.texts == ['a cat', 'the cat', 'a pet', 'the pet']
  assert choice.probabilities == pytest.approx([0.4, 0.4, 0.1, 0.1])
  assert not CaptionRule(templates=('a {}',)).filters
  assert rule.text() == 'max_characters=3'


def test_classes_become_prompts_that_are_drawn_anew(tmp_path):
  write_images(
    tmp_path, [f'{name}/{i}.png' for name in ('red_cat', 'dog') for i in '1234']
  )
  source = open_source(f'folder:{tmp_path}')
  rule = CaptionRule(templates=('{}', 'a photo of a {}.'))

  def drawn(start_step, steps):
    seen = []

    def keep(texts):
      seen.extend(texts)
      return lengths(texts)

    stream = training_batches(
      source, tokenizer=keep, preprocessing=Preprocessing(8), batch_size=8,
      seed=1, threads=0, captions=rule, start_step=start_step,
    )  # fmt: skip
    for _ in range(steps):
      next(stream)
    stream.close()
    return seen

  seen = drawn(0, 8)
  assert set(seen) == {
    'red cat', 'dog', 'a photo of a red cat.', 'a photo of a dog.'
  }  # fmt: skip
  # A run that is resumed draws the same; a stream may read a little ahead.
  assert drawn(5, 3)[:24] == seen[40:64]


def test_a_template_needs_a_slot():
  with pytest.raises(UsageError, match="'a photo' has no slot"):
    CaptionRule(templates=('a {}', 'a photo'))
