"""A tokenizer as the files that transformers and open_clip load.

What the other library cannot be told comes back as plain sentences, for the
person who converts a model.
"""

import json
from typing import Any, NamedTuple

from clip_jax.files import to_bytes
from clip_jax.tokenizers.base import Tokenizer
from clip_jax.tokenizers.clip import (
  CLIPTokenizer,
  read_merges,
  vocabulary,
)
from clip_jax.tokenizers.clip_definition import BOS, EOS, clip_definition
from clip_jax.tokenizers.hugging_face import HuggingFaceTokenizer
from clip_jax.tokenizers.sentence_piece import SentencePieceTokenizer
from clip_jax.tokenizers.sentence_piece_definition import (
  sentence_piece_definition,
)
from clip_jax.tokenizers.siglip import SiglipTokenizer

# transformers' class for a tokenizer.json that stands for itself.
_GENERIC = 'PreTrainedTokenizerFast'
_REPAIRED = 'mojibake, HTML entities, curly quotes or ligatures'


class TokenizerFiles(NamedTuple):
  """The files to write, and notes on what they cannot express."""

  contents: dict[str, bytes]  # by file name
  differences: list[str]  # sentences; empty where all ids are ours


def hugging_face_files(tokenizer: Tokenizer) -> TokenizerFiles:
  """Returns the files from which transformers' AutoTokenizer makes its own.

  CLIP's byte-pair encoding is exact for text that needs no repair and names no
  special token; a tokenizer.json cannot express the repair. SigLIP's and those
  of Hugging Face are exact. For SentencePiece models see
  `sentence_piece_definition`.

  Raises:
    FailureError: a SentencePiece model that has no counterpart.
  """
  if isinstance(tokenizer, CLIPTokenizer):
    return _clip_files(tokenizer)
  if isinstance(tokenizer, SiglipTokenizer):  # also a SentencePieceTokenizer
    return _siglip_files(tokenizer)
  if isinstance(tokenizer, SentencePieceTokenizer):
    return _sentence_piece_files(tokenizer)
  if isinstance(tokenizer, HuggingFaceTokenizer):
    return _hugging_face_files(tokenizer)
  raise TypeError(f'no files are known for a {type(tokenizer).__name__}')


def open_clip_text_cfg(tokenizer: Tokenizer) -> dict[str, Any]:
  """Returns the keys of `model_cfg.text_cfg` that make open_clip's tokenizer.

  With 'hf_tokenizer_name' among them, open_clip reads the files of
  `hugging_face_files` in the directory of its configuration; the name itself
  only has to be there. 'eos_id' is read where 'pool_type' is 'eos'.
  """
  keys: dict[str, Any] = {'context_length': tokenizer.context_length}
  if not isinstance(tokenizer, CLIPTokenizer):
    keys['hf_tokenizer_name'] = 'beside this file'
    keys |= {'eos_id': tokenizer.eos_id, 'pad_id': tokenizer.pad_id}
  if _cleaning(tokenizer) not in (None, 'lower'):
    keys['tokenizer_kwargs'] = {'clean': _cleaning(tokenizer)}
  return keys


def open_clip_differences(tokenizer: Tokenizer) -> list[str]:
  """Returns sentences on what `open_clip_text_cfg` omits; none for CLIP."""
  if isinstance(tokenizer, CLIPTokenizer):
    return []
  differences = hugging_face_files(tokenizer).differences
  if _cleaning(tokenizer):
    return [d for d in differences if d not in _cleaning_differs(tokenizer)]
  return [
    *differences,
    f'open_clip repairs texts ({_REPAIRED}) before its tokenizer sees them; '
    'here they go as they are.',
  ]


