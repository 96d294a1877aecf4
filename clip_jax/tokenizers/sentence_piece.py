"""SentencePiece (Kudo & Richardson 2018): a small vocabulary of one's own.

A model learns its pieces from the captions of a training set; its file holds
the normalisation as well.
"""

import base64
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

import numpy as np
import sentencepiece
from jaxtyping import Int32

from clip_jax.errors import FailureError, MissingFileError, UsageError
from clip_jax.files import read_bytes, write_bytes
from clip_jax.tokenizers.base import Tokenizer, concatenate, encodable
from clip_jax.tokenizers.definition_check import check_sentence_piece

MODEL_TYPES = ('unigram', 'bpe')
# The records of a data set whose captions are enough to learn a vocabulary of;
# the library holds all captions in memory.
MAX_RECORDS = 10_000_000
PAD_ID, EOS_ID, UNK_ID = range(3)  # of the models that `train` writes
_LONGEST_CAPTION_BYTES = 1 << 16  # the library's limit would drop 4,193


class SentencePieceTokenizer(Tokenizer):
  """A SentencePiece model, with the specials that its file declares."""

  kind = 'sentencepiece'

  def __init__(
    self,
    model: bytes,
    context_length: int | None = None,
    *,
    origin: str = 'a description',
  ):
    """`model`: the content of a model file; `origin` is for the errors.

    Raises:
      FailureError: it is no SentencePiece model, or one without an eos.
    """
    super().__init__(context_length)
    self._model = model
    check_sentence_piece(model, origin)
    try:
      if not model:  # which the library would take
        raise RuntimeError('the model is empty')
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, OSError) as error:
      raise FailureError(
        f'the tokenizer of {origin} is not a SentencePiece model, or damaged: '
        'give a file that `clip-jax data tokenizer --train` wrote.'
      ) from error
    self.vocab_size = self._processor.vocab_size()
    bos, eos = self._processor.bos_id(), self._processor.eos_id()
    if eos < 0:
      raise FailureError(
        f'the SentencePiece model of {origin} has no end-of-sentence piece, '
        'which a text tower reads at: train it with an eos_id.'
      )
    self.bos_id = bos if bos >= 0 else None
    self.eos_id = eos
    pad = self._processor.pad_id()
    self.pad_id = pad if pad >= 0 else eos

  @classmethod
  def from_file(
    cls, path: str | os.PathLike[str], context_length: int | None = None
  ) -> 'SentencePieceTokenizer':
    """Raises UsageError where there is no such file."""
    return cls(cls.read(path), context_length, origin=str(path))

  @staticmethod
  def read(path: str | os.PathLike[str]) -> bytes:
    """Returns the content of a model file.

    Raises:
      UsageError: there is no such file.
    """
    try:
      return read_bytes(path)
    except MissingFileError as error:
      raise UsageError(
        f'no SentencePiece model at {path}: `clip-jax data tokenizer --train` '
        'makes one.'
      ) from error

  @property
  def model(self) -> bytes:
    """The content of the model file."""
    return self._model

  def piece(self, i: int) -> str:
    """Returns the piece that an id stands for."""
    return self._processor.id_to_piece(i)

  def encode(self, text: str) -> list[int]:
    return self._processor.encode(encodable(text))

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """Returns the normalised text, without specials."""
    return self._processor.decode(self._check_ids(ids))

  def describe(self) -> dict[str, Any]:
    return {
      'kind': self.kind,
      'context_length': self.context_length,
      'model': base64.b64encode(self._model).decode(),
    }

  @classmethod
  def from_description(
    cls, description: Mapping[str, Any]
  ) -> 'SentencePieceTokenizer':
    return cls(
      cls.described_model(description), description.get('context_length')
    )

  @staticmethod
  def described_model(description: Mapping[str, Any]) -> bytes:
    """Returns the model file in a description.

    Raises:
      FailureError: it is damaged.
    """
    try:
      return base64.b64decode(description['model'], validate=True)
    except (KeyError, TypeError, ValueError) as error:  # also of base64
      raise FailureError(
        "a SentencePiece tokenizer's description is damaged: 'model' is not "
        'base64.'
      ) from error

  def _tokenize(
    self, texts: list[str]
  ) -> tuple[Int32[np.ndarray, ' M'], Int32[np.ndarray, ' N']]:
    texts = [encodable(text) for text in texts]
    # The library's own threads would fight with the input pipeline's.
    rows = self._processor.encode(texts, num_threads=1)
    bos = [] if self.bos_id is None else [self.bos_id]
    return concatenate([[*bos, *row, self.eos_id] for row in rows])


