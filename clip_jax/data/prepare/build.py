"""Builds shards of any data set: ArrayRecord in TFDS's layout, or WebDataset.

Two stages on an `engine` (see `build_stages`). The first decodes each image,
encodes those anew that are to be changed, and notes what is dropped and how
large each record will be. The sizes say which records each shard has; the
second stage writes the shards, each by itself. Records keep their order, and no
process holds more than one of them.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

from clip_jax.data import storage
from clip_jax.data.decoding import LIMIT_VARIABLE
from clip_jax.data.prepare import array_record_shards, webdataset_shards
from clip_jax.data.prepare.build_stages import (
  LAYOUTS,
  Input,
  Layout,
  check_part,
  plan_shards,
  too_many_dropped,
  write_shard,
)
from clip_jax.data.prepare.engine import (
  LOCAL,
  STAGES,
  Counts,
  Engine,
  as_json,
  refuse_other_settings,
  run_stage,
)
from clip_jax.data.prepare.image_settings import KEEP, ImageSettings
from clip_jax.data.prepare.manifest import (
  MANIFEST,
  file_entry,
  missing_files,
  read_manifest,
  write_manifest,
)
from clip_jax.data.prepare.part import Dropped, Part, read_part
from clip_jax.data.prepare.statistics import Statistics
from clip_jax.data.sources import Source, Spec, open_source
from clip_jax.errors import (
  FailureError,
  MissingFileError,
  UsageError,
  check_choice,
)
from clip_jax.files import to_bytes
from clip_jax.progress import Progress, no_progress

DROPPED, STATISTICS = 'dropped.jsonl', 'statistics.json'
DEFAULT_SHARD_BYTES = 256 * 10**6
_NAMED_DROPPED = 20


@dataclasses.dataclass(frozen=True)
class BuildJob:
  """The settings of a build: the source, the layout and the limits.

  Attributes:
    spec, captions: the data set, as `open_source` has it.
    out: the folder to write, local or remote.
    layout: one of `LAYOUTS`.
    image: what is done to images.
    shard_bytes: the most that a shard has, unless one record is larger; of
      ArrayRecord about.
    shard_records: the records of each shard but the last; None sets no limit.
    max_corrupt: the most records that are dropped.
  """

  spec: str
  captions: tuple[str, ...]
  out: str
  layout: str
  image: ImageSettings = KEEP
  shard_bytes: int = DEFAULT_SHARD_BYTES
  shard_records: int | None = None
  max_corrupt: int = 100

  def __post_init__(self) -> None:
    """Checks the settings.

    Raises:
      UsageError: one is out of its range.
    """
    check_choice('--to', self.layout, LAYOUTS)
    if self.shard_records is not None and self.shard_records < 1:
      raise UsageError(f'--shard_records={self.shard_records}: use 1 or more.')

  def settings(self, source: Source) -> dict[str, Any]:
    """Returns all that the shards depend on, as JSON has it."""
    outline = hashlib.sha256()
    for line in source.outline():
      outline.update(line.encode('utf-8', 'surrogatepass') + b'\n')
    settings = {
      'data': self.spec,
      'captions': self.captions,
      'records': len(source),
      'content': outline.hexdigest(),
      'to': self.layout,
      **dataclasses.asdict(self.image),
      'max_megapixels': os.environ.get(LIMIT_VARIABLE),
      'shard_bytes': self.shard_bytes,
      'shard_records': self.shard_records,
    }
    return as_json(settings)


@dataclasses.dataclass(frozen=True)
class Built:
  """The result of `build`.

  Attributes:
    source: the data set that was read.
    shards: by name, the number of records, the bytes and the SHA-256.
    statistics: as `statistics.json` has them.
    dropped: the first of the records that were dropped.
    was_there: whether all of it was there before.
  """

  source: Source
  shards: dict[str, dict[str, Any]]
  statistics: dict[str, Any]
  dropped: list[Dropped]
  was_there: bool


def build(
  job: BuildJob,
  *,
  engine: Engine = LOCAL,
  progress: Progress = no_progress,
) -> Built:
  """Builds shards; where it was killed before, it goes on.

  Raises:
    UsageError: see `open_source`; or the folder has other files, or was begun
      with other settings.
    FailureError: over `max_corrupt` records are broken, none is sound, or a
      file cannot be written.
  """
  source = open_source(job.spec, captions=job.captions)
  settings = job.settings(source)
  was_there = _is_finished(job.out, settings)
  if not was_there:
    data = Input(job.spec, job.captions, job.out, len(source))
    _check(job, data, settings, engine, progress)
    _write(job, data, source, settings, engine, progress)
  # Kept for the case that the build is stopped.
  storage.remove_folder(storage.join(job.out, STAGES))
  files = read_manifest(job.out)['files']
  return Built(
    source,
    {name: entry for name, entry in files.items() if 'records' in entry},
    json.loads(_read(job.out, STATISTICS)),
    [Dropped(**json.loads(x)) for x in _first_lines(job.out)],
    was_there,
  )


def _is_finished(out: str, settings: dict[str, Any]) -> bool:
  """Returns whether all shards are there.

  Raises:
    UsageError: the folder has other files, or shards of other settings.
  """
  try:
    manifest = read_manifest(out)
  except MissingFileError:
    names = storage.list_folder(out) if storage.is_folder(out) else []
    if names and f'{STAGES}/' not in names:
      raise UsageError(
        f'{out} holds other files, such as {names[0]}: name a new folder.'
      ) from None
    return False
  refuse_other_settings(out, manifest['settings'], settings)
  if missing_files(out, manifest):
    storage.remove(storage.join(out, MANIFEST))
    return False
  return True


def _check(
  job: BuildJob,
  data: Input,
  settings: dict[str, Any],
  engine: Engine,
  progress: Progress,
) -> None:
  """Runs the first stage.

  Raises:
    FailureError: over `max_corrupt` records are broken, or none is sound.
  """
  counts = run_stage(
    'check',
    data.parts(),
    functools.partial(check_part, data, job.layout, job.image, job.max_corrupt),
    job.out,
    engine=engine,
    settings=settings,
    outputs=lambda part: [data.table_path(part), data.images_path(part)],
    progress=progress,
    unit='records read',
    size=lambda part: part.stop - part.start,
  )
  broken = sum(x['dropped'] for x in counts)
  first = list(itertools.islice(_dropped(data), 3))
  if broken > job.max_corrupt:
    raise too_many_dropped(job.spec, job.max_corrupt, first)
  if broken == data.records:
    reasons = ''.join(f'; {x.id}: {x.reason}' for x in first)
    raise FailureError(f'data {job.spec!r}: no record is sound{reasons}.')


def _write(
  job: BuildJob,
  data: Input,
  source: Source,
  settings: dict[str, Any],
  engine: Engine,
  progress: Progress,
) -> None:
  """Runs the second stage, and writes what describes the shards."""
  statistics = Statistics()
  for part in _tables(data):
    statistics.add(part)
  layout = Layout(
    job.layout,
    statistics.most_captions,
    statistics.least_captions,
    statistics.labels > 0,
  )
  shards = plan_shards(
    data,
    layout,
    functools.partial(_tables, data),
    job.shard_bytes,
    job.shard_records,
  )
  counts = run_stage(
    'write',
    shards,
    functools.partial(write_shard, data, layout),
    job.out,
    engine=engine,
    settings=settings,
    outputs=lambda shard: [storage.join(job.out, shard.name)],
    progress=progress,
    unit='records written',
    size=lambda shard: shard.stop - shard.start,
  )
  entries = dict(zip((x.name for x in shards), counts, strict=True))
  for name, content in _describe(job, layout, source, counts).items():
    storage.write_bytes(storage.join(job.out, name), content)
    entries[name] = file_entry(storage.join(job.out, name))
  for name, write in (
    (DROPPED, functools.partial(_write_dropped, data)),
    (STATISTICS, functools.partial(_write_statistics, statistics, counts)),
  ):
    path = storage.join(job.out, name)
    write(path)
    entries[name] = file_entry(path)
  if job.layout == 'wds':
    _make_index(job.out, engine)
  write_manifest(job.out, settings, entries)


def _describe(
  job: BuildJob, layout: Layout, source: Source, counts: list[Counts]
) -> dict[str, bytes]:
  """Returns the files beside the shards that their readers use."""
  label_names = source.label_names if layout.with_label else None
  if job.layout == 'wds':
    if not label_names:
      return {}
    lines = ''.join(f'{" ".join(name.split())}\n' for name in label_names)
    return {webdataset_shards.NAMES_FILE: lines.encode()}
  return array_record_shards.describe(
    [x['records'] for x in counts],
    sum(x['bytes'] for x in counts),
    one_caption=layout.least_captions == layout.most_captions == 1,
    with_label=layout.with_label,
    label_names=label_names,
  )


def _make_index(out: str, engine: Engine) -> None:
  from clip_jax.data.indexing.build import build_index

  # Parsing would take a '#' in the name for a split.
  spec = Spec(f'wds:{out}', 'wds', out, '')
  build_index(spec, workers=engine.worker_count(), max_corrupt=0)


def _write_dropped(data: Input, path: str) -> None:
  with storage.writing(path) as temporary, open(temporary, 'wb') as file:
    for dropped in _dropped(data):
      file.write(json.dumps(dropped._asdict()).encode() + b'\n')


def _write_statistics(
  statistics: Statistics, counts: list[Counts], path: str
) -> None:
  content = {
    **statistics.summary(),
    'shards': len(counts),
    'shard_bytes': sum(x['bytes'] for x in counts),
  }
  storage.write_bytes(path, to_bytes(content))


def _tables(data: Input) -> Iterator[Part]:
  for part in data.parts():
    yield read_part(data.table_path(part))


def _dropped(data: Input) -> Iterator[Dropped]:
  for part in _tables(data):
    yield from part.dropped


def _read(out: str, name: str) -> bytes:
  return storage.read_all(storage.join(out, name), 2**30)


def _first_lines(out: str) -> list[bytes]:
  with storage.open_file(storage.join(out, DROPPED)) as file:
    return list(itertools.islice(file, _NAMED_DROPPED))
