"""Checks a tokenizer's file before a library is given it.

The libraries are written in Rust and C++. They count through all ids up to the
highest, allocate what a length claims, and read a table without checking
whether an index is inside of it: a damaged file ends the process, and no
exception says so. Everything that they take on trust is checked here.
"""

import base64
import importlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from clip_jax.errors import FailureError
from clip_jax.files import check_fields, parse_json
from clip_jax.tokenizers.base import MAX_VOCABULARY

# Characters. A trie of longer ones is so deep that freeing it overflows the
# stack; published vocabularies have up to some hundreds.
_LONGEST_TOKEN = 2048
_CHARSMAP = 'precompiled_charsmap'
# Bits of a unit of a double-array trie, as in Darts-clone.
_LEAF, _IS_VALUE = 1 << 8, 1 << 31


def check_definition(text: str, origin: str) -> None:
  """Refuses a tokenizer.json that the library could not survive.

  Args:
    text: its content.
    origin: where it is from, for the errors.
  Raises:
    FailureError: it is no JSON, an id in it is too large, or the table of a
      normalizer is damaged.
  """
  where = f'the tokenizer of {origin}'
  content = parse_json(text, where)
  check_fields(where, content, {'model': dict})
  vocabulary = content['model'].get('vocab')
  if isinstance(vocabulary, dict):
    check_vocabulary(vocabulary, where)
  elif isinstance(vocabulary, list):  # pairs of a unigram model
    _check_tokens((x for _, x in _values(vocabulary)), where)
  for name in ('added_tokens', 'post_processor', 'padding'):
    for _, value in _values(content.get(name)):
      if isinstance(value, int):
        _check_id(value, f'{where}, {name}')
  _check_template(content.get('post_processor'), where)
  for part in ('normalizer', 'pre_tokenizer', 'decoder'):
    for step in _objects(content.get(part)):
      if step.get('type') == 'Precompiled' or _CHARSMAP in step:
        try:
          table = base64.b64decode(str(step.get(_CHARSMAP)), validate=True)
        except ValueError as error:
          raise _damaged(where, 'it is not base64') from error
        check_charsmap(table, where)


def check_vocabulary(vocabulary: Any, where: str) -> dict[str, int]:
  """Returns a vocabulary, token to id, whose ids a library can count through.

  Raises:
    FailureError: it is something else, or an id is none of a vocabulary.
  """
  if not isinstance(vocabulary, dict):
    raise FailureError(f'{where}: the vocabulary is no object of ids by token.')
  for i in vocabulary.values():
    _check_id(i, where)
  _check_tokens(vocabulary, where)
  return vocabulary


def check_sentence_piece(model: bytes, origin: str) -> None:
  """Refuses a SentencePiece model whose tables its library would trip over.

  Raises:
    FailureError: it is none, or the table of its normalisation is damaged.
  """
  message = importlib.import_module('google.protobuf.message')
  try:
    proto = sentence_piece_proto(model)
  except message.DecodeError as error:
    raise FailureError(
      f'the tokenizer of {origin} is not a SentencePiece model, or damaged: '
      'give a file that `clip-jax data tokenizer --train` wrote.'
    ) from error
  where = f'the tokenizer of {origin}'
  if any(isinstance(piece.piece, bytes) for piece in proto.pieces):
    raise FailureError(f'{where}: a piece of it is not UTF-8.')
  _check_tokens((piece.piece for piece in proto.pieces), where)
  for spec in (proto.normalizer_spec, proto.denormalizer_spec):
    if spec.precompiled_charsmap:
      check_charsmap(spec.precompiled_charsmap, where)


def sentence_piece_proto(model: bytes) -> Any:
  """Returns the ModelProto of a SentencePiece model's content."""
  # The classes of this module are made while it is imported, unseen by type
  # checkers.
  module: Any = importlib.import_module('sentencepiece.sentencepiece_model_pb2')
  return module.ModelProto.FromString(model)


