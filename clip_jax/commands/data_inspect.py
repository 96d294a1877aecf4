"""Counts what a data set holds, and draws a contact sheet.

usage:
  clip-jax data inspect SPEC [--out=SHEET.png] [--tokenizer=…] [--json]

examples:
  clip-jax data inspect tfds:emoji#test --out=sheet.png --tokenizer=clip
  clip-jax data inspect folder:images --json
  clip-jax data inspect csv:pairs.csv --captions=title,description
  clip-jax data inspect folder:pets#train --captions=path

It counts records, captions, image sizes and corrupt records; with --tokenizer
also the tokens of captions. What a source leaves out is counted on stderr.
--captions=filename or path takes the words of the names of a folder's files.
"""

from absl import flags

from clip_jax.commands import common_flags, printing
from clip_jax.errors import UsageError, print_notes
from clip_jax.progress import show_progress


def define_flags(values: flags.FlagValues) -> None:
  """Adds this action's flags."""
  common_flags.define_path(values, 'out', 'the contact sheet, a PNG')
  flags.DEFINE_string(
    'tokenizer',
    None,
    'measures captions: clip, sentencepiece:PATH, siglip:PATH, hf:PATH',
    flag_values=values,
  )
  common_flags.define_captions(values)
  common_flags.define_images(values)
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Reads every record, and prints the summary."""
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
