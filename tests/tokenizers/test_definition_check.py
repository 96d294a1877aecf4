"""Files that would end the process in a library, or fill the memory."""

import base64
import contextlib
import json
import os
import random

import pytest
import sentencepiece

from clip_jax import tokenizers
from clip_jax.errors import FailureError, UsageError
from clip_jax.tokenizers import sentence_piece
from clip_jax.tokenizers.definition_check import (
  check_charsmap,
  sentence_piece_proto,
)
from clip_jax.tokenizers.sentence_piece_definition import (
  sentence_piece_definition,
)
from tests.tiny_run import CAPTIONS
from tests.tokenizers.test_hugging_face import word_tokenizer


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A SentencePiece model with the table of nmt_nfkc_cf."""
  path = tmp_path_factory.mktemp('pieces') / 'a.model'
  sentence_piece.train(CAPTIONS, 25, path)
  return path.read_bytes()


@pytest.fixture(scope='module')
def charsmap(model):
  return sentence_piece_proto(model).normalizer_spec.precompiled_charsmap


def false_length(table):
  return (2**31).to_bytes(4, 'little') + table[4:]


def cut(table):
  return table[:1000]


def no_trie(table):
  return bytes(4) + table[4:]


def a_trie_that_leads_outside(table):
  return table[:4] + b'\x00\xfc\xff\x7f' * 4 + table[20:]


def texts_cut(table):
  return table[:-30_000]


DAMAGE = [false_length, cut, no_trie, a_trie_that_leads_outside, texts_cut]


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_table_that_leads_outside_is_refused(
  model, charsmap, tmp_path, damage
):
  check_charsmap(charsmap, 'x')
  definition = json.loads(sentence_piece_definition(model))
  (table,) = [
    step
    for step in definition['normalizer']['normalizers']
    if step['type'] == 'Precompiled'
  ]
  damaged = damage(charsmap)
  table['precompiled_charsmap'] = base64.b64encode(damaged).decode()
  (tmp_path / 'tokenizer.json').write_text(json.dumps(definition))
  with pytest.raises(FailureError, match='precompiled_charsmap is damaged'):
    tokenizers.load(f'hf:{tmp_path}')
  proto = sentence_piece_proto(model)
  proto.normalizer_spec.precompiled_charsmap = damaged
  (tmp_path / 'a.model').write_bytes(proto.SerializeToString())
  with pytest.raises(FailureError, match='precompiled_charsmap is damaged'):
    tokenizers.load(f'sentencepiece:{tmp_path / "a.model"}')


def test_tables_that_pass_are_survived(model, charsmap):
  """Bits flipped at random: what passes is safe to encode with."""
  draw, proto, passed = random.Random(0), sentence_piece_proto(model), 0
  for _ in range(200):
    damaged = bytearray(charsmap)
    damaged[draw.randrange(4, len(damaged))] ^= 1 << draw.randrange(7)
    try:
      check_charsmap(bytes(damaged), 'x')
    except FailureError:
      continue
    passed += 1
    proto.normalizer_spec.precompiled_charsmap = bytes(damaged)
    content = proto.SerializeToString()
    with contextlib.suppress(RuntimeError):  # refused, which is as good
      library = sentencepiece.SentencePieceProcessor(model_proto=content)
      library.encode('Ünï ﬁ ㌀')
  assert passed > 20


@pytest.mark.parametrize('value', [10**9, -1, 2**63, 1.5, None, 'x'])
@pytest.mark.parametrize('where', ['vocabulary', 'added', 'around', 'padding'])
def test_ids_are_those_of_a_vocabulary(tmp_path, where, value):
  definition = json.loads(word_tokenizer().to_str())
  if where == 'vocabulary':
    definition['model']['vocab']['cat'] = value
  elif where == 'added':
    definition['added_tokens'][1]['id'] = value
  elif where == 'around':
    special = definition['post_processor']['special_tokens']['[SEP]']
    special['ids'] = [value]
  else:
    definition['padding'] = {
      'strategy': 'BatchLongest', 'direction': 'Right', 'pad_id': value,
      'pad_to_multiple_of': None, 'pad_type_id': 0, 'pad_token': '[PAD]',
    }  # fmt: skip
  (tmp_path / 'tokenizer.json').write_text(json.dumps(definition))
  with pytest.raises(FailureError, match=r'tokenizer\.json'):
    tokenizers.load(f'hf:{tmp_path}')


def test_ids_of_clips_own_files_are_checked_too(tmp_path):
  vocabulary = {'<|startoftext|>': 0, '<|endoftext|>': 1, 'a</w>': 10**9}
  (tmp_path / 'vocab.json').write_text(json.dumps(vocabulary))
  (tmp_path / 'merges.txt').write_text('#version: 0.2\n')
  with pytest.raises(FailureError, match=r'vocab\.json: 1000000000 is not'):
    tokenizers.load(f'hf:{tmp_path}')
  (tmp_path / 'vocab.json').write_text('[1]')
  with pytest.raises(FailureError, match=r'vocab\.json: the vocabulary is no'):
    tokenizers.load(f'hf:{tmp_path}')


def test_special_tokens_are_in_the_vocabulary(tmp_path):
  definition = json.loads(word_tokenizer().to_str())
  special = definition['post_processor']['special_tokens']['[SEP]']
  special['ids'] = [77]
  (tmp_path / 'tokenizer.json').write_text(json.dumps(definition))
  with pytest.raises(FailureError, match='puts the id 77 around texts'):
    tokenizers.load(f'hf:{tmp_path}')


@pytest.mark.parametrize('length', [0, -1, 10**7, 10**9, True])
def test_a_length_of_rows_is_bounded_before_they_are_made(length):
  with pytest.raises(UsageError, match=r'from 1 to 65,536'):
    tokenizers.from_description({'kind': 'clip', 'context_length': length})


@pytest.mark.parametrize(
  'config',
  [
    {'model_cfg': 'x'},
    {'model_cfg': {'text_cfg': [1]}},
    {'model_cfg': {'text_cfg': {'tokenizer_kwargs': 3}}},
    {'model_cfg': {'text_cfg': {'context_length': 'long'}}},
    {'model_cfg': {'text_cfg': {'hf_tokenizer_name': {}}}},
    {'text_cfg': 0.5},
  ],
)
def test_fields_of_open_clip_are_of_their_types(tmp_path, config):
  file = tmp_path / 'open_clip_config.json'
  file.write_text(json.dumps(config))
  with pytest.raises(FailureError, match=r'open_clip_config\.json: the field'):
    tokenizers.from_directory(tmp_path)


@pytest.mark.parametrize(
  'change',
  [
    {'tokenizer': 3},
    {'specials': 'abc'},
    {'specials': [['a']]},
    {'padding_side': []},
    {'split_specials': []},
    {'cleaning': ['lower']},
    {'context_length': 10**9},
  ],
)
def test_a_damaged_description_is_refused(tmp_path, change):
  (tmp_path / 'tokenizer.json').write_text(word_tokenizer().to_str())
  description = tokenizers.load(f'hf:{tmp_path}').describe()
  with pytest.raises((FailureError, UsageError)):
    tokenizers.from_description(description | change)


@pytest.mark.parametrize('kind', ['sentencepiece', 'siglip'])
@pytest.mark.parametrize('damaged', ['ü', 3, 'AAAA', ''])
def test_so_is_one_of_sentence_piece(kind, damaged):
  with pytest.raises(FailureError, match='damaged'):
    tokenizers.from_description({'kind': kind, 'model': damaged})


def test_special_tokens_are_unicode(tmp_path):
  (tmp_path / 'tokenizer.json').write_text(word_tokenizer().to_str())
  config = '{"eos_token": "\\ud800"}'
  (tmp_path / 'tokenizer_config.json').write_text(config)
  with pytest.raises(FailureError, match=r'tokenizer_config\.json: eos_token'):
    tokenizers.load(f'hf:{tmp_path}')


@pytest.mark.parametrize(
  'name',
  [
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'spiece.model',
    'vocab.json',
    'merges.txt',
  ],
)
def test_pipes_are_not_waited_for(tmp_path, model, name):
  if name == 'spiece.model':
    config = '{"tokenizer_class": "SiglipTokenizer"}'
    (tmp_path / 'tokenizer_config.json').write_text(config)
  elif name in ('vocab.json', 'merges.txt'):
    (tmp_path / 'vocab.json').write_text('{}')
    (tmp_path / 'merges.txt').write_text('')
    (tmp_path / name).unlink()
  elif name != 'tokenizer.json':
    (tmp_path / 'tokenizer.json').write_text(word_tokenizer().to_str())
  os.mkfifo(tmp_path / name)
  with pytest.raises(FailureError, match=f'{name}: a pipe or a device'):
    tokenizers.load(f'hf:{tmp_path}')
  with pytest.raises(FailureError, match='a pipe or a device'):
    tokenizers.load(f'sentencepiece:{tmp_path / name}')


def test_deep_nesting_is_refused(tmp_path):
  (tmp_path / 'tokenizer.json').write_text('{"model": ' + '[' * 100_000)
  with pytest.raises(FailureError, match=r'too deeply nested|nested'):
    tokenizers.load(f'hf:{tmp_path}')


def test_a_token_of_endless_length_is_refused(model, tmp_path):
  """The trie that a unigram model makes of it would overflow the stack."""
  definition = json.loads(sentence_piece_definition(model))
  definition['model']['vocab'][7][0] = 'x' * 500_000
  (tmp_path / 'tokenizer.json').write_text(json.dumps(definition))
  with pytest.raises(FailureError, match='a token of 500,000 characters'):
    tokenizers.load(f'hf:{tmp_path}')
  proto = sentence_piece_proto(model)
  proto.pieces[7].piece = 'x' * 500_000
  (tmp_path / 'a.model').write_bytes(proto.SerializeToString())
  with pytest.raises(FailureError, match='a token of 500,000 characters'):
    tokenizers.load(f'sentencepiece:{tmp_path / "a.model"}')
  definition = json.loads(word_tokenizer('[CLS] $A [SEP]', 'x' * 9999).to_str())
  (tmp_path / 'tokenizer.json').write_text(json.dumps(definition))
  with pytest.raises(FailureError, match='a token of 9,999 characters'):
    tokenizers.load(f'hf:{tmp_path}')


def test_a_template_has_the_tokens_that_it_names(tmp_path):
  definition = json.loads(word_tokenizer().to_str())
  template = definition['post_processor']
  del template['special_tokens']['[SEP]']
  for processor in (template, {'type': 'Sequence', 'processors': [template]}):
    definition['post_processor'] = processor
    (tmp_path / 'tokenizer.json').write_text(json.dumps(definition))
    with pytest.raises(FailureError, match=r"template has the .* '\[SEP\]'"):
      tokenizers.load(f'hf:{tmp_path}')


def test_a_table_is_there_and_is_text(model, tmp_path):
  definition = json.loads(sentence_piece_definition(model))
  steps = definition['normalizer']['normalizers']
  (table,) = [step for step in steps if step['type'] == 'Precompiled']
  for value in (True, None, 3, [], '!'):
    table['precompiled_charsmap'] = value
    (tmp_path / 'tokenizer.json').write_text(json.dumps(definition))
    with pytest.raises(FailureError, match='charsmap is damaged'):
      tokenizers.load(f'hf:{tmp_path}')
  del table['precompiled_charsmap']
  (tmp_path / 'tokenizer.json').write_text(json.dumps(definition))
  with pytest.raises(FailureError, match='charsmap is damaged'):
    tokenizers.load(f'hf:{tmp_path}')


def test_a_text_that_has_no_ids_is_said(tmp_path):
  definition = json.loads(word_tokenizer().to_str())
  definition['model']['unk_token'] = '[MISSING]'
  (tmp_path / 'tokenizer.json').write_text(json.dumps(definition))
  tokenizer = tokenizers.load(f'hf:{tmp_path}')
  for call in (tokenizer, tokenizer.encode, tokenizer.text_lengths):
    with pytest.raises(FailureError, match='cannot tokenise a text: WordLevel'):
      call('zebra')


def test_pieces_are_text(model, tmp_path):
  damaged = model.replace(b'<unk>', b'\xbcunk>')
  (tmp_path / 'a.model').write_bytes(damaged)
  for kind in ('sentencepiece', 'siglip'):
    with pytest.raises(FailureError, match='a piece of it is not UTF-8'):
      tokenizers.load(f'{kind}:{tmp_path / "a.model"}')
