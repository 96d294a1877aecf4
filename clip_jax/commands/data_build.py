"""Builds shards of any data set: ArrayRecord in TFDS's layout, or WebDataset.

usage:
  clip-jax data build SPEC --to=arrayrecord|wds --out=DIR [--shard_bytes=256MB]
      [--shard_records=N] [--max_side=PIXELS] [--format=jpeg|png|webp|keep]
      [--quality=N] [--engine=local|beam|ray] [--workers=N] [--json]
  clip-jax data build --verify --out=DIR [--json]
  clip-jax data build emoji|digits [--json]

examples:
  clip-jax data build folder:images --to=wds --out=shards
  clip-jax data build csv:pairs.csv --captions=title,text --to=arrayrecord \\
      --out=records --max_side=512 --format=jpeg --quality=90
  clip-jax data build 'wds:gs://bucket/raw/*.tar' --to=wds \\
      --out=gs://bucket/shards --shard_records=10000 --workers=32
  clip-jax data build hf:beans --to=arrayrecord --out=beans --engine=beam
  clip-jax data build --verify --out=shards
  clip-jax data build emoji

All images are decoded; the records of those that are broken are dropped, and
listed in dropped.jsonl with the reason. All others keep their order, captions,
labels and ids, and their images keep their bytes, unless --max_side, --format
or --quality ask for other ones. Images are never enlarged.

Beside the shards are statistics.json, manifest.json with the SHA-256 of every
file, which --verify compares, and for WebDataset an index. Both layouts are the
same bytes whatever the engine and its workers. A killed command goes on where
it was; a folder that was begun with other settings is refused.

--engine=local takes processes of this machine, `beam` Apache Beam
(--beam_options='--runner=DataflowRunner --project=…' for other machines), and
`ray` Ray Data.

emoji and digits come with the package. They are built in TFDS's own folder
(TFDS_DATA_DIR, or ~/tensorflow_datasets), which tfds:emoji reads.
"""

import re
from typing import TYPE_CHECKING, Any

from absl import flags

from clip_jax.commands import common_flags, printing
from clip_jax.errors import (
  FailureError,
  UsageError,
  one_line,
  plural,
  print_notes,
)
from clip_jax.progress import byte_count, show_progress

if TYPE_CHECKING:
  from clip_jax.data.prepare.build import Built

_UNITS = {'': 1, 'KB': 10**3, 'MB': 10**6, 'GB': 10**9}


def define_flags(values: flags.FlagValues) -> None:
  """Adds this action's flags."""
  text, number = flags.DEFINE_string, flags.DEFINE_integer
  text('to', None, 'arrayrecord or wds', flag_values=values)
  common_flags.define_path(values, 'out', 'the folder of the shards')
  text(
    'shard_bytes',
    '256MB',
    'the most that a shard has: bytes, or with KB, MB, GB',
    flag_values=values,
  )
  number('shard_records', None, 'records of a shard', 1, flag_values=values)
  number(
    'max_side',
    None,
    'scale images down whose longer side has more pixels',
    1,
    flag_values=values,
  )
  text('format', 'keep', 'jpeg, png, webp, or keep', flag_values=values)
  number(
    'quality',
    None,
    'of JPEG and WebP, 1 to 100; 95 where one is written',
    flag_values=values,
  )
  number('max_corrupt', 100, 'broken records to drop', 0, flag_values=values)
  common_flags.define_engine(values)
  flags.DEFINE_bool(
    'verify', False, 'compare all files with the manifest', flag_values=values
  )
  common_flags.define_captions(values)
  common_flags.define_images(values)
  common_flags.define_json(values)


def run(values: flags.FlagValues, words: list[str]) -> None:
  """Builds, or verifies, and prints what there is."""
  from clip_jax.data.built_in import BUILT_IN

  if values.verify:
    _verify(values, words)
  elif len(words) == 1 and words[0] in BUILT_IN:
    _build_built_in(values, words[0])
  elif len(words) != 1:
    raise UsageError(
      f'data build what? A SPEC, such as folder:images, or one of '
      f'{", ".join(BUILT_IN)}.'
    )
  else:
    _build(values, words[0])


