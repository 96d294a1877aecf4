"""Published directories give the ids of their authors' code."""

import json

import numpy as np
import pytest

from clip_jax import tokenizers
from clip_jax.errors import FailureError, UsageError
from clip_jax.tokenizers import from_directory
from tests.tokenizers import published
from tests.tokenizers.published import TEXTS, golden_rows


def check(tokenizer, name):
  wanted = golden_rows(name)
  rows = tokenizer(TEXTS)
  for text, row, golden in zip(TEXTS, rows, wanted, strict=True):
    assert row.tolist() == golden.tolist(), text
  again = tokenizers.from_description(
    json.loads(json.dumps(tokenizer.describe()))
  )
  np.testing.assert_array_equal(again(TEXTS), wanted)


def test_siglip(tmp_path):
  published.write_siglip(tmp_path)
  tokenizer = from_directory(tmp_path)
  assert tokenizer.kind == 'siglip' and tokenizer.context_length == 64
  assert tokenizer.eos_id == tokenizer.pad_id == 1
  check(tokenizer, 'siglip')


def test_siglip_known_by_the_model_where_no_class_is_named(tmp_path):
  published.write_siglip(tmp_path)
  (tmp_path / 'tokenizer_config.json').unlink()
  published.write_json(tmp_path, config={'model_type': 'siglip'})
  check(from_directory(tmp_path), 'siglip')


def test_siglip_with_letters_as_they_are(tmp_path):
  published.write_siglip(tmp_path)
  small = from_directory(tmp_path)
  published.write_json(
    tmp_path,
    tokenizer_config={
      'tokenizer_class': 'SiglipTokenizer',
      'do_lower_case': False,
    },
  )
  kept = from_directory(tmp_path)
  assert kept.encode('A CAT!') != small.encode('A CAT!')
  assert kept.encode('a cat!') == small.encode('A CAT')


def test_gemma_as_shipped(tmp_path):
  published.write_gemma(tmp_path)
  check(from_directory(tmp_path), 'gemma')


def test_siglip_2_is_gemma_with_small_letters(tmp_path):
  published.write_gemma(tmp_path, do_lower_case=True)
  check(from_directory(tmp_path), 'siglip2')
  published.write_gemma(tmp_path, tokenizer_class='Siglip2Tokenizer')
  check(from_directory(tmp_path), 'siglip2')


@pytest.mark.parametrize('name', ['clip_old', 'clip_old_bang'])
def test_clip_without_a_tokenizer_json(tmp_path, name):
  pad = '!' if 'bang' in name else published.EOS
  published.write_clip(tmp_path, pad, normalized=name == 'clip_old')
  tokenizer = from_directory(tmp_path)
  assert (tokenizer.bos_id, tokenizer.eos_id) == (49_406, 49_407)
  check(tokenizer, name)


@pytest.mark.parametrize('cleaning', ['canonicalize', 'whitespace'])
def test_open_clip_with_a_tokenizer_of_hugging_face(tmp_path, cleaning):
  published.write_gemma(tmp_path)
  text = {'context_length': 64, 'hf_tokenizer_name': 'somebody/something'}
  if cleaning != 'whitespace':  # which is what open_clip does unasked
    text['tokenizer_kwargs'] = {'clean': cleaning}
  write_open_clip(tmp_path, text)
  tokenizer = from_directory(tmp_path)
  assert tokenizer.describe()['cleaning'] == cleaning
  check(tokenizer, f'open_clip_gemma_{cleaning}')


@pytest.mark.parametrize('cleaning', ['canonicalize', 'whitespace'])
def test_open_clip_with_its_own_tokenizer(tmp_path, cleaning):
  # The files of the Hugging Face layout may lie beside it.
  published.write_gemma(tmp_path)
  write_open_clip(tmp_path, {'tokenizer_kwargs': {'clean': cleaning}})
  tokenizer = from_directory(tmp_path)
  assert tokenizer.kind == 'clip'
  check(tokenizer, f'open_clip_clip_{cleaning}')


def write_open_clip(folder, text_cfg):
  published.write_json(
    folder, open_clip_config={'model_cfg': {'text_cfg': text_cfg}}
  )


def test_lengths_come_from_the_call_then_from_the_files(tmp_path):
  write_open_clip(tmp_path, {'context_length': 32})
  assert from_directory(tmp_path).context_length == 32
  assert from_directory(tmp_path, 9).context_length == 9
  write_open_clip(tmp_path, {})
  assert from_directory(tmp_path).context_length == 77


def test_a_directory_without_a_tokenizer_is_none(tmp_path):
  assert from_directory(tmp_path) is None
  assert from_directory(tmp_path / 'none') is None
  write_open_clip(tmp_path, {'hf_tokenizer_name': 'bert-base-uncased'})
  assert from_directory(tmp_path) is None
  write_open_clip(tmp_path, {'vocab_size': 32_000})
  assert from_directory(tmp_path) is None


def test_a_vocabulary_without_its_rules_is_refused(tmp_path):
  (tmp_path / 'tokenizer.model').write_bytes(b'x')
  with pytest.raises(UsageError, match=r'no tokenizer\.json'):
    from_directory(tmp_path)


@pytest.mark.parametrize(
  ('text_cfg', 'message'),
  [
    ({'tokenizer_kwargs': {'strip_sep_token': True}}, 'strip_sep_token'),
    ({'tokenizer_mode': 'clips'}, 'tokenizer_mode'),
    ({'tokenizer_kwargs': {'clean': 'upper'}}, "no cleaning 'upper'"),
  ],
)
def test_options_of_open_clip_that_are_not_known(tmp_path, text_cfg, message):
  write_open_clip(tmp_path, text_cfg)
  with pytest.raises(UsageError, match=message):
    from_directory(tmp_path)


@pytest.mark.parametrize(
  ('vocabulary', 'merges'),
  [('{}', ''), ('{', ''), ('{"a": 0}', 'a b'), ('[]', ''), ('{"a": "b"}', '')],
)
def test_damaged_files_of_clip_are_named_in_one_line(
  tmp_path, vocabulary, merges
):
  (tmp_path / 'vocab.json').write_text(vocabulary)
  (tmp_path / 'merges.txt').write_text(merges)
  with pytest.raises(FailureError, match=r'vocab\.json') as error:
    from_directory(tmp_path)
  assert '\n' not in str(error.value)


def test_padding_on_the_left(tmp_path):
  published.write_gemma(tmp_path, padding_side='left')
  left = from_directory(tmp_path, 12)
  published.write_gemma(tmp_path)
  right = from_directory(tmp_path, 12)
  texts = ['a cat', '', 'a cat on a red roof ' * 5]
  for a, b in zip(left(texts), right(texts), strict=True):
    pads = int((b == 0).sum())
    assert a.tolist() == [0] * pads + b[: 12 - pads].tolist()
  again = tokenizers.from_description(left.describe())
  np.testing.assert_array_equal(again(texts), left(texts))
  published.write_gemma(tmp_path, padding_side='top')
  with pytest.raises(UsageError, match="'top' side"):
    from_directory(tmp_path)


def test_the_configuration_says_what_goes_around_a_text(tmp_path):
  published.write_gemma(tmp_path, add_bos_token=True, add_eos_token=True)
  tokenizer = from_directory(tmp_path, 12)
  assert (tokenizer.bos_id, tokenizer.eos_id) == (2, 1)
  row = tokenizer('a')[0].tolist()
  assert row[0] == 2 and row[row.index(0) - 1] == 1
