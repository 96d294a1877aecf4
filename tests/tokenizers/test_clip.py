"""CLIP's byte-pair encoding against the original's ids, and by properties."""

import functools
import hashlib
import json
import pathlib
import time

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from clip_jax import tokenizers
from clip_jax.errors import FailureError, UsageError
from clip_jax.tokenizers import clip
from tests.tokenizers import byte_pair_reference as reference

# Copied from shared/goldens: what open_clip 3.3.0 gives, see its README.
GOLDEN = json.loads(
  (pathlib.Path(__file__).parents[1] / 'goldens/tokenizer.json').read_text(
    'utf-8'
  )
)
ENTRIES = GOLDEN['entries']


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizers.load('clip')


def test_vocabulary_file_is_the_original_with_its_licence():
  data = reference.FILE.read_bytes()
  assert hashlib.sha256(data).hexdigest() == (
    '924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a'
  )
  licence = reference.FILE.with_name('LICENSE.openai').read_text()
  assert 'MIT License' in licence and 'OpenAI' in licence


def test_numbers_are_the_papers(tokenizer):
  assert tokenizer.context_length == GOLDEN['context_length'] == 77
  assert tokenizer.vocab_size == GOLDEN['vocab_size'] == 49_408
  assert tokenizer.bos_id == GOLDEN['sot_token_id']
  assert tokenizer.eos_id == GOLDEN['eot_token_id']
  assert tokenizer.pad_id == GOLDEN['pad_token_id']


def test_every_golden_row(tokenizer):
  assert len(ENTRIES) == 459
  rows = tokenizer([entry['text'] for entry in ENTRIES])
  assert rows.shape == (459, 77) and rows.dtype == np.int32
  for row, entry in zip(rows.tolist(), ENTRIES, strict=True):
    ids = entry['ids']
    assert row == ids + [0] * (77 - len(ids)), entry['text']


def test_golden_lengths_and_the_count_of_cut_texts():
  tokenizer = tokenizers.load('clip')
  texts = [entry['text'] for entry in ENTRIES]
  lengths = tokenizer.text_lengths(texts)
  assert lengths.dtype == np.int32
  assert lengths.tolist() == [
    entry.get('truncated_from', len(entry['ids'])) for entry in ENTRIES
  ]
  assert tokenizer.truncated == 0  # measuring is not cutting
  tokenizer(texts)
  cut = sum('truncated_from' in entry for entry in ENTRIES)
  assert tokenizer.truncated == cut > 0
  tokenizer(texts)
  assert tokenizer.truncated == 2 * cut


def test_golden_decoding(tokenizer):
  decoded = [entry for entry in ENTRIES if 'decoded' in entry]
  assert len(decoded) > 100
  for entry in decoded:
    ids = tokenizer.encode(entry['text'])
    assert tokenizer.decode_all(ids) == entry['decoded']
    if not any(special in entry['clean'] for special in clip.SPECIALS):
      expected = entry['decoded'].removesuffix(' ')
      assert tokenizer.decode(ids) == expected
  for entry in GOLDEN['decode_with_specials'] + GOLDEN['decode_partial']:
    assert tokenizer.decode_all(entry['ids']) == entry['decoded']
    assert tokenizer.decode_all(np.array(entry['ids'])) == entry['decoded']


@pytest.mark.parametrize(
  'text, decoded',
  [
    ('A cat', 'a cat'),
    ('a cat!', 'a cat !'),  # the padding has the id of '!'
    ('', ''),
    ('<start_of_text>a<end_of_text>b', 'a'),
    ('a cat ' * 100, ' '.join(['a cat'] * 37 + ['a'])),  # truncated
  ],
)
def test_a_row_is_decoded_up_to_its_end(tokenizer, text, decoded):
  assert tokenizer.decode(tokenizer(text)[0]) == decoded


def test_golden_vocabulary():
  symbols = clip._byte_pairs().symbols
  for i, symbol in GOLDEN['vocab_samples']:
    assert symbols[i] == symbol


@pytest.mark.parametrize('context_length', [5, 8, 16])
def test_golden_context_lengths(context_length):
  tokenizer = tokenizers.load('clip', context_length)
  cases = [
    entry
    for entry in GOLDEN['other_context_lengths']
    if entry['context_length'] == context_length
  ]
  assert len(cases) == 6
  rows = tokenizer([entry['text'] for entry in cases])
  assert rows.tolist() == [entry['ids'] for entry in cases]


@pytest.mark.parametrize(
  'text, ids',
  [
    ('<START_of_Text>', [reference.START]),
    ('&lt;end_of_text&gt;', [reference.END]),
    ('a<end_of_text>b', [320, reference.END, 321]),
    ('', []),
    (' \n\t ', []),
  ],
)
def test_special_strings_and_blanks(tokenizer, text, ids):
  assert tokenizer.encode(text) == ids
  assert tokenizer(text)[0, : len(ids) + 2].tolist() == [
    reference.START,
    *ids,
    reference.END,
  ]


