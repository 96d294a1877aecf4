"""Words to token ids: CLIP's byte-pair encoding, SentencePiece, Hugging Face.

    tokenizer = tokenizers.load('clip')
    tokenizer(['a cat'])  # int32 [1, 77]

Each kind's libraries are imported when one of that kind is asked for.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.errors import FailureError, UsageError
from clip_jax.files import check_fields, expand_path, read_object, typed_path
from clip_jax.tokenizers.base import DEFAULT_CONTEXT_LENGTH, Tokenizer

__all__ = [
  'Tokenizer',
  'from_description',
  'from_directory',
  'load',
  'same_ids',
]

_CLIP_VOCABULARY = 49_408
_SENTENCE_PIECE = ('spiece.model', 'tokenizer.model', 'sentencepiece.model')
_SPECS = "'clip', 'sentencepiece:PATH', 'siglip:PATH' or 'hf:PATH'"


def load(spec: str, context_length: int | None = None) -> Tokenizer:
  """Returns the tokenizer that a config or a command line names.

  Args:
    spec: 'clip', 'sentencepiece:PATH' (a model file), 'siglip:PATH' (one that
      sees texts as SigLIP does), or 'hf:PATH' (a tokenizer.json, or a
      directory as `from_directory` reads it).
    context_length: T, the tokens of a row. None is 77, as in the paper, 64
      for 'siglip', or for 'hf' what the files beside it say.
  Raises:
    UsageError: an unknown spec, a file that is not there, a length below 1.
    FailureError: a file that is there and cannot be read.
  """
  kind, colon, path = spec.partition(':')
  if bool(path) != (kind != 'clip') or (colon and not path):
    raise UsageError(f'no tokenizer {spec!r}: give {_SPECS}.')
  if kind == 'clip':
    from clip_jax.tokenizers.clip import CLIPTokenizer

    return CLIPTokenizer(context_length)
  path = expand_path(path)
  if kind == 'sentencepiece':
    from clip_jax.tokenizers.sentence_piece import SentencePieceTokenizer

    return SentencePieceTokenizer.from_file(path, context_length)
  if kind == 'siglip':
    from clip_jax.tokenizers.siglip import SiglipTokenizer

    return SiglipTokenizer.from_file(path, context_length)
  if kind == 'hf':
    from clip_jax.tokenizers.hugging_face import HuggingFaceTokenizer

    published = from_directory(path, context_length)
    return published or HuggingFaceTokenizer.from_file(path, context_length)
  raise UsageError(f'no tokenizer {spec!r}: give {_SPECS}.')


def from_directory(
  path: str | os.PathLike[str], context_length: int | None = None
) -> Tokenizer | None:
  """Returns the tokenizer of a published model, as its authors' code makes it.

  Two layouts are known. Where there is an `open_clip_config.json`, that is what
  the model was trained with, and it decides alone:

    model_cfg.text_cfg.hf_tokenizer_name   none: CLIP's own byte-pair encoding;
                                           any: the files of the directory
    model_cfg.text_cfg.tokenizer_kwargs    `clean`: see `cleaning`
    model_cfg.text_cfg.context_length      tokens of a row

  Otherwise it is Hugging Face's. The files, in this order:

    spiece.model              where `tokenizer_class` (or, without one, the
                              `model_type` of config.json) says SigLIP
    tokenizer.json            with what tokenizer_config.json changes
    vocab.json, merges.txt    CLIP's, in older repositories

  Args:
    path: a directory; anything else is None.
    context_length: T; None takes the directory's.
  Returns:
    None where the directory has no tokenizer, where open_clip's configuration
    names one of Hugging Face that does not lie beside it, or where it names
    none and the vocabulary is another than CLIP's.
  Raises:
    UsageError: files that only transformers' code can read, or an option of
      open_clip that is not known.
    FailureError: a file is damaged.
  """
  directory = typed_path(path)
  if (directory / 'open_clip_config.json').exists():
    return _open_clip(directory, context_length)
  return _hugging_face(directory, context_length)


def from_description(description: Mapping[str, Any]) -> Tokenizer:
  """Returns the tokenizer whose `describe()` this is: same ids, no file needed.

  Raises:
    UsageError: a kind that is not known.
    FailureError: the description is damaged.
  """
  if not isinstance(description, Mapping):
    raise FailureError(
      f"a tokenizer's description is damaged: {description!r} is no object."
    )
  kind = description.get('kind')
  if kind == 'clip':
    from clip_jax.tokenizers.clip import CLIPTokenizer as Kind
  elif kind == 'sentencepiece':
    from clip_jax.tokenizers.sentence_piece import (
      SentencePieceTokenizer as Kind,
    )
  elif kind == 'siglip':
    from clip_jax.tokenizers.siglip import SiglipTokenizer as Kind
  elif kind == 'hf':
    from clip_jax.tokenizers.hugging_face import HuggingFaceTokenizer as Kind
  else:
    raise UsageError(
      f'no kind of tokenizer {kind!r}: clip, sentencepiece, siglip or hf.'
    )
  return Kind.from_description(description)


def same_ids(one: Tokenizer, other: Tokenizer) -> bool:
  """Returns whether two tokenizers give texts the same ids.

  Two files may hold one vocabulary, as when a model was converted: then both
  tokenise the text of every token, and captions. Rows have to have one length.
  """
  if one.describe() == other.describe():
    return True
  if one.vocab_size != other.vocab_size:
    return False
  from clip_jax.tokenizers.sample_captions import sample_captions

  texts = [one.decode([i]) for i in range(one.vocab_size)]
  texts += sample_captions(1_000)
  return np.array_equal(one(texts), other(texts))


def _open_clip(directory: Path, context_length: int | None) -> Tokenizer | None:
  """Returns the tokenizer that an `open_clip_config.json` names, or None."""
  from clip_jax.tokenizers.clip import CLIPTokenizer

  file = directory / 'open_clip_config.json'
  config = read_object(file)
  check_fields(file, config, {}, {'model_cfg': dict})
  model = check_fields(
    file, config.get('model_cfg', config), {}, {'text_cfg': dict}
  )
  text = check_fields(
    file,
    model.get('text_cfg', {}),
    {},
    {
      'context_length': int,
      'hf_tokenizer_name': (str, type(None)),
      'tokenizer_kwargs': (dict, type(None)),
      'vocab_size': int,
    },
  )
  options = dict(text.get('tokenizer_kwargs') or {})
  cleaning = options.pop('clean', None)
  if options or text.get('tokenizer_mode'):
    names = ', '.join(options) or 'tokenizer_mode'
    raise UsageError(
      f'{file} asks for a tokenizer with {names}, which is not supported: '
      'only tokenizer_kwargs.clean is.'
    )
  if context_length is None:
    context_length = text.get('context_length', DEFAULT_CONTEXT_LENGTH)
  if text.get('hf_tokenizer_name'):
    return _hugging_face(directory, context_length, cleaning or 'whitespace')
  if text.get('vocab_size', _CLIP_VOCABULARY) != _CLIP_VOCABULARY:
    return None
  return CLIPTokenizer(context_length, cleaning or 'lower')


def _hugging_face(
  directory: Path, context_length: int | None, cleaning: str | None = None
) -> Tokenizer | None:
  """Returns the tokenizer of a directory in Hugging Face's layout, or None."""
  from clip_jax.tokenizers.hugging_face import HuggingFaceTokenizer
  from clip_jax.tokenizers.hugging_face_settings import read_settings
  from clip_jax.tokenizers.siglip import SiglipTokenizer

  def has(*names: str) -> bool:
    return any((directory / name).exists() for name in names)

  if has('spiece.model'):
    settings = read_settings(directory)
    name = settings.tokenizer_class or _class_of_model(directory)
    if name == 'SiglipTokenizer':
      return SiglipTokenizer.from_file(
        directory / 'spiece.model',
        settings.context_length if context_length is None else context_length,
        lower_case=settings.lower_case is not False,
        cleaning=cleaning,
      )
  if has('tokenizer.json') or (has('vocab.json') and has('merges.txt')):
    return HuggingFaceTokenizer.from_file(
      directory, context_length, cleaning=cleaning
    )
  if has(*_SENTENCE_PIECE, 'vocab.txt'):
    raise UsageError(
      f'{directory} has a vocabulary but no tokenizer.json, which alone says '
      "how to use it: save one with transformers' save_pretrained."
    )
  return None


def _class_of_model(directory: Path) -> str:
  siglip = read_object(directory / 'config.json').get('model_type') == 'siglip'
  return 'SiglipTokenizer' if siglip else ''
