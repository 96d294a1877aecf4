"""Written tokenizers, read back by the library that transformers reads with.

By hand the same files were loaded by AutoTokenizer, CLIPProcessor,
SiglipProcessor (transformers 5.23.0) and open_clip.get_tokenizer('local-dir:')
(3.3.0): no warnings, and rows equal to ours but for what `differences` say.
"""

from unittest import mock

import emoji
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax import tokenizers
from clip_jax.errors import FailureError
from clip_jax.tokenizers import from_directory, sentence_piece
from clip_jax.tokenizers.exporting import (
  hugging_face_files,
  open_clip_differences,
  open_clip_text_cfg,
)
from clip_jax.tokenizers.sentence_piece_definition import (
  sentence_piece_definition,
)
from tests.tokenizers import published
from tests.tokenizers.test_clip import ENTRIES

TEXTS = published.TEXTS
# Letters and signs of every script, but no marks, and nothing of a tag.
PLAIN = st.text(
  st.one_of(
    st.sampled_from(' abcdefgABC019'),
    st.characters(exclude_categories=['M', 'C'], exclude_characters='<'),
  ),
  max_size=30,
)


def emoji_names() -> list[str]:
  emoji.config.load_language()
  return list(
    dict.fromkeys(
      name.strip(':').replace('_', ' ')
      for names in emoji.EMOJI_DATA.values()
      for name in names.values()
      if isinstance(name, str)
    )
  )


def write(folder, tokenizer):
  for name, content in hugging_face_files(tokenizer).contents.items():
    (folder / name).write_bytes(content)
  return from_directory(folder)


@pytest.fixture(scope='module', params=['bpe', 'unigram'])
def trained(request, tmp_path_factory):
  """Ours, and the same as a tokenizer.json."""
  folder = tmp_path_factory.mktemp(request.param)
  sentence_piece.train(
    [name for name in emoji_names() if name.isascii()][:4000],
    900,
    folder / 'a.model',
    model_type=request.param,
    split_by_script=request.param == 'unigram',
  )
  ours = tokenizers.load(f'sentencepiece:{folder}/a.model', 14)
  return ours, write(folder, ours)


def test_sentence_piece_on_the_names_of_all_emoji_in_all_languages(trained):
  ours, theirs = trained
  assert theirs.kind == 'hf'
  for name in ('context_length', 'vocab_size', 'bos_id', 'eos_id', 'pad_id'):
    assert getattr(ours, name) == getattr(theirs, name)
  names = emoji_names()[::7]
  assert len(names) > 5_000
  np.testing.assert_array_equal(ours(names), theirs(names))


@settings(max_examples=400)
@given(text=PLAIN)
def test_sentence_piece_on_any_text_without_marks(trained, text):
  ours, theirs = trained
  assert ours.encode(text) == theirs.encode(text)


def test_letters_with_marks_that_combine(trained):
  ours, theirs = trained
  for text in ('A\u030angstro\u0308m', 'İstanbul', 'I\u0307x', 'é E\u0301'):
    assert ours.encode(text) == theirs.encode(text), text


def test_special_tokens_in_a_text(trained):
  ours, theirs = trained
  _, differences = hugging_face_files(ours)
  is_text = theirs.encode('a </s> b') == ours.encode('a </s> b')
  assert is_text != any('special token' in said for said in differences)
  assert any('mark' in said for said in differences)


def test_what_is_written_decodes(trained):
  ours, theirs = trained
  row = ours('waving hand medium')[0]
  assert theirs.decode(row) == ours.decode(row) == 'waving hand medium'


def test_a_foreign_model_with_a_bos(tmp_path):
  import sentencepiece

  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(emoji_names()[:4000]),
    model_prefix=str(tmp_path / 'a'),
    vocab_size=1_600,
    model_type='bpe',
    byte_fallback=True,
    normalization_rule_name='identity',
    remove_extra_whitespaces=False,
    minloglevel=2,
  )
  ours = tokenizers.load(f'sentencepiece:{tmp_path}/a.model', 30)
  theirs = write(tmp_path, ours)
  assert theirs.bos_id == ours.bos_id == 1 and theirs.pad_id == 2
  texts = [text for text in TEXTS if '\0' not in text and '\ufeff' not in text]
  np.testing.assert_array_equal(theirs(texts), ours(texts))


