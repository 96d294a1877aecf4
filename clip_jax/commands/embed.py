"""Writes the embeddings of images, of texts, or of both to one file.

usage:
  clip-jax embed --model=REF [--images=SPEC] [--texts=FILE] --out=FILE
  clip-jax embed --model=REF --config=configs/NAME.py --out=FOLDER

examples:
  clip-jax embed --model=runs/emoji --images=folder:photos --out=photos.npz
  clip-jax embed --model=runs/emoji --images=tfds:emoji#test --out=emoji.parquet
  clip-jax embed --model=REF --texts=queries.txt --out=queries.npz

A texts FILE is UTF-8 with one text a line. The output, .npz or .parquet, has a
row for each image and text: its id (a line's is FILE:NUMBER), its kind
(image or text), its caption, and its embedding, float32 of unit length; in an
.npz the arrays ids, kinds, captions and embeddings (if one very long text would
make numpy's `captions` larger than 1 GB, `captions_utf8` holds the texts one
after another instead, and `captions_offsets` says where each begins). Images
that cannot be read are left out and named, up to --max_corrupt.

The same command again, after images or texts were added, changed or removed,
encodes what is new only, and replaces the file: contents are compared, and not
dates. Another model, preprocessing or dtype encodes all anew, and so does
another activation of the same weights.

Millions of records need no more memory than a few. The rows wait in parts in
the folder OUT.parts (the name without its suffix), and become the file when all
are there. Kill it when you like: the same command goes on. Several processes
share the work when each is given its --shard:
  clip-jax embed --model=REF --images=SPEC --out=FILE --shard=0/2
  clip-jax embed --model=REF --images=SPEC --out=FILE --shard=1/2
with the folder on a disk that they share; the last one to end joins the parts.
Where JAX is distributed, the shard is the process's index.

With --config, a recipe for training, the model is a teacher: the folder --out
gets its features of all data.views augmented views of each record of
data.train, and of each caption:
  clip-jax embed --model=TEACHER --config=configs/NAME.py --out=FOLDER
To train on them, use the same config, list this folder in data.teachers and set
a weight in objective.added.distillation. For each example, training draws one
of the views, recreates its pixels, and learns from the teacher's features of
it.
"""

import os
import sys
from typing import TYPE_CHECKING

from absl import flags

from clip_jax.commands import common_flags, model_flags, printing
from clip_jax.commands.config_file import define_config, parse, stated_fields
from clip_jax.errors import UsageError, print_notes
from clip_jax.files import typed_path
from clip_jax.progress import show_progress

if TYPE_CHECKING:
  from clip_jax.inference import embed_views
  from clip_jax.inference.embed import EmbedSummary
  from clip_jax.inference.embed_job import EmbedJob


__all__ = ['define_flags', 'parse', 'run']


def define_flags(values: flags.FlagValues) -> None:
  """Adds this verb's flags."""
  model_flags.define_model(values)
  define_config(values)
  flags.DEFINE_string(
    'images', None, 'a data set, SCHEME:LOCATION[#SPLIT]', flag_values=values
  )
  common_flags.define_path(values, 'texts', 'a UTF-8 file with one text a line')
  common_flags.define_path(
    values, 'out', 'the file to write, .npz or .parquet; of --config a folder'
  )
  flags.DEFINE_string(
    'shard',
    None,
    'I/N: the part of the work that this process does',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'part_rows', 1024, 'records a part, what a kill costs', flag_values=values
  )
  common_flags.define_captions(values)
  common_flags.define_encoding(values)
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Embeds, writes, and says what was written."""
  common_flags.no_words('embed', words)
  reference = model_flags.reference_of(values)
  example = 'name a .npz or .parquet file'
  if values.config is not None:
    example = 'name a folder for the features of this teacher'
  name = common_flags.require(values.out, 'out', example)
  if values.part_rows < 1:
    raise UsageError(f'--part_rows={values.part_rows} must be at least 1.')
  worker = _parse_shard(values.shard) if values.shard else None
  if values.config is not None:
    _embed_views(values, reference, name, worker)
    return
  if not values.images and not values.texts:
    raise UsageError('nothing to embed: give --images=SPEC, --texts=FILE.')
  texts = None
  if values.texts:
    texts = common_flags.lines_of('texts', os.fspath(typed_path(values.texts)))
  if texts is not None and not texts:
    raise UsageError(f'--texts: {values.texts} has no text in it.')

  from clip_jax.inference.embeddings import check_path
  from clip_jax.inference.references import recognise

  out = typed_path(name)
  check_path(out)
  recognise(reference)  # a wrong one is told before the data are opened

  from clip_jax.data.sources import open_source
  from clip_jax.inference.embed import embed

  source = None
  if values.images:
    source = open_source(values.images, captions=tuple(values.captions))
    print_notes(source.notices)
  job = model_flags.embed_job(
    values,
    source,
    texts=texts,
    texts_name=typed_path(values.texts).name if values.texts else '',
    part_rows=values.part_rows,
    worker=worker or _own_part(),
  )
  summary = embed(
    job,
    out,
    progress=show_progress,
    say=printing.say,
  )
  _report(summary, name, job, as_json=values.json)


def _own_part() -> tuple[int, int]:
  """Returns the index and the count of this process, where JAX knows more."""
  import jax

  if jax.distributed.is_initialized():
    return jax.process_index(), jax.process_count()
  return 0, 1


def _embed_views(
  values: flags.FlagValues,
  reference: str,
  name: str,
  worker: tuple[int, int] | None,
) -> None:
  """Embeds the views of a recipe's training set."""
  for flag in ('images', 'texts'):
    if values[flag].value:
      raise UsageError(
        f'--{flag} and --config: the recipe names the data, in data.train.'
      )
  if values['captions'].present:
    raise UsageError(
      '--captions and --config: the recipe names the captions, in '
      'data.captions.'
    )
  out = common_flags.folder_of(name, 'out')
  assert out is not None
  if not out.parent.is_dir():
    raise UsageError(f'--out: {out}: there is no folder {out.parent}.')

  from clip_jax.inference.references import recognise

  recognise(reference)  # a wrong one is told before the data are opened

  from clip_jax.data.pipeline import captioned_sources, check_captions
  from clip_jax.inference.embed_views import ViewsJob, embed_views
  from clip_jax.training.config import preprocessing_of, views_of
  from clip_jax.training.run import (
    augmentation_of,
    caption_rule,
    complete_config,
    open_training_sources,
  )

  config = complete_config(values.config, stated=stated_fields(values)).config
  views = views_of(config)
  if views is None:
    raise UsageError(
      'data.views=0: say how many views of each record the teacher is to see, '
      'as in --config.data.views=10.'
    )
  if config.data.sequence_lengths:
    raise UsageError(
      'data.sequence_lengths makes patches of native aspect, and a teacher '
      'sees squares: leave it out.'
    )
  sources = open_training_sources(config)
  print_notes(line for source in sources for line in source.notices)
  check_captions(sources)
  model = model_flags.load_model(
    values, dtype=values.dtype, batch_size=values.batch_size
  )
  job = ViewsJob(
    model=model,
    dtype=values.dtype,
    sources=captioned_sources(sources),
    captions=tuple(config.data.captions),
    rule=caption_rule(config),
    views=views,
    augmentation=augmentation_of(config),
    preprocessing=preprocessing_of(config, model.config),
    decode=config.data.decode,
    max_corrupt=values.max_corrupt,
    part_rows=values.part_rows,
    worker=worker or _own_part(),
  )
  summary = embed_views(
    job,
    out,
    progress=show_progress,
    say=printing.say,
  )
  _report_views(summary, name, job, as_json=values.json)