def train(
  captions: Iterable[str],
  vocab_size: int,
  path: str | os.PathLike[str],
  *,
  model_type: str = 'unigram',
  lower_case: bool = True,
  split_by_script: bool = True,
) -> int:
  """Learns a vocabulary and writes its model file, whole or not.

  The same captions in the same order give the same bytes.

  Args:
    captions: texts; blank ones are left out.
    vocab_size: pieces, with the three specials (pad 0, eos 1, unknown 2);
      fewer where the captions do not give as many.
    path: where the model goes; its directories are made.
    model_type: 'unigram', or 'bpe', whose rows are shorter where captions
      share few words and which makes more pieces of them.
    lower_case: fold case besides the NFKC normalisation.
    split_by_script: no piece mixes letters of two scripts, or letters and
      punctuation. Without, 'medium-light' may be one piece, and 'cat.' too.
  Returns:
    The number of pieces.
  Raises:
    UsageError: another model type, no captions, or a vocabulary too small for
      them; the message gives the bound.
    FailureError: the file cannot be written.
  """
  if model_type not in MODEL_TYPES:
    raise UsageError(
      f'no SentencePiece model type {model_type!r}: one of '
      f'{", ".join(MODEL_TYPES)}.'
    )
  failures: list[BaseException] = []
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=_sentences(captions, failures),
      model_writer=model,
      model_type=model_type,
      vocab_size=vocab_size,
      hard_vocab_limit=False,
      character_coverage=1.0,
      normalization_rule_name='nmt_nfkc_cf' if lower_case else 'nmt_nfkc',
      split_by_unicode_script=split_by_script,
      max_sentence_length=_LONGEST_CAPTION_BYTES,
      pad_id=PAD_ID,
      eos_id=EOS_ID,
      unk_id=UNK_ID,
      bos_id=-1,
      num_threads=1,  # more would add the counts in any order
      minloglevel=2,  # errors only: those are raised as well
    )
  except RuntimeError as error:
    if failures:
      raise failures[0] from None
    raise UsageError(_explain(str(error), vocab_size)) from error
  content = model.getvalue()
  write_bytes(path, content, make_folder=True)
  return SentencePieceTokenizer(content, origin=str(path)).vocab_size


def _sentences(
  captions: Iterable[str], failures: list[BaseException]
) -> Iterator[str]:
  """Yields captions as single lines.

  An exception is kept in `failures`, since C++ would leave its message alone.
  """
  try:
    for caption in captions:
      line = ' '.join(encodable(caption).replace('\0', ' ').split())
      if line:
        yield line
  except Exception as error:
    failures.append(error)
    raise


def _explain(message: str, vocab_size: int) -> str:
  if smallest := re.search(r'required_chars\. -?\d+ vs (\d+)', message):
    return (
      f'a vocabulary of {vocab_size} is too small for these captions: their '
      f'characters alone take {smallest[1]}.'
    )
  if 'vocab_size' in message:
    return f'a vocabulary of {vocab_size}: it takes a number from 1.'
  if 'sentences_.empty' in message or 'all_chars_count' in message:
    return 'no captions to train a tokenizer on: all are blank or none came.'
  return f'no tokenizer came of these captions: SentencePiece says {message}'
