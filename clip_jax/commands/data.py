"""Builds data sets, looks into them, finds copies, trains tokenizers.

usage:
  clip-jax data build NAME
  clip-jax data inspect SPEC [--out=SHEET.png] [--tokenizer=…] [--json]
  clip-jax data dedup SPEC|EMBEDDINGS [--model=REF] [--threshold=0.99]
      [--out=KEEP.txt] [--html=PAGE] [--json]
  clip-jax data tokenizer --train --data=SPEC --vocab_size=N --out=FILE.model

examples:
  clip-jax data build emoji
  clip-jax data build digits
  clip-jax data inspect tfds:emoji#test --out=sheet.png --tokenizer=clip
  clip-jax data inspect folder:images --json
  clip-jax data inspect csv:pairs.csv --captions=title,description
  clip-jax data inspect folder:pets#train --captions=path
  clip-jax data dedup folder:images --out=keep.txt
  clip-jax data dedup folder:images --model=runs/emoji --html=copies.html
  clip-jax data dedup photos.npz --threshold=0.97 --json
  clip-jax data tokenizer --train --data=tfds:emoji#train --vocab_size=1500 \\
      --out=emoji.model

A SPEC is tfds:NAME[#SPLIT], folder:PATH[#SPLIT] or csv:PATH. `build` writes to
TFDS's own folder (TFDS_DATA_DIR, or ~/tensorflow_datasets), which tfds:NAME
reads. A folder has a sub-folder a class, or .txt captions beside its images;
--captions=filename or path takes the words of their names instead. A split is
a sub-folder, as in folder:pets#train. What is left out is counted on stderr.
`inspect` counts records, captions, image sizes and corrupt records, and draws
a contact sheet.

`dedup` finds images that are copies: files of the same bytes, and, with a
--model or in what `clip-jax embed` wrote, images whose embeddings have a
cosine of at least --threshold. Of each group the first in the data set's order
is kept, and every copy is that similar to it. --out lists the ids to keep, one
a line. How near is near depends on the model: look at the --html page, and try
others (photographs with a published model: 0.95 to 0.99).

A trained tokenizer is sentencepiece:FILE in a config.
"""

from absl import flags

from clip_jax.commands import common_flags, data_dedup, model_flags, printing
from clip_jax.errors import UsageError, print_notes
from clip_jax.progress import show_progress


def define_flags(values: flags.FlagValues) -> None:
  """Adds this verb's flags."""
  text = flags.DEFINE_string
  model_flags.define_model(values)
  text('data', None, 'tokenizer: a SPEC with captions', flag_values=values)
  common_flags.define_path(values, 'out', 'the file to write')
  text('model_type', 'unigram', 'tokenizer: unigram or bpe', flag_values=values)
  common_flags.define_captions(values)
  common_flags.define_encoding(values)
  flags.DEFINE_float(
    'threshold', 0.99, 'dedup: cosine of near copies', flag_values=values
  )
  common_flags.define_path(values, 'html', 'dedup: a page of the groups')
  flags.DEFINE_bool('train', False, 'tokenizer: train one', flag_values=values)
  flags.DEFINE_integer(
    'vocab_size', 8_000, 'tokenizer: pieces', 4, flag_values=values
  )
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Does what the first word says."""
  actions = {
    'build': _build,
    'inspect': _inspect,
    'tokenizer': _tokenizer,
    'dedup': data_dedup.run,
  }
  if not words or words[0] not in actions:
    asked = f'data {words[0]!r}?' if words else 'data what?'
    raise UsageError(f'{asked} One of {", ".join(actions)}.')
  actions[words[0]](values, words[1:])


def _build(values: flags.FlagValues, words: list[str]) -> None:
  from clip_jax.data.built_in import BUILT_IN, build

  if len(words) != 1 or words[0] not in BUILT_IN:
    raise UsageError(
      f'data build what? One of {", ".join(BUILT_IN)}. (Other TFDS data sets '
      'are prepared by `tfds build --file_format=array_record`.)'
    )
  path = build(words[0])
  if values.json:
    printing.print_json({'name': words[0], 'path': path})
  else:
    print(f'{words[0]} is ready in {path}; use it as tfds:{words[0]}')


def _inspect(values: flags.FlagValues, words: list[str]) -> None:
  if len(words) != 1:
    raise UsageError('data inspect takes one SPEC, such as folder:images.')

  sheet = common_flags.file_of(values.out, 'out', '.png')

  from clip_jax import tokenizers
  from clip_jax.data.inspect import describe, inspect

  tokenizer = tokenizers.load(values.tokenizer) if values.tokenizer else None
  summary = inspect(
    words[0],
    captions=tuple(values.captions),
    sheet_path=sheet,
    tokenizer=tokenizer,
    progress=show_progress,
  )
  print_notes(summary['notices'])
  if values.json:
    printing.print_json(summary)
    return
  print(describe(summary))


def _tokenizer(values: flags.FlagValues, words: list[str]) -> None:
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