def _clip_files(tokenizer: CLIPTokenizer) -> TokenizerFiles:
  merges = read_merges()
  symbols = [*vocabulary()[:-2], BOS, EOS]
  ids = {symbol: i for i, symbol in enumerate(symbols)}
  lines = ['#version: 0.2', *map(' '.join, merges), '']
  differences = [
    f'transformers does not repair texts: those with {_REPAIRED} get other ids '
    'there.',
    f'The special tokens are called {BOS} and {EOS} there, and are found in '
    'texts by these names.',
    f'Rows are padded with {EOS} there, and with 0 here; the text tower reads '
    'neither.',
  ]
  if tokenizer.cleaning != 'lower':
    differences.append(
      'transformers only makes letters small: its texts have to be cleaned '
      f'before, as {tokenizer.cleaning!r} does here.'
    )
  config = {
    'tokenizer_class': 'CLIPTokenizer',
    'bos_token': BOS,
    'eos_token': EOS,
    'pad_token': EOS,
    'unk_token': EOS,
    'add_prefix_space': False,
    'do_lower_case': True,
    'model_max_length': tokenizer.context_length,
  }
  return TokenizerFiles(
    {
      'tokenizer.json': clip_definition(ids, merges).encode(),
      'tokenizer_config.json': to_bytes(config),
      'vocab.json': to_bytes(ids),
      'merges.txt': '\n'.join(lines).encode(),
    },
    differences,
  )


def _siglip_files(tokenizer: SiglipTokenizer) -> TokenizerFiles:
  eos, unk = tokenizer.special_pieces
  config = {
    'tokenizer_class': 'SiglipTokenizer',
    'eos_token': eos,
    'pad_token': eos,
    'unk_token': unk,
    'do_lower_case': tokenizer.lower_case,
    'model_max_length': tokenizer.context_length,
  }
  return TokenizerFiles(
    {
      'spiece.model': tokenizer.model,
      'tokenizer_config.json': to_bytes(config),
    },
    _cleaning_differs(tokenizer),
  )


def _sentence_piece_files(tokenizer: SentencePieceTokenizer) -> TokenizerFiles:
  definition = sentence_piece_definition(tokenizer.model)
  differences = [
    'The tokenizer.json drops a mark upon a character, where the two do not '
    'make one and the normalisation changes the character.'
  ]
  if json.loads(definition)['model']['type'] == 'Unigram':
    differences.append(
      'A special token that stands in a text, such as '
      f'{tokenizer.piece(tokenizer.eos_id)}, is found there; here it is text.'
    )
  named = {'eos': tokenizer.eos_id, 'pad': tokenizer.pad_id}
  if tokenizer.bos_id is not None:
    named['bos'] = tokenizer.bos_id
  config = {
    **{f'{name}_token': tokenizer.piece(i) for name, i in named.items()},
    # So that a special token in a text is text, as it is here.
    'split_special_tokens': True,
  }
  return TokenizerFiles(
    {
      'tokenizer.json': definition.encode(),
      'tokenizer_config.json': _generic_config(tokenizer, config),
    },
    differences,
  )


def _hugging_face_files(tokenizer: HuggingFaceTokenizer) -> TokenizerFiles:
  tokens = tokenizer.specials | {
    'eos': tokenizer.token(tokenizer.eos_id),
    'pad': tokenizer.token(tokenizer.pad_id),
  }
  config = {f'{name}_token': token for name, token in tokens.items()}
  return TokenizerFiles(
    {
      'tokenizer.json': tokenizer.definition.encode(),
      'tokenizer_config.json': _generic_config(tokenizer, config),
    },
    _cleaning_differs(tokenizer),
  )


def _cleaning(tokenizer: Tokenizer) -> str | None:
  return getattr(tokenizer, 'cleaning', None)


def _cleaning_differs(tokenizer: Tokenizer) -> list[str]:
  if not _cleaning(tokenizer):
    return []
  return [
    'transformers does not clean texts before: that has to be done as '
    f'{_cleaning(tokenizer)!r} does here.'
  ]


def _generic_config(tokenizer: Tokenizer, more: dict[str, Any]) -> bytes:
  return to_bytes(
    {
      'tokenizer_class': _GENERIC,
      'model_max_length': tokenizer.context_length,
      'padding_side': tokenizer.padding_side,
      'clean_up_tokenization_spaces': False,
      **more,
    }
  )
