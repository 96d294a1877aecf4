"""Hugging Face tokenizers: rows as the library itself makes them."""

import json

import numpy as np
import pytest
from tokenizers import (
  Tokenizer,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from clip_jax import tokenizers
from clip_jax.errors import FailureError, UsageError
from clip_jax.tokenizers.clip_definition import clip_definition
from tests.tokenizers import byte_pair_reference as reference
from tests.tokenizers import published
from tests.tokenizers.test_clip import ENTRIES

WORDS = ['a', 'red', 'cat', 'on', 'the', 'roof', 'apple', 'green', 'table']
TEXTS = ['a red cat', '', 'the ROOF', 'the cat ' * 12, 'what? never seen']


def word_tokenizer(
  template: str | None = '[CLS] $A [SEP]', *more: str
) -> Tokenizer:
  vocabulary = ['[UNK]', '[PAD]', '[CLS]', '[SEP]', *WORDS, *more]
  ids = {word: i for i, word in enumerate(vocabulary)}
  tokenizer = Tokenizer(models.WordLevel(ids, unk_token='[UNK]'))
  tokenizer.add_special_tokens(['[UNK]', '[PAD]', '[CLS]', '[SEP]', *more])
  tokenizer.normalizer = normalizers.Lowercase()
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  if template:
    tokenizer.post_processor = processors.TemplateProcessing(
      single=template,
      special_tokens=[(t, ids[t]) for t in ('[CLS]', '[SEP]')],
    )
  return tokenizer


def write(folder, tokenizer: Tokenizer, **files):
  (folder / 'tokenizer.json').write_text(tokenizer.to_str(), 'utf-8')
  for name, content in files.items():
    (folder / f'{name}.json').write_text(json.dumps(content), 'utf-8')
  return f'hf:{folder}'


@pytest.mark.parametrize('template', ['[CLS] $A [SEP]', '$A [SEP]'])
def test_rows_equal_the_librarys_own(tmp_path, template):
  theirs = word_tokenizer(template)
  ours = tokenizers.load(write(tmp_path, theirs), 10)
  theirs.enable_truncation(10)
  theirs.enable_padding(length=10, pad_id=1, pad_token='[PAD]')
  rows = [encoding.ids for encoding in theirs.encode_batch(TEXTS)]
  np.testing.assert_array_equal(ours(TEXTS), rows)
  assert ours.bos_id == (2 if 'CLS' in template else None)
  assert (ours.eos_id, ours.pad_id) == (3, 1)
  assert ours.truncated == 1
  assert ours.vocab_size == theirs.get_vocab_size()


def test_shipped_truncation_and_padding_are_set_aside(tmp_path):
  theirs = word_tokenizer()
  theirs.enable_truncation(4)
  theirs.enable_padding(length=30, pad_id=7)
  ours = tokenizers.load(write(tmp_path, theirs), 40)
  assert ours.pad_id == 7
  assert ours.text_lengths('the cat ' * 12).tolist() == [26]
  assert (ours('a red cat')[0, 5:] == 7).all()


def test_decoding_leaves_specials_out(tmp_path):
  ours = tokenizers.load(write(tmp_path, word_tokenizer()))
  assert ours.decode(ours('the red roof')[0]) == 'the red roof'
  assert ours.encode('the red roof') == [8, 5, 9]
  with pytest.raises(UsageError, match=r'token id 13 .* 0 to 12'):
    ours.decode([13])


def test_context_length_from_the_config_beside_it(tmp_path):
  spec = write(
    tmp_path, word_tokenizer(), tokenizer_config={'model_max_length': 21}
  )
  assert tokenizers.load(spec).context_length == 21
  assert tokenizers.load(f'{spec}/tokenizer.json').context_length == 21
  assert tokenizers.load(spec, 5).context_length == 5
  write(
    tmp_path,
    word_tokenizer(),
    tokenizer_config={'model_max_length': 1000000000000000019884624838656},
  )
  assert tokenizers.load(spec).context_length == 77


def test_specials_from_the_files_beside_it(tmp_path):
  spec = write(
    tmp_path,
    word_tokenizer(None, '</s>'),
    special_tokens_map={'eos_token': '</s>', 'pad_token': '[CLS]'},
    tokenizer_config={'pad_token': {'content': '[SEP]', 'special': True}},
  )
  ours = tokenizers.load(spec, 6)
  # Nothing ends a text here, so the row is ended; the config wins.
  assert ours('a cat').tolist() == [[4, 6, 13, 3, 3, 3]]
  assert (ours.bos_id, ours.eos_id, ours.pad_id) == (None, 13, 3)
  again = tokenizers.from_description(ours.describe())
  np.testing.assert_array_equal(again(TEXTS), ours(TEXTS))


def test_without_any_end_of_text_it_is_refused(tmp_path):
  spec = write(tmp_path, word_tokenizer(None))
  with pytest.raises(FailureError, match="name an 'eos_token'"):
    tokenizers.load(spec)


def test_clips_own_definition_gives_the_originals_ids(tmp_path):
  """Of text that needs no repair and names no special token."""
  _, ids, ranks = reference.tables()
  bos, eos = published.BOS, published.EOS
  definition = clip_definition(
    ids | {bos: reference.START, eos: reference.END}, list(ranks)
  )
  (tmp_path / 'tokenizer.json').write_text(definition, 'utf-8')
  config = {'model_max_length': 77, 'pad_token': eos}
  published.write_json(tmp_path, tokenizer_config=config)
  ours = tokenizers.load(f'hf:{tmp_path}')
  assert (ours.bos_id, ours.eos_id, ours.pad_id) == (49_406, 49_407, 49_407)
  plain = [
    entry
    for entry in ENTRIES
    if entry['text'].isascii()
    and entry['text'].isprintable()
    and not any(odd in entry['text'].lower() for odd in ('&', '<|', '_of_'))
  ]
  assert len(plain) > 100
  rows = ours([entry['text'] for entry in plain])
  for row, entry in zip(rows.tolist(), plain, strict=True):
    ids = entry['ids']
    assert row == ids + [49_407] * (77 - len(ids)), entry['text']


@pytest.mark.parametrize('content', [b'', b'{}', b'not json', b'[1]', b'\xff'])
def test_a_damaged_file_is_named_in_one_line(tmp_path, content):
  (tmp_path / 'tokenizer.json').write_bytes(content)
  with pytest.raises(FailureError, match=r'tokenizer\.json') as error:
    tokenizers.load(f'hf:{tmp_path}')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('content', ['', '{', '[]', '\x00'])
def test_a_damaged_config_is_named(tmp_path, content):
  spec = write(tmp_path, word_tokenizer())
  (tmp_path / 'tokenizer_config.json').write_text(content)
  with pytest.raises(FailureError, match=r'tokenizer_config\.json'):
    tokenizers.load(spec)


def test_a_missing_file_is_the_callers_mistake(tmp_path):
  with pytest.raises(UsageError, match='no Hugging Face tokenizer at'):
    tokenizers.load(f'hf:{tmp_path}')
