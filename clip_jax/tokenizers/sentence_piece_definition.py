"""A SentencePiece model as a tokenizer.json of Hugging Face.

The two libraries share the models (unigram and byte-pair encoding) and the
table of the normalisation. What is left to say in the other's words: blanks
are collapsed and written as '▁', one stands before the first word, and an eos
after the last.
"""

from typing import Any

from tokenizers import (
  AddedToken,
  Regex,
  Tokenizer,
  decoders,
  models,
  normalizers,
  processors,
)

from clip_jax.errors import FailureError
from clip_jax.tokenizers.definition_check import sentence_piece_proto

_BLANK = '▁'


def sentence_piece_definition(model: bytes) -> str:
  """Returns the text of a tokenizer.json that gives the model's ids and eos.

  Two things cannot be said. A character that the normalisation changes, with
  a mark upon it that does not combine, loses the mark there: the libraries do
  not look up the table alike. A unigram model finds its special tokens in a
  text; in one of byte pairs `encode_special_tokens` turns that off.

  Args:
    model: the content of a SentencePiece model file, with an eos.
  Raises:
    FailureError: a model of words or characters, which have no counterpart.
  """
  proto = sentence_piece_proto(model)
  tokenizer = Tokenizer(_model(proto))
  tokenizer.normalizer = _normalizer(proto.normalizer_spec)
  tokenizer.decoder = decoders.Sequence(
    [
      decoders.Replace(_BLANK, ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  special = proto.SentencePiece.Type.Value
  tokenizer.add_special_tokens(
    [
      AddedToken(piece.piece, special=True)
      for piece in proto.pieces
      if piece.type in (special('CONTROL'), special('UNKNOWN'))
    ]
  )
  spec = proto.trainer_spec
  template, ids = ['$A'], []
  for i in (spec.bos_id, spec.eos_id):
    if i >= 0:
      token = proto.pieces[i].piece
      template.insert(0 if i == spec.bos_id else len(template), token)
      ids.append((token, i))
  tokenizer.post_processor = processors.TemplateProcessing(
    single=template, special_tokens=ids
  )
  return tokenizer.to_str()


def _model(proto: Any) -> models.Model:
  spec = proto.trainer_spec
  if spec.model_type == spec.UNIGRAM:
    return models.Unigram(
      [(piece.piece, piece.score) for piece in proto.pieces],
      spec.unk_id,
      spec.byte_fallback,
    )
  if spec.model_type == spec.BPE:
    return models.BPE(
      {piece.piece: i for i, piece in enumerate(proto.pieces)},
      _merges(proto),
      unk_token=proto.pieces[spec.unk_id].piece,
      fuse_unk=True,
      byte_fallback=spec.byte_fallback,
    )
  raise FailureError(
    'a SentencePiece model of words or characters cannot be written as a '
    'tokenizer.json: only unigram and bpe can.'
  )


def _merges(proto: Any) -> list[tuple[str, str]]:
  """Returns every way to make a piece of two others, best piece first.

  SentencePiece merges what makes the piece with the best score, wherever it
  is split; here each split is a merge of its own.
  """
  scores = {
    piece.piece: piece.score
    for piece in proto.pieces
    if piece.type == proto.SentencePiece.Type.Value('NORMAL')
  }
  merges = [
    (-scores[piece], piece[:split], piece[split:])
    for piece in scores
    for split in range(1, len(piece))
    if piece[:split] in scores and piece[split:] in scores
  ]
  return [(left, right) for _, left, right in sorted(merges)]


def _normalizer(spec: Any) -> normalizers.Normalizer:
  steps: list[Any] = []
  if spec.precompiled_charsmap:
    if spec.name.endswith('_cf'):
      steps += _lower_case()
    steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
  if spec.remove_extra_whitespaces:
    steps += [
      normalizers.Replace(Regex('^ +| +$'), ''),
      normalizers.Replace(Regex(' {2,}'), ' '),
    ]
  if spec.add_dummy_prefix:
    steps.append(normalizers.Prepend(' '))
  if spec.escape_whitespaces:
    steps.append(normalizers.Replace(' ', _BLANK))
  return normalizers.Sequence(steps)


def _lower_case() -> list[normalizers.Normalizer]:
  """Returns normalisers to small letters, which run before the table.

  The other library looks a letter with its marks up as a whole, and falls
  back on its first match, which for a capital is the small letter alone. Only
  the dotted capital I has no small letter in SentencePiece's table.
  """
  dotted, kept = '\u0130', '\ue000'  # the latter is for private use
  return [
    normalizers.Replace('I\u0307', kept),
    normalizers.Replace(dotted, kept),
    normalizers.Lowercase(),
    normalizers.Replace(kept, dotted),
  ]
