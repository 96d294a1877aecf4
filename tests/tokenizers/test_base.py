"""What holds for every kind: rows, counts, descriptions, pickles, threads."""

import concurrent.futures
import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from clip_jax import tokenizers
from clip_jax.errors import FailureError, UsageError
from clip_jax.tokenizers import sentence_piece
from tests.tokenizers.test_hugging_face import word_tokenizer

CAPTIONS = [
  f'{size} {colour} {thing} on the {place}'
  for size in ('a small', 'one large')
  for colour in ('red', 'green', 'blue')
  for thing in ('apple', 'cat', 'Katze', 'Apfel')
  for place in ('table', 'roof')
]
TEXTS = ['a red cat', '', 'Grüne Äpfel 😀', 'the roof ' * 30, '\ud800 lone']


@pytest.fixture(scope='module')
def specs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizers')
  sentence_piece.train(CAPTIONS, 30, folder / 'captions.model')
  (folder / 'tokenizer.json').write_text(word_tokenizer().to_str(), 'utf-8')
  return {
    'clip': 'clip',
    'sentencepiece': f'sentencepiece:{folder}/captions.model',
    'siglip': f'siglip:{folder}/captions.model',
    'hf': f'hf:{folder}',
  }


@pytest.fixture(params=['clip', 'sentencepiece', 'siglip', 'hf'])
def spec(request, specs):
  return specs[request.param]


def test_rows_end_in_eos_and_pads(spec):
  tokenizer = tokenizers.load(spec, 16)
  rows = tokenizer(TEXTS)
  assert rows.shape == (len(TEXTS), 16) and rows.dtype == np.int32
  lengths = tokenizer.text_lengths(TEXTS)
  assert lengths[3] > 16 and tokenizer.truncated == 1
  for text, row, length in zip(TEXTS, rows.tolist(), lengths, strict=True):
    whole = [*tokenizer.encode(text), tokenizer.eos_id]
    if tokenizer.bos_id is not None:
      whole.insert(0, tokenizer.bos_id)
    assert length == len(whole)
    if length > 16:
      assert row == [*whole[:15], tokenizer.eos_id]
    else:
      assert row == whole + [tokenizer.pad_id] * (16 - length)
    assert all(0 <= i < tokenizer.vocab_size for i in row)


def test_one_text_no_text_and_any_iterable(spec):
  tokenizer = tokenizers.load(spec)
  length = tokenizer.context_length
  assert length == (64 if spec.startswith('siglip') else 77)
  one = tokenizer('a red cat')
  assert one.shape == (1, length)
  np.testing.assert_array_equal(one, tokenizer(iter(['a red cat'])))
  np.testing.assert_array_equal(one, tokenizer(np.array(['a red cat'])))
  assert tokenizer([]).shape == (0, length)
  assert tokenizer.text_lengths([]).shape == (0,)


def test_a_row_of_one_token_is_eos(spec):
  tokenizer = tokenizers.load(spec, 1)
  assert tokenizer(['a red cat']).tolist() == [[tokenizer.eos_id]]


def test_a_text_that_is_not_a_string_is_named(spec):
  with pytest.raises(UsageError, match='text 1 is of type bytes'):
    tokenizers.load(spec)(iter(['a cat', b'a dog']))


def test_description_is_json_and_gives_the_same_tokenizer(spec):
  tokenizer = tokenizers.load(spec, 20)
  description = json.loads(json.dumps(tokenizer.describe()))
  again = tokenizers.from_description(description)
  assert again.kind == spec.partition(':')[0]
  assert again.describe() == tokenizer.describe()
  for name in ('context_length', 'vocab_size', 'bos_id', 'eos_id', 'pad_id'):
    assert getattr(again, name) == getattr(tokenizer, name)
  np.testing.assert_array_equal(again(TEXTS), tokenizer(TEXTS))


def test_a_description_needs_no_file(specs, tmp_path):
  path = tmp_path / 'gone.model'
  shutil.copy(specs['sentencepiece'].partition(':')[2], path)
  tokenizer = tokenizers.load(f'sentencepiece:{path}', 9)
  path.unlink()
  again = tokenizers.from_description(tokenizer.describe())
  np.testing.assert_array_equal(again(TEXTS), tokenizer(TEXTS))


def test_pickled_copies_give_the_same_rows(spec):
  tokenizer = tokenizers.load(spec, 12)
  expected = tokenizer(TEXTS)
  assert tokenizer.truncated > 0
  copy = pickle.loads(pickle.dumps(tokenizer))
  assert copy.truncated == 0
  np.testing.assert_array_equal(copy(TEXTS), expected)


def test_threads_share_a_tokenizer_and_its_count(spec):
  tokenizer = tokenizers.load(spec, 8)
  texts = [f'{caption} {i} the end' for i, caption in enumerate(CAPTIONS * 4)]
  expected = tokenizers.load(spec, 8)
  rows = expected(texts)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for result in pool.map(tokenizer, [texts] * 40):
      np.testing.assert_array_equal(result, rows)
  assert tokenizer.truncated == 40 * expected.truncated > 0


@pytest.mark.parametrize(
  'spec', ['', 'bpe', 'clip:', 'clip:x', 'sentencepiece:', 'hf', 'gpt:x', ':x']
)
def test_an_unknown_spec_names_the_known(spec):
  with pytest.raises(UsageError, match=r"'clip', 'sentencepiece:PATH', 'sig"):
    tokenizers.load(spec)


@pytest.mark.parametrize('context_length', [0, -3])
def test_a_context_length_below_one_is_refused(spec, context_length):
  with pytest.raises(UsageError, match='whole number from 1'):
    tokenizers.load(spec, context_length)


@pytest.mark.parametrize('description', [{}, {'kind': 'morse'}])
def test_a_description_of_no_known_kind(description):
  with pytest.raises(UsageError, match='clip, sentencepiece, siglip or hf'):
    tokenizers.from_description(description)


@pytest.mark.parametrize(
  'description',
  [
    {'kind': 'sentencepiece'},
    {'kind': 'sentencepiece', 'model': '*'},
    {'kind': 'sentencepiece', 'model': ''},
    {'kind': 'sentencepiece', 'model': 'aGVsbG8='},
    {'kind': 'hf'},
    {'kind': 'hf', 'tokenizer': '{}'},
  ],
)
def test_a_damaged_description(description):
  with pytest.raises(FailureError) as error:
    tokenizers.from_description({'context_length': 8, **description})
  assert '\n' not in str(error.value)


def test_importing_is_light():
  code = (
    'import sys, clip_jax.tokenizers; print([m for m in ("ftfy", "regex", '
    '"sentencepiece", "tokenizers", "jax") if m in sys.modules])'
  )
  run = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert run.stdout.strip() == '[]'


def test_descriptions_from_before_the_cleanings_still_load(spec):
  tokenizer = tokenizers.load(spec, 20)
  old = {
    key: value
    for key, value in tokenizer.describe().items()
    if key in ('kind', 'context_length', 'model', 'tokenizer', 'specials')
  }
  again = tokenizers.from_description(old)
  np.testing.assert_array_equal(again(TEXTS), tokenizer(TEXTS))
