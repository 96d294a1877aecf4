"""Training a vocabulary: the same every time, whole or not at all."""

import os

import pytest
import sentencepiece

from clip_jax import tokenizers
from clip_jax.errors import FailureError, UsageError
from clip_jax.tokenizers.sentence_piece import train

CAPTIONS = [
  f'{a} {b} {c}'
  for a in ('A red', 'one green', 'Two blue', 'grüne')
  for b in ('apple', 'cat face', 'Äpfel', 'bicycle', 'woman dancing')
  for c in ('on the table', 'in the snow', 'medium skin tone')
]


@pytest.mark.parametrize('model_type', ['unigram', 'bpe'])
def test_the_model_is_the_same_every_time_and_silent(
  tmp_path, capfd, model_type
):
  train(CAPTIONS, 40, tmp_path / 'a.model', model_type=model_type)
  again = tmp_path / 'new' / 'b.model'
  train(iter(CAPTIONS), 40, str(again), model_type=model_type)
  first = (tmp_path / 'a.model').read_bytes()
  assert first == again.read_bytes()
  assert capfd.readouterr() == ('', '')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a.model', 'new']


def test_specials_and_case_folding(tmp_path):
  train(CAPTIONS, 40, tmp_path / 'a.model')
  tokenizer = tokenizers.load(f'sentencepiece:{tmp_path}/a.model', 24)
  assert tokenizer.vocab_size == 40
  assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, None)
  ids = tokenizer.encode('A RED Cat Face')
  assert ids == tokenizer.encode('a red  cat face ')
  assert 2 not in ids and tokenizer.decode(ids) == 'a red cat face'
  row = tokenizer('a red cat face')[0]
  assert tokenizer.decode(row) == 'a red cat face'  # specials are left out
  assert 2 in tokenizer.encode('犬')  # never seen: the unknown piece


def test_case_can_be_kept(tmp_path):
  train(CAPTIONS, 40, tmp_path / 'a.model', lower_case=False)
  tokenizer = tokenizers.load(f'sentencepiece:{tmp_path}/a.model')
  assert tokenizer.decode(tokenizer.encode('A red')) == 'A red'


def test_pieces_may_cross_punctuation(tmp_path):
  lengths = []
  for split in (True, False):
    train(
      ['a medium-light tone', 'a medium-light face', 'a dark-light face'] * 9,
      40,
      tmp_path / 'a.model',
      model_type='bpe',
      split_by_script=split,
    )
    tokenizer = tokenizers.load(f'sentencepiece:{tmp_path}/a.model')
    lengths.append(len(tokenizer.encode('medium-light')))
  assert lengths[0] >= 3 > lengths[1] == 1


def test_a_model_type_that_does_not_exist(tmp_path):
  with pytest.raises(UsageError, match="type 'word': one of unigram, bpe"):
    train(CAPTIONS, 40, tmp_path / 'a.model', model_type='word')


def test_long_captions_count_and_odd_ones_do_no_harm(tmp_path):
  odd = ['', ' \n', 'nul\0 here', 'two\nlines', '\ud800', 'x' + ' word' * 2000]
  train([*CAPTIONS, *odd], 40, tmp_path / 'a.model')
  tokenizer = tokenizers.load(f'sentencepiece:{tmp_path}/a.model')
  assert len(tokenizer.encode('word')) <= 2  # learned from the long one


@pytest.mark.parametrize('model_type', ['unigram', 'bpe'])
def test_too_large_a_vocabulary_becomes_what_the_captions_give(
  tmp_path, model_type
):
  path = tmp_path / 'a.model'
  pieces = train(iter(CAPTIONS), 9_000, path, model_type=model_type)
  assert 30 < pieces < 300
  large = tokenizers.load(f'sentencepiece:{path}')
  assert large.vocab_size == pieces
  assert train(CAPTIONS, pieces, path, model_type=model_type) == pieces
  assert tokenizers.same_ids(large, tokenizers.load(f'sentencepiece:{path}'))


def test_too_small_a_vocabulary_names_the_smallest(tmp_path):
  with pytest.raises(UsageError, match='5 is too small') as error:
    train(CAPTIONS, 5, tmp_path / 'a.model')
  smallest = int(str(error.value).rstrip('.').rpartition(' ')[2])
  train(CAPTIONS, smallest, tmp_path / 'a.model')


@pytest.mark.parametrize('size', [0, -4])
def test_a_vocabulary_of_nothing(tmp_path, size):
  with pytest.raises(UsageError, match='takes a number from 1'):
    train(CAPTIONS, size, tmp_path / 'a.model')


@pytest.mark.parametrize('captions', [[], ['', '  ']])
def test_no_captions(tmp_path, captions):
  with pytest.raises(UsageError, match='no captions to train'):
    train(captions, 50, tmp_path / 'a.model')


def test_the_captions_own_error_comes_through(tmp_path):
  def captions():
    yield 'a cat'
    raise FailureError('record 7 is corrupt.')

  with pytest.raises(FailureError, match='record 7 is corrupt'):
    train(captions(), 50, tmp_path / 'a.model')


def test_a_failed_write_leaves_the_old_model(tmp_path, monkeypatch):
  path = tmp_path / 'a.model'
  path.write_bytes(b'old')

  def full(_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(FailureError, match='could not be written: no space left'):
    train(CAPTIONS, 40, path)
  assert path.read_bytes() == b'old'
  assert os.listdir(tmp_path) == ['a.model']


def test_a_missing_file_is_the_callers_mistake(tmp_path):
  with pytest.raises(
    UsageError, match=r'no SentencePiece model at .*none.model'
  ):
    tokenizers.load(f'sentencepiece:{tmp_path}/none.model')
  with pytest.raises(FailureError, match='a folder, not a file'):
    tokenizers.load(f'sentencepiece:{tmp_path}')


def test_a_damaged_file_is_named_in_one_line(tmp_path, capfd):
  path = tmp_path / 'a.model'
  train(CAPTIONS, 40, path)
  whole = path.read_bytes()
  for damaged in (b'', b'hello', whole[: len(whole) // 2], whole[:-5]):
    path.write_bytes(damaged)
    with pytest.raises(FailureError, match='not a SentencePiece') as error:
      tokenizers.load(f'sentencepiece:{path}')
    assert str(path) in str(error.value) and '\n' not in str(error.value)
  assert capfd.readouterr() == ('', '')


def test_a_foreign_models_own_specials(tmp_path):
  """The library's defaults: unknown 0, bos 1, eos 2, no pad."""
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CAPTIONS),
    model_prefix=str(tmp_path / 'a'),
    vocab_size=40,
    minloglevel=2,
  )
  tokenizer = tokenizers.load(f'sentencepiece:{tmp_path}/a.model', 12)
  assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
  row = tokenizer('')[0].tolist()
  assert row == [1, *[2] * 11]


def test_a_model_without_an_end_is_refused(tmp_path):
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CAPTIONS),
    model_prefix=str(tmp_path / 'a'),
    vocab_size=40,
    eos_id=-1,
    minloglevel=2,
  )
  with pytest.raises(FailureError, match='no end-of-sentence piece'):
    tokenizers.load(f'sentencepiece:{tmp_path}/a.model')


def test_an_unknown_id_is_named(tmp_path):
  train(CAPTIONS, 40, tmp_path / 'a.model')
  tokenizer = tokenizers.load(f'sentencepiece:{tmp_path}/a.model')
  with pytest.raises(UsageError, match=r'token id 40 .* 0 to 39'):
    tokenizer.decode([40])
