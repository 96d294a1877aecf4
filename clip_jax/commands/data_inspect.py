"""Counts what a data set holds, and draws a contact sheet.

usage:
  clip-jax data inspect SPEC [--out=SHEET.png] [--sample=N] [--seed=N]
      [--tokenizer=…] [--json]

examples:
  clip-jax data inspect tfds:emoji#test --out=sheet.png --tokenizer=clip
  clip-jax data inspect folder:images --json
  clip-jax data inspect csv:pairs.csv --captions=title,description
  clip-jax data inspect folder:pets#train --captions=path
  clip-jax data inspect 'wds:cc12m/*.tar' --sample=50000 --seed=1
  clip-jax data inspect 'wds:cc12m/*.tar::tfds:emoji' --tokenizer=siglip:PATH

It reads any SPEC, or a mixture (SPEC::SPEC), and counts captions, their tokens
and how many a tokenizer truncates, image sizes and formats, exact copies,
repeated captions and languages (with pip install ".[curate]"); it names the
worst records: corrupt with the reason, elongated, tiny, without a caption. Of
data with over --sample records it reads that many, drawn at random by --seed,
and says so; 0 is all. What a source leaves out is counted on stderr.
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
    'clip',
    'measures captions: clip, sentencepiece:PATH, siglip:PATH, hf:PATH',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'sample',
    10_000,
    'records to read at the most, at random; 0 is all',
    0,
    flag_values=values,
  )
  flags.DEFINE_integer('seed', 0, 'of the sample', flag_values=values)
  common_flags.define_captions(values)
  common_flags.define_images(values)
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Reads records, and prints the summary."""
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
    sample=values.sample,
    seed=values.seed,
  )
  print_notes(summary['notices'])
  if values.json:
    printing.print_json(summary)
    return
  print(describe(summary))