def check_charsmap(table: bytes, where: str) -> None:
  """Refuses a `precompiled_charsmap` that leads a library out of its memory.

  It is a length in four bytes, a trie of so many (a double array of 32-bit
  units), and the texts that the trie's values point into, each ended by a NUL.

  Raises:
    FailureError: the length is false, or a way through the trie or a value of
      it leads outside.
  """
  size = int.from_bytes(table[:4], 'little')
  if len(table) < 8 or size % 4 or not 4 <= size <= len(table) - 4:
    raise _damaged(where, f'its trie claims {size:,} of {len(table):,} bytes')
  units, texts = np.frombuffer(table, '<u4', size // 4, 4), table[4 + size :]
  try:
    texts.decode('utf-8')
  except UnicodeDecodeError as error:
    raise _damaged(where, 'its texts are not UTF-8') from error
  # A unit is a child where its label, the byte that leads there, and its place
  # together give its parent's base.
  labels = units & (_IS_VALUE | 255)
  parents = np.arange(len(units)) ^ np.minimum(labels, 255)
  unseen = (labels > 0) & (labels < 256) & (parents < len(units))
  bases = _offsets(units[:1])  # of the root
  while len(bases):
    if (bases | 255).max() >= len(units):
      raise _damaged(where, 'its trie leads outside of itself')
    is_base = np.zeros(len(units), bool)
    is_base[bases] = True
    children = np.flatnonzero(unseen & is_base[parents * unseen])
    unseen[children] = False
    bases = children ^ _offsets(units[children])
    leaves = bases[units[children] & _LEAF > 0]
    if len(leaves) and leaves.max() < len(units):
      _check_values(units[leaves] & (_IS_VALUE - 1), texts, where)


def _check_values(values: np.ndarray, texts: bytes, where: str) -> None:
  starts = np.frombuffer(texts, np.uint8)
  # A byte 10xxxxxx lies within a character.
  if values.max() >= len(texts) or (starts[values] & 0xC0 == 0x80).any():
    raise _damaged(where, 'its trie points outside of its texts')


def _offsets(units: np.ndarray) -> np.ndarray:
  """Returns how far, by exclusive or, a unit's children lie from it."""
  return (units >> 10 << ((units & (1 << 9)) >> 6)).astype(np.int64)


def _check_tokens(tokens: Iterable[Any], where: str) -> None:
  for token in tokens:
    if isinstance(token, str) and len(token) > _LONGEST_TOKEN:
      raise FailureError(
        f'{where}: a token of {len(token):,} characters, over the limit of '
        f'{_LONGEST_TOKEN:,}.'
      )


def _check_id(value: Any, where: str) -> None:
  if isinstance(value, bool):  # a setting beside the ids
    return
  if not isinstance(value, int) or not 0 <= value < MAX_VOCABULARY:
    raise FailureError(
      f'{where}: {value!r} is not the id of a token: ids are whole numbers '
      f'from 0 to {MAX_VOCABULARY - 1:,}.'
    )


def _check_template(processor: Any, where: str) -> None:
  """Refuses a template whose special tokens are not all listed beside it."""
  if isinstance(processor, list):
    for inner in processor:
      _check_template(inner, where)
  if not isinstance(processor, dict):
    return
  _check_template(processor.get('processors'), where)
  listed = processor.get('special_tokens')
  if processor.get('type') != 'TemplateProcessing' or (
    not isinstance(listed, dict)  # which the library refuses
  ):
    return
  for part in ('single', 'pair'):
    pieces = processor.get(part)
    for piece in pieces if isinstance(pieces, list) else ():
      special = piece.get('SpecialToken') if isinstance(piece, dict) else None
      name = special.get('id') if isinstance(special, dict) else None
      if isinstance(name, str) and name not in listed:
        raise FailureError(
          f'{where}: its template has the special token {name!r}, which is '
          'not among its special_tokens.'
        )


def _values(content: Any, name: Any = None) -> Iterator[tuple[Any, Any]]:
  """Yields the numbers, texts and the like of a JSON value, by their keys."""
  if isinstance(content, dict):
    for key, value in content.items():
      yield from _values(value, key)
  elif isinstance(content, list):
    for value in content:
      yield from _values(value, name)
  else:
    yield name, content


def _objects(content: Any) -> Iterator[dict[str, Any]]:
  """Yields all objects of JSON, outer ones first."""
  if isinstance(content, dict):
    yield content
    content = list(content.values())
  if isinstance(content, list):
    for value in content:
      yield from _objects(value)


def _damaged(where: str, reason: str) -> FailureError:
  return FailureError(f'{where}: its {_CHARSMAP} is damaged: {reason}.')
