"""Finds the tokenizer of a published directory, and its settings.

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
"""

import os
from pathlib import Path

from clip_jax.errors import UsageError
from clip_jax.files import check_fields, read_object
from clip_jax.tokenizers.base import DEFAULT_CONTEXT_LENGTH, Tokenizer
from clip_jax.tokenizers.clip import CLIPTokenizer
from clip_jax.tokenizers.hugging_face import HuggingFaceTokenizer
from clip_jax.tokenizers.hugging_face_settings import read_settings
from clip_jax.tokenizers.siglip import SiglipTokenizer

_CLIP_VOCABULARY = 49_408
_SENTENCE_PIECE = ('spiece.model', 'tokenizer.model', 'sentencepiece.model')


def from_directory(
  path: str | os.PathLike[str], context_length: int | None = None
) -> Tokenizer | None:
  """Returns the tokenizer of a published model; None where the directory has
  none.

  None also where open_clip's configuration names a tokenizer of Hugging Face
  that does not lie beside it, or has another vocabulary than CLIP's and names
  none.

  Args:
    path: a directory; anything else is None.
    context_length: T; None takes the directory's.
  Raises:
    UsageError: files that only transformers' code can read, or an option of
      open_clip that is not known.
    FailureError: a file is damaged.
  """
  directory = Path(path)
  if (directory / 'open_clip_config.json').exists():
    return _open_clip(directory, context_length)
  return _hugging_face(directory, context_length)


def _open_clip(directory: Path, context_length: int | None) -> Tokenizer | None:
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
