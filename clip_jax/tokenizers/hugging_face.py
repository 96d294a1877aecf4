"""Hugging Face tokenizers, read as shipped from their `tokenizer.json`.

Normalisation, splitting, model and the specials around a text are all in
that file. Which of them are bos, eos and pad, and how long a row is, stands
in the files beside it, or follows from what the file adds to a text.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import processors

from clip_jax.errors import FailureError, MissingFileError, UsageError
from clip_jax.files import check_fields, read_text
from clip_jax.tokenizers.base import Tokenizer, concatenate, encodable
from clip_jax.tokenizers.cleaning import cleaner_named
from clip_jax.tokenizers.clip_definition import read_clip_files
from clip_jax.tokenizers.definition_check import check_definition
from clip_jax.tokenizers.hugging_face_settings import read_settings

_PAD_TOKENS = ('<pad>', '[PAD]', '<|pad|>')  # where no file says which


class HuggingFaceTokenizer(Tokenizer):
  """The tokenizer of a `tokenizer.json`, with rows of one length."""

  kind = 'hf'

  def __init__(
    self,
    tokenizer: tokenizers.Tokenizer,
    context_length: int | None = None,
    specials: Mapping[str, str] | None = None,
    *,
    padding_side: str = 'right',
    split_specials: bool = False,
    cleaning: str | None = None,
    origin: str = 'a description',
  ):
    """Takes the library's tokenizer for its own.

    Args:
      tokenizer: as it was read; its padding and truncation are set aside.
      context_length: T.
      specials: tokens by 'bos', 'eos' and 'pad', as far as files name them.
      padding_side: 'right' or 'left' of a text.
      split_specials: whether a special token in a text is only text.
      cleaning: what open_clip does to texts before, by its name in
        `cleaning.WORDS`; None leaves them to the definition.
      origin: where the definition is from, for the errors.
    Raises:
      FailureError: nothing ends a text.
      UsageError: another padding side, another cleaning.
    """
    super().__init__(context_length)
    if padding_side not in ('right', 'left'):
      raise UsageError(
        f'the tokenizer of {origin} pads on the {padding_side!r} side: it '
        'takes right or left.'
      )
    self.padding_side = padding_side
    self._origin = origin
    self.cleaning = cleaning
    self._words = cleaner_named(cleaning) if cleaning else None
    self.specials = dict(specials or {})
    self._tokenizer = tokenizer
    shipped_padding = self._tokenizer.padding or {}
    self._tokenizer.no_padding()  # rows are laid out in `base`
    self._tokenizer.no_truncation()
    self._tokenizer.encode_special_tokens = self.split_specials = split_specials
    vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
    if not vocabulary:
      raise FailureError(f'the tokenizer of {origin} has no vocabulary.')
    self.vocab_size = max(vocabulary.values()) + 1
    named = {
      name: vocabulary[token]
      for name, token in self.specials.items()
      if isinstance(token, str) and token in vocabulary
    }
    prefix, suffix = self._added()
    self.bos_id = prefix[0] if prefix else None
    if not suffix and 'eos' not in named:
      raise FailureError(
        f'the tokenizer of {origin} ends texts with no token, and a text tower '
        "reads at one: name an 'eos_token' in tokenizer_config.json."
      )
    self.eos_id = suffix[-1] if suffix else named['eos']
    if not suffix:
      # A text tower needs an end to read at, also where the file adds none.
      self._end_texts(prefix)
    padding = [vocabulary[t] for t in _PAD_TOKENS if t in vocabulary]
    if 'pad_id' in shipped_padding:
      padding.insert(0, shipped_padding['pad_id'])
    self.pad_id = named.get('pad', [*padding, self.eos_id][0])
    for i in (*prefix, *suffix, self.pad_id):
      if not 0 <= i < self.vocab_size:
        raise FailureError(
          f'the tokenizer of {origin} puts the id {i} around texts, and its '
          f'vocabulary ends at {self.vocab_size - 1}.'
        )
    self.specials['pad'] = self.token(self.pad_id)

  @classmethod
  def from_file(
    cls,
    path: str | os.PathLike[str],
    context_length: int | None = None,
    *,
    cleaning: str | None = None,
  ) -> 'HuggingFaceTokenizer':
    """Reads a tokenizer.json, or a directory with one, and its neighbours.

    A directory may have CLIP's vocab.json and merges.txt instead.

    Raises:
      UsageError: there is no such file.
      FailureError: it or tokenizer_config.json is damaged.
    """
    file = Path(path)
    directory = file.parent
    if file.is_dir():
      directory, file = file, file / 'tokenizer.json'
    settings = read_settings(directory)
    if not file.exists() and (directory / 'merges.txt').exists():
      definition = read_clip_files(directory, settings.specials.values())
    else:
      definition = _read_text(file)
    tokenizer = _parse(definition, str(file))
    settings.apply(tokenizer)
    padding = tokenizer.padding or {}
    return cls(
      tokenizer,
      settings.context_length if context_length is None else context_length,
      settings.named(),
      padding_side=settings.padding_side
      or padding.get('direction', 'right').lower(),
      split_specials=settings.split_specials,
      cleaning=cleaning,
      origin=str(file),
    )

  @property
  def definition(self) -> str:
    """A tokenizer.json that makes the rows, but for cutting and padding."""
    return self._tokenizer.to_str()

  def token(self, i: int) -> str:
    """Returns the token that an id stands for."""
    return str(self._tokenizer.id_to_token(i))

  def encode(self, text: str) -> list[int]:
    with self._tokenizing():
      return self._tokenizer.encode(
        self._clean(text), add_special_tokens=False
      ).ids

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Returns the text without specials, as the file's own decoder does."""
    return self._tokenizer.decode(self._check_ids(ids))

  def describe(self) -> dict[str, Any]:
    return {
      'kind': self.kind,
      'context_length': self.context_length,
      'tokenizer': self.definition,
      'specials': self.specials,
      'padding_side': self.padding_side,
      'split_specials': self.split_specials,
      'cleaning': self.cleaning,
    }

  @classmethod
  def from_description(
    cls, description: Mapping[str, Any]
  ) -> 'HuggingFaceTokenizer':
    check_fields(
      "a Hugging Face tokenizer's description",
      dict(description),
      {'tokenizer': str},
      {
        'specials': (dict, type(None)),
        'padding_side': str,
        'split_specials': bool,
        'cleaning': (str, type(None)),
      },
    )
    return cls(
      _parse(description['tokenizer'], 'a description'),
      description.get('context_length'),
      description.get('specials'),
      padding_side=description.get('padding_side', 'right'),
      split_specials=description.get('split_specials', False),
      cleaning=description.get('cleaning'),
    )

  def _tokenize(
    self, texts: list[str]
  ) -> tuple[Int32[np.ndarray, ' M'], Int32[np.ndarray, ' N']]:
    cleaned = [self._clean(text) for text in texts]
    with self._tokenizing():
      encodings = self._tokenizer.encode_batch_fast(cleaned)
    return concatenate([encoding.ids for encoding in encodings])

  @contextlib.contextmanager
  def _tokenizing(self) -> Iterator[None]:
    """Turns the library's error for a piece without an id into ours."""
    try:
      yield
    except Exception as error:  # the library's errors are bare `Exception`s
      raise FailureError(
        f'the tokenizer of {self._origin} cannot tokenise a text: {error}.'
      ) from error

  def _clean(self, text: str) -> str:
    if self._words is not None:
      text = ' '.join(self._words(text))
    return encodable(text)

  def _added(self) -> tuple[list[int], list[int]]:
    """Returns the ids that the file puts before and after every text."""
    with self._tokenizing():
      added = self._tokenizer.encode('a')
    body = [i for i, m in enumerate(added.special_tokens_mask) if not m]
    if not body:  # the vocabulary cannot spell the probe
      return added.ids[:-1], added.ids[-1:]
    return added.ids[: body[0]], added.ids[body[-1] + 1 :]

  def _end_texts(self, prefix: list[int]) -> None:
    tokens = [*map(self.token, prefix), '$A', self.token(self.eos_id)]
    self._tokenizer.post_processor = processors.TemplateProcessing(
      single=tokens,
      special_tokens=[
        (token, i)
        for token, i in zip(tokens, [*prefix, None, self.eos_id], strict=True)
        if i is not None
      ],
    )


def _read_text(file: Path) -> str:
  try:
    return read_text(file)
  except MissingFileError as error:
    raise UsageError(
      f'no Hugging Face tokenizer at {file}: give a tokenizer.json or the '
      'directory with one.'
    ) from error


def _parse(definition: str, origin: str) -> tokenizers.Tokenizer:
  check_definition(definition, origin)
  try:
    return tokenizers.Tokenizer.from_str(definition)
  except Exception as error:  # the library's errors are bare `Exception`s
    reason = ' '.join(str(error).split())
    raise FailureError(
      f'the tokenizer of {origin} is not a tokenizer.json, or damaged: '
      f'{reason}.'
    ) from error
