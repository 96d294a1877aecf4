"""Words to token ids: CLIP's byte-pair encoding, SentencePiece, Hugging Face.

    tokenizer = tokenizers.load('clip')
    tokenizer(['a cat'])  # int32 [1, 77]

Each kind's libraries are imported when one of that kind is asked for.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax.errors import FailureError, UsageError
from clip_jax.files import expand_path, typed_path
from clip_jax.tokenizers.base import Tokenizer

__all__ = [
  'Tokenizer',
  'from_description',
  'from_directory',
  'load',
  'same_ids',
]

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

  See `clip_jax.tokenizers.directories` for the rules.
  """
  from clip_jax.tokenizers import directories

  return directories.from_directory(typed_path(path), context_length)


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
  """Returns whether two tokenizers give texts the same ids, as their content
  says.

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
