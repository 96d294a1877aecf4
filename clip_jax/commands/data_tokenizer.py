"""Trains a tokenizer on the captions of a data set.

usage:
  clip-jax data tokenizer --train --data=SPEC --vocab_size=N --out=FILE.model

examples:
  clip-jax data tokenizer --train --data=tfds:emoji#train --vocab_size=1500 \\
      --out=emoji.model
  clip-jax data tokenizer --train --data=csv:pairs.csv --model_type=bpe \\
      --captions=title --out=titles.model

A trained tokenizer is sentencepiece:FILE in a config.
"""

from absl import flags

from clip_jax.commands import common_flags, printing
from clip_jax.errors import UsageError, print_notes


def define_flags(values: flags.FlagValues) -> None:
  """Adds this action's flags."""
  text = flags.DEFINE_string
  flags.DEFINE_bool('train', False, 'train one', flag_values=values)
  text('data', None, 'a SPEC with captions', flag_values=values)
  common_flags.define_path(values, 'out', 'the file to write')
  flags.DEFINE_integer('vocab_size', 8_000, 'pieces', 4, flag_values=values)
  text('model_type', 'unigram', 'unigram or bpe', flag_values=values)
  common_flags.define_captions(values)
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Trains the tokenizer, and prints where it is."""
  common_flags.no_words('data tokenizer', words)
  if not values.train:
    raise UsageError('data tokenizer does one thing: add --train.')
  spec = common_flags.require(values.data, 'data', 'name a SPEC with captions')
  out = common_flags.require(values.out, 'out', 'name the file to write')

  from clip_jax.data.sources import open_source
  from clip_jax.tokenizers import sentence_piece

  source = open_source(spec, captions=tuple(values.captions))
  print_notes(source.notices)
  if len(source) > sentence_piece.MAX_RECORDS:
    print_notes(
      [
        f'of the {len(source):,} records of {spec}, the captions of '
        f'{sentence_piece.MAX_RECORDS:,} are read, evenly spaced.'
      ]
    )
  pieces = sentence_piece.train(
    source.texts(sentence_piece.MAX_RECORDS),
    values.vocab_size,
    out,
    model_type=values.model_type,
  )
  if pieces < values.vocab_size:
    print_notes(
      [
        f'{spec} gives no more than {pieces:,} pieces, fewer than '
        f'--vocab_size={values.vocab_size}.'
      ]
    )
  result = {'path': out, 'vocab_size': pieces, 'data': spec}
  if values.json:
    printing.print_json(result)
  else:
    print(f'{pieces:,} pieces in {out}: sentencepiece:{out}')