def test_openais_names_of_the_specials_are_ordinary_text(tokenizer):
  ids = tokenizer.encode('<|startoftext|>')
  assert reference.START not in ids and len(ids) > 1


# Text as it comes, and text made of what the rules turn on.
UNICODE = st.text(max_size=80)
TRICKY = st.lists(
  st.sampled_from(
    [
      *"'sStTdm ſKİΣςß&;#<>0١½Ⅷ\u0301\u200d\ufeff\ufffd",
      *'\x00\x0b\x0c\x1b\x1c\x85',
      *('\r\n', '\u00a0', '\u3000', '\x1b[31m', "'ll", "'RE", '&amp;', '&lt;'),
      *('<start_of_text>', '<END_OF_TEXT>', '<ſtart_of_text>', '&eacute;'),
      *(
        'Ã©',
        'â€™',
        'ﬁ',
        'ﬅ',
        'ｆ',
        '’',
        '😀',
        '👩🏽\u200d🚀',
        '\ud83d',
        '中文',
      ),
      *('photo', 'a', '</w>', '_', '\U0001c000', '&#xd800;', '&notit;'),
    ]
  ),
  max_size=20,
).map(''.join)


@settings(max_examples=300)
@given(st.one_of(UNICODE, TRICKY))
@example('<ſtart_of_text>')
@example('ΌΣΟΣ ΟΔΥΣΣΕΥΣ Σ')
@example('a\x1cb \x1fc')
@example('a\u0345b Í\x85')
def test_any_text_equals_the_reference(text):
  tokenizer = tokenizers.load('clip')
  expected = reference.encode(text)
  assert tokenizer.encode(text) == expected
  assert tokenizer.text_lengths(text).tolist() == [len(expected) + 2]
  row = [reference.START, *expected, reference.END]
  if len(row) > 77:
    row = [*row[:76], reference.END]
  assert tokenizer(text)[0].tolist() == row + [0] * (77 - len(row))


@settings(max_examples=100)
@given(st.text(max_size=40))
@example('a</W>b')
def test_decoding_loses_nothing_but_blanks(text):
  tokenizer = tokenizers.load('clip')
  cleaned = reference.clean(text)
  # Specials are written without a blank; U+0345 folds to a letter and is a
  # mark, so that the original's rules pass over it.
  assume(not any(s in cleaned for s in (*clip.SPECIALS, '\u0345')))
  decoded = tokenizer.decode(tokenizer.encode(text))
  assert ''.join(decoded.split()) == ''.join(cleaned.split())


@pytest.mark.parametrize('ids', [[49_408], [-1], np.array([320, 1 << 20])])
def test_decoding_an_unknown_id_names_the_range(tokenizer, ids):
  with pytest.raises(UsageError, match='not in the vocabulary: 0 to 49407'):
    tokenizer.decode(ids)


def test_very_long_text_is_cut_and_does_not_take_forever(tokenizer):
  for text in ('ab' * 500_000, 'a cat ' * 200_000):
    start = time.process_time()
    row = tokenizer(text)[0]
    assert row[-1] == tokenizer.eos_id and row[0] == tokenizer.bos_id
    assert time.process_time() - start < 20


def test_kept_chunks_stay_few(monkeypatch):
  monkeypatch.setattr(clip, '_KEPT_CHUNKS', 10)
  pairs = clip._byte_pairs()
  pairs.clear()
  tokenizer = tokenizers.load('clip')
  texts = [f'cat{i} {"long" * 20}' for i in range(50)]
  first = tokenizer(texts)
  assert len(pairs) <= 10
  assert max(map(len, pairs)) <= 32
  np.testing.assert_array_equal(first, tokenizer(texts))


def test_a_foreign_vocabulary_file_is_refused(monkeypatch):
  monkeypatch.setattr(clip, 'VOCABULARY_SHA256', '0' * 64)
  # The cached original must survive: call what the cache wraps.
  with pytest.raises(FailureError, match='not the vocabulary of CLIP'):
    clip._byte_pairs.__wrapped__()


def test_plain_captions_are_fast():
  """A floor far below what a quiet core does, to notice a lost fast path."""
  tokenizer = tokenizers.load('clip')
  captions = [
    entry['text']
    for entry in ENTRIES
    if 20 < len(entry['text']) < 100
    and entry['text'].isascii()
    and '&' not in entry['text']
  ]
  captions = (captions * 100)[:8192]
  tokenizer(captions)
  seconds = min(
    _process_seconds(functools.partial(tokenizer, captions)) for _ in range(5)
  )
  assert len(captions) / seconds > 20_000


def _process_seconds(call) -> float:
  start = time.process_time()
  call()
  return time.process_time() - start