def _report_views(
  summary: 'embed_views.Summary',
  out: str,
  job: 'embed_views.ViewsJob',
  *,
  as_json: bool,
) -> None:
  printing.report_corrupt(summary.corrupt)
  if summary.truncated:
    length = job.model.tokenizer.context_length
    print(
      f'{summary.truncated:,} captions were truncated to {length} tokens.',
      file=sys.stderr,
    )
  if as_json:
    fields = {k: v for k, v in vars(summary).items() if k != 'dims'}
    printing.print_json(
      {
        'out': out,
        'views': job.views.count,
        'dimensions': summary.dims,
        **fields,
      }
    )
    return
  missing = summary.planned - summary.shards
  others = f"; {missing:,} parts are the other shards' to make"
  print(
    f'{summary.records:,} records, {job.views.count} views each, '
    f'{summary.dims} dimensions -> {out}{others if missing else ""}'
  )


def _parse_shard(shard: str) -> tuple[int, int]:
  """Returns the index and the count of 'I/N'."""
  index, _, count = shard.partition('/')
  if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
    raise UsageError(
      f'--shard={shard}: use I/N with I from 0 to N - 1, as in 0/4.'
    )
  return int(index), int(count)


def _report(
  summary: 'EmbedSummary', out: str, job: 'EmbedJob', *, as_json: bool
) -> None:
  printing.report_corrupt(summary.corrupt)
  if summary.truncated and job.texts is not None:
    print(
      f'{summary.truncated:,} of {len(job.texts):,} texts were '
      f'truncated to {job.model.tokenizer.context_length} tokens.',
      file=sys.stderr,
    )
  if summary.update is not None:
    update = summary.update
    print(
      f'kept {update.kept:,}, encoded {update.new:,} new, {update.changed:,} '
      f'changed, dropped {update.dropped:,} that are gone',
      file=sys.stderr,
    )
  if not summary.joined:
    _report_parts(summary, out, as_json=as_json)
  elif as_json:
    update = {} if summary.update is None else summary.update._asdict()
    printing.print_json(
      {
        'out': out,
        'images': summary.images,
        'texts': summary.texts,
        'dimensions': summary.dims,
        'corrupt': summary.corrupt,
        'truncated': summary.truncated,
        **update,
      }
    )
  else:
    counts = ' and '.join(
      f'{count:,} {kind}{"s" if count > 1 else ""}'
      for kind, count in (('image', summary.images), ('text', summary.texts))
      if count
    )
    print(f'{counts}, {summary.dims} dimensions -> {out}')


def _report_parts(summary: 'EmbedSummary', out: str, *, as_json: bool) -> None:
  """Prints that the other workers have shards to make yet."""
  if as_json:
    printing.print_json(
      {'out': out, 'parts': summary.shards, 'planned': summary.planned}
    )
    return
  print(
    f'{summary.shards:,} of {summary.planned:,} parts are there; the other '
    f'shards make the rest, and the last joins them to {out}'
  )