def test_models_of_words_have_no_counterpart(tmp_path):
  import sentencepiece

  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(['a cat', 'a dog'] * 9),
    model_prefix=str(tmp_path / 'a'),
    vocab_size=6,
    model_type='word',
    hard_vocab_limit=False,
    minloglevel=2,
  )
  with pytest.raises(FailureError, match='only unigram and bpe'):
    sentence_piece_definition((tmp_path / 'a.model').read_bytes())


def test_clip(tmp_path):
  ours = tokenizers.load('clip', 20)
  files = hugging_face_files(ours)
  assert len(files.differences) == 3
  theirs = write(tmp_path, ours)
  assert (theirs.context_length, theirs.vocab_size) == (20, 49_408)
  plain = [
    entry['text']
    for entry in ENTRIES
    if entry['text'].isascii()
    and entry['text'].isprintable()
    and not any(odd in entry['text'].lower() for odd in ('&', '<|', '_of_'))
  ]
  assert len(plain) > 100
  rows = theirs(plain)
  for row, wanted in zip(rows, ours(plain), strict=True):
    end = wanted.tolist().index(ours.eos_id) + 1
    assert row[:end].tolist() == wanted[:end].tolist()
  (tmp_path / 'tokenizer.json').unlink()  # the older files say the same
  np.testing.assert_array_equal(from_directory(tmp_path)(plain), rows)


@pytest.mark.parametrize('name', ['siglip', 'gemma', 'siglip2', 'left', 'bare'])
def test_what_was_read_goes_back_out(tmp_path, name):
  source, target = tmp_path / 'source', tmp_path / 'target'
  source.mkdir()
  target.mkdir()
  if name == 'siglip':
    published.write_siglip(source)
  else:
    published.write_gemma(
      source,
      do_lower_case=name == 'siglip2',
      padding_side='left' if name == 'left' else 'right',
      # Nothing ends a text there, but ours does.
      **({'add_eos_token': False} if name == 'bare' else {}),
    )
  ours = from_directory(source, 20)
  assert hugging_face_files(ours).differences == []
  theirs = write(target, ours)
  np.testing.assert_array_equal(theirs(TEXTS), ours(TEXTS))


@pytest.mark.parametrize('kind', ['clip', 'gemma', 'siglip'])
@pytest.mark.parametrize('cleaning', ['canonicalize', 'whitespace'])
def test_cleanings_go_to_open_clip_and_not_to_transformers(
  tmp_path, kind, cleaning
):
  folder = tmp_path / 'again'
  folder.mkdir()
  text_cfg = {'context_length': 20, 'tokenizer_kwargs': {'clean': cleaning}}
  if kind == 'gemma':
    published.write_gemma(tmp_path)
  if kind == 'siglip':
    published.write_siglip(tmp_path)
  if kind != 'clip':
    text_cfg['hf_tokenizer_name'] = 'any'
  published.write_json(
    tmp_path, open_clip_config={'model_cfg': {'text_cfg': text_cfg}}
  )
  ours = from_directory(tmp_path)
  assert cleaning in str(hugging_face_files(ours).differences)
  assert open_clip_differences(ours) == []
  write(folder, ours)
  published.write_json(
    folder,
    open_clip_config={'model_cfg': {'text_cfg': open_clip_text_cfg(ours)}},
  )
  again = from_directory(folder)
  np.testing.assert_array_equal(again(TEXTS), ours(TEXTS))


def test_keys_for_open_clip(trained):
  ours, _ = trained
  keys = open_clip_text_cfg(ours)
  assert keys.pop('hf_tokenizer_name')
  assert keys == {'context_length': 14, 'eos_id': 1, 'pad_id': 0}
  assert any(
    'open_clip repairs' in said for said in open_clip_differences(ours)
  )
  clip = tokenizers.load('clip')
  assert open_clip_text_cfg(clip) == {'context_length': 77}
  assert open_clip_differences(clip) == []


def test_a_tokenizer_of_no_known_kind():
  with pytest.raises(TypeError, match='no files are known for a Mock'):
    hugging_face_files(mock.Mock(spec=tokenizers.Tokenizer))