def _build(values: flags.FlagValues, spec: str) -> None:
  to = common_flags.require(values.to, 'to', 'arrayrecord or wds')
  out = common_flags.out_folder(values, 'name the folder of the shards')

  from clip_jax.data.prepare.build import BuildJob, build
  from clip_jax.data.prepare.image_settings import ImageSettings

  job = BuildJob(
    spec,
    tuple(values.captions),
    out,
    to,
    ImageSettings(values.max_side, values.format, values.quality),
    _bytes_of(values.shard_bytes),
    values.shard_records,
    values.max_corrupt,
  )
  built = build(
    job, engine=common_flags.engine_of(values), progress=show_progress
  )
  print_notes(built.source.notices)
  use_as = _spec_of(job.out, to, list(built.shards))
  if values.json:
    printing.print_json(
      {
        'data': spec,
        'out': job.out,
        'use_as': use_as,
        'was_there': built.was_there,
        **built.statistics,
        'dropped_records': [x._asdict() for x in built.dropped],
      }
    )
    return
  _print(built, job.out, use_as)


def _bytes_of(text: str) -> int:
  """Returns the number of bytes of '256MB' and the like.

  Raises:
    UsageError: it is no number over 0.
  """
  match = re.fullmatch(r'(\d+(?:\.\d+)?) *([KMG]B|)', text.strip().upper())
  number = int(float(match[1]) * _UNITS[match[2]]) if match else 0
  if number < 1:
    raise UsageError(
      f'--shard_bytes={text}: a number of bytes, such as 500000, 256MB or 1GB.'
    )
  return number


def _spec_of(out: str, layout: str, shards: list[str]) -> str:
  """Returns the SPEC that reads what was built."""
  from clip_jax.data import storage

  if layout != 'wds':
    return f'arrayrecord:{out}'
  if any(x in out for x in '#{'):  # which mean something in a pattern
    return f'wds:{out}'
  first, last = (name.removesuffix('.tar') for name in (shards[0], shards[-1]))
  name = f'{{{first}..{last}}}.tar' if first != last else shards[0]
  return f'wds:{storage.join(out, name)}'


def _print(built: 'Built', out: str, use_as: str) -> None:
  counts = built.statistics
  for dropped in built.dropped[:5]:
    print(one_line(f'dropped {dropped.id}: {dropped.reason}'))
  if counts['dropped']:
    print(
      f'{plural(counts["dropped"], "record")} dropped, with the reasons in '
      f'{out}/dropped.jsonl'
    )
  anew = counts['images_encoded_anew']
  encoded = f', {anew:,} images encoded anew' if anew else ''
  there = ' (all was there before)' if built.was_there else ''
  print(
    f'{plural(counts["records"], "record")} in '
    f'{plural(counts["shards"], "shard")}, {byte_count(counts["shard_bytes"])}'
    f'{encoded}{there}; use them as {use_as}'
  )


def _verify(values: flags.FlagValues, words: list[str]) -> None:
  common_flags.no_words('data build --verify', words)
  folder = common_flags.out_folder(values, 'name the folder of the shards')

  from clip_jax.data.prepare.manifest import read_manifest, verify

  files = read_manifest(folder)['files']
  workers = common_flags.engine_of(values).worker_count()
  differing = verify(folder, workers=workers, progress=show_progress)
  if values.json:
    printing.print_json(
      {'out': folder, 'files': len(files), 'differing': differing}
    )
  if differing:
    more = '; …' if len(differing) > 3 else ''
    raise FailureError(
      f'{folder}: {len(differing):,} of {plural(len(files), "file")} differ '
      f'from the manifest: {"; ".join(differing[:3])}{more}.'
    )
  if not values.json:
    print(f'{plural(len(files), "file")} as in {folder}/manifest.json')


def _build_built_in(values: flags.FlagValues, name: str) -> None:
  for flag in ('to', 'out'):
    if values[flag].value:
      raise UsageError(
        f'{name} is built in the folder of TFDS; for shards of it name '
        f'tfds:{name}#train.'
      )
  from clip_jax.data.built_in import build

  path = build(name)
  result: dict[str, Any] = {'name': name, 'path': path}
  if values.json:
    printing.print_json(result)
  else:
    print(f'{name} is ready in {path}; use it as tfds:{name}')
