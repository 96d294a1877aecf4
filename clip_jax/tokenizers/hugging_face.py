"""Hugging Face tokenizers, read as shipped from their `tokenizer.json`.

Normalisation, splitting, model and the specials around a text are all in
that file. Which of them are bos, eos and pad, and how long a row is, stands
in the files beside it, or follows from what the file adds to a text.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import tokenizers
from jaxtyping import Int32

from clip_jax.errors import FailureError, UsageError
from clip_jax.tokenizers.base import Tokenizer, concatenate, encodable

# Files that have no limit give 10**30 or so.
_LONGEST_ROW = 1_000_000
_PAD_TOKENS = ('<pad>', '[PAD]', '<|pad|>')  # where no file says which


class HuggingFaceTokenizer(Tokenizer):
  """What `tokenizer.json` says, with rows of one length."""

  kind = 'hf'

  def __init__(
    self,
    definition: str,
    context_length: int | None = None,
    specials: Mapping[str, str] | None = None,
    *,
    origin: str = 'a description',
  ):
    """Reads a definition.

    Args:
      definition: the text of a tokenizer.json.
      context_length: T.
      specials: tokens by 'bos', 'eos' and 'pad', as far as files name them.
      origin: where the definition is from, for the errors.
    Raises:
      FailureError: the definition is damaged, or nothing ends a text.
    """
    super().__init__(context_length)
    self._definition = definition
    self._specials = dict(specials or {})
    try:
      # The library's errors are bare `Exception`s.
      self._tokenizer = tokenizers.Tokenizer.from_str(definition)
    except Exception as error:
      reason = ' '.join(str(error).split())
      raise FailureError(
        f'the tokenizer of {origin} is not a tokenizer.json, or damaged: '
        f'{reason}.'
      ) from error
    shipped_padding = self._tokenizer.padding or {}
    self._tokenizer.no_padding()  # rows are laid out in `base`
    self._tokenizer.no_truncation()
    vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
    self.vocab_size = max(vocabulary.values()) + 1
    named = {
      name: vocabulary[token]
      for name, token in self._specials.items()
      if token in vocabulary
    }
    prefix, suffix = self._added()
    self.bos_id = prefix[0] if prefix else None
    if not suffix and 'eos' not in named:
      raise FailureError(
        f'the tokenizer of {origin} ends texts with no token, and a text tower '
        "reads at one: name an 'eos_token' in tokenizer_config.json."
      )
    self.eos_id = suffix[-1] if suffix else named['eos']
    # A text tower needs an end to read at, also where the file adds none.
    self._ending = [] if suffix else [self.eos_id]
    padding = [vocabulary[t] for t in _PAD_TOKENS if t in vocabulary]
    if 'pad_id' in shipped_padding:
      padding.insert(0, shipped_padding['pad_id'])
    self.pad_id = named.get('pad', [*padding, self.eos_id][0])

  @classmethod
  def from_file(
    cls, path: str | os.PathLike[str], context_length: int | None = None
  ) -> 'HuggingFaceTokenizer':
    """Reads a tokenizer.json, or the one in a directory, and its neighbours.

    Raises:
      UsageError: there is no such file.
      FailureError: it or tokenizer_config.json is damaged.
    """
    file = Path(path)
    if file.is_dir():
      file = file / 'tokenizer.json'
    try:
      definition = file.read_text('utf-8')
    except UnicodeDecodeError as error:
      raise FailureError(f'{file} is not UTF-8 text.') from error
    except OSError as error:
      raise UsageError(
        f'no Hugging Face tokenizer at {file} ({error.strerror}): '
        'give a tokenizer.json or the directory with one.'
      ) from error
    specials = {}
    config = {}
    for name in ('special_tokens_map.json', 'tokenizer_config.json'):
      config = _read_json(file.with_name(name))
      for special in ('bos', 'eos', 'pad'):
        token = config.get(f'{special}_token')
        if isinstance(token, dict):  # a token with its flags
          token = token.get('content')
        if isinstance(token, str):
          specials[special] = token
    longest = config.get('model_max_length')
    if (
      context_length is None
      and isinstance(longest, (int, float))
      and 0 < longest < _LONGEST_ROW
    ):
      context_length = int(longest)
    return cls(definition, context_length, specials, origin=str(file))

  def encode(self, text: str) -> list[int]:
    return self._tokenizer.encode(encodable(text), add_special_tokens=False).ids

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """The text without its specials, as the file's own decoder writes it."""
    return self._tokenizer.decode(self._check_ids(ids))

  def describe(self) -> dict[str, Any]:
    return {
      'kind': self.kind,
      'context_length': self.context_length,
      'tokenizer': self._definition,
      'specials': self._specials,
    }

  @classmethod
  def from_description(
    cls, description: Mapping[str, Any]
  ) -> 'HuggingFaceTokenizer':
    if not isinstance(description.get('tokenizer'), str):
      raise FailureError(
        "a Hugging Face tokenizer's description is damaged: 'tokenizer' is "
        'not the text of a tokenizer.json.'
      )
    return cls(
      description['tokenizer'],
      description.get('context_length'),
      description.get('specials'),
    )

  def _tokenize(
    self, texts: list[str]
  ) -> tuple[Int32[np.ndarray, ' M'], Int32[np.ndarray, ' N']]:
    encodings = self._tokenizer.encode_batch_fast(
      [encodable(text) for text in texts]
    )
    return concatenate([[*e.ids, *self._ending] for e in encodings])

  def _added(self) -> tuple[list[int], list[int]]:
    """The ids that the file puts before and after every text."""
    added = self._tokenizer.encode('a')
    body = [i for i, m in enumerate(added.special_tokens_mask) if not m]
    if not body:  # the vocabulary cannot spell the probe
      return added.ids[:-1], added.ids[-1:]
    return added.ids[: body[0]], added.ids[body[-1] + 1 :]


def _read_json(path: Path) -> dict[str, Any]:
  try:
    content = json.loads(path.read_text('utf-8'))
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    raise FailureError(f'{path} is not JSON: {error}.') from error
  if not isinstance(content, dict):
    raise FailureError(f'{path} holds no JSON object.')
  return content
