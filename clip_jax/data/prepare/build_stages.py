"""The two stages of a build: checks runs of records, and writes shards."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from clip_jax.data import storage
from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.prepare import array_record_shards, webdataset_shards
from clip_jax.data.prepare.engine import STAGES, Counts
from clip_jax.data.prepare.image_settings import ImageSettings
from clip_jax.data.prepare.manifest import file_entry
from clip_jax.data.prepare.part import (
  ROW,
  Dropped,
  Part,
  format_number,
  read_part,
)
from clip_jax.data.sources import Record, Source, open_source
from clip_jax.errors import FailureError

LAYOUTS = ('arrayrecord', 'wds')
_PART_RECORDS = 256
# More tasks than this would be slow to list.
_MAX_PARTS = 20_000


@dataclasses.dataclass(frozen=True)
class RecordSpan:
  """A task: records [start, stop) of the source.

  Attributes:
    name: of its part, or of its shard.
  """

  name: str
  start: int
  stop: int


@dataclasses.dataclass(frozen=True)
class Layout:
  """Properties of all records, which decide how shards are written.

  Attributes:
    name: one of `LAYOUTS`.
    most_captions, least_captions: of a record.
    with_label: whether a record has a label.
  """

  name: str
  most_captions: int
  least_captions: int
  with_label: bool


@dataclasses.dataclass(frozen=True)
class Input:
  """The input and the output folder of all tasks of a build; it pickles.

  Attributes:
    spec, captions: as `open_source` has them.
    out: the folder to write, local or remote.
    records: of the source.
  """

  spec: str
  captions: tuple[str, ...]
  out: str
  records: int

  def open(self) -> Source:
    """Returns the source, which each process opens once."""
    return _open(self.spec, self.captions)

  @property
  def part_records(self) -> int:
    """The records of each part but the last."""
    return max(_PART_RECORDS, -(-self.records // _MAX_PARTS))

  def parts(self) -> list[RecordSpan]:
    """Returns the tasks of the first stage."""
    starts = range(0, self.records, self.part_records)
    return [
      RecordSpan(
        f'{number:07}', start, min(self.records, start + self.part_records)
      )
      for number, start in enumerate(starts)
    ]

  def table_path(self, part: RecordSpan) -> str:
    """Returns the path of a part's table."""
    return storage.join(self.out, STAGES, 'parts', f'{part.name}.npz')

  def images_path(self, part: RecordSpan) -> str:
    """Returns the path of the images of a part that are encoded anew."""
    return storage.join(self.out, STAGES, 'parts', f'{part.name}.images')


@functools.lru_cache(1)
def _open(spec: str, captions: tuple[str, ...]) -> Source:
  return open_source(spec, captions=captions)


def check_part(
  data: Input,
  layout: str,
  settings: ImageSettings,
  max_corrupt: int,
  part: RecordSpan,
) -> Counts:
  """Decodes the images of a part, and encodes those anew that change.

  Returns:
    The number of records that are dropped.
  Raises:
    FailureError: over `max_corrupt` are broken, or a file cannot be written.
  """
  source = data.open()
  rows = np.zeros(part.stop - part.start, ROW)
  rows['offset'] = -1
  lengths: list[int] = []
  dropped: list[Dropped] = []
  with (
    storage.writing(data.images_path(part)) as path,
    open(path, 'wb') as images,
  ):
    for row, index in zip(rows, range(part.start, part.stop), strict=True):
      try:
        record = source[index]
        image = settings.prepare(record['image'])
      except CorruptImageError as error:
        dropped.append(Dropped(source.id(index), str(error)))
        if len(dropped) > max_corrupt:
          raise too_many_dropped(data.spec, max_corrupt, dropped) from error
        continue
      content = record['image']
      if image.content is not None:
        row['offset'], content = images.tell(), image.content
        images.write(content)
      sizes = _record_bytes(layout, record, len(content))
      row['image_bytes'] = len(content)
      row['bytes'], row['text_bytes'] = sizes
      row['width'], row['height'] = image.size
      row['format'] = format_number(image.format)
      row['captions'] = len(record['caption'])
      row['label'] = 'label' in record
      lengths += map(len, record['caption'])
  Part(rows, np.array(lengths, np.int64), dropped).write(data.table_path(part))
  return {'dropped': len(dropped)}


def _record_bytes(layout: str, record: Record, image: int) -> tuple[int, int]:
  if layout == 'wds':
    return webdataset_shards.record_bytes(record, image)
  return array_record_shards.record_bytes(record, image), 0


def too_many_dropped(
  spec: str, limit: int, dropped: Sequence[Dropped]
) -> FailureError:
  """Returns the error of a source with more broken records than the limit."""
  reasons = '; '.join(f'{x.id}: {x.reason}' for x in dropped[:3])
  return FailureError(
    f'data {spec!r}: over --max_corrupt={limit} records are broken: {reasons}.'
  )


def plan_shards(
  data: Input,
  layout: Layout,
  tables: Callable[[], Iterator[Part]],
  shard_bytes: int,
  shard_records: int | None,
) -> list[RecordSpan]:
  """Returns the tasks of the second stage.

  A shard takes records, in order, as long as it stays within the limits; it
  has one at least.

  Args:
    tables: yields those of all parts, in order.
    shard_bytes: the most that a shard has, unless one record is larger.
    shard_records: the most records of a shard; None sets no limit.
  """
  limit = shard_bytes
  if layout.name == 'wds':
    limit -= webdataset_shards.OVERHEAD_BYTES
  else:
    limit -= min(array_record_shards.OVERHEAD_BYTES, limit // 2)
  ends: list[int] = []  # of shards, as indices of the source
  size, count, start = 0, 0, 0
  for part in tables():
    kept = np.flatnonzero(part.rows['bytes'])
    sizes = part.rows['bytes'][kept]
    if layout.most_captions <= 1:
      sizes = sizes + part.rows['text_bytes'][kept]
    sums = np.concatenate([[0], np.cumsum(sizes)])
    position = 0
    while position < len(kept):
      room = sums[position] + limit - size
      taken = int(np.searchsorted(sums, room, 'right')) - 1 - position
      if shard_records is not None:
        taken = min(taken, shard_records - count)
      taken = max(taken, 0 if count else 1)
      size += int(sums[position + taken] - sums[position])
      count, position = count + taken, position + taken
      if position < len(kept):
        ends.append(start + int(kept[position]))
        size = count = 0
    start += len(part.rows)
  ends.append(data.records)
  name = _shard_name(layout.name)
  return [
    RecordSpan(name(number, len(ends)), first, stop)
    for number, (first, stop) in enumerate(zip([0, *ends], ends, strict=False))
  ]


def _shard_name(layout: str) -> Callable[[int, int], str]:
  if layout == 'wds':
    return webdataset_shards.shard_name
  return array_record_shards.shard_name


def write_shard(data: Input, layout: Layout, shard: RecordSpan) -> Counts:
  """Writes a shard.

  Returns:
    Its bytes, its checksum, and its number of records.
  Raises:
    FailureError: a record is no longer what it was, or the shard cannot be
      written.
  """
  records = _kept_records(data, shard)
  with storage.writing(storage.join(data.out, shard.name)) as path:
    if layout.name == 'wds':
      count = webdataset_shards.write_shard(
        path, records, with_text=layout.most_captions <= 1
      )
    else:
      count = array_record_shards.write_shard(
        path, records, with_label=layout.with_label
      )
    return {**file_entry(path), 'records': count}


def _kept_records(
  data: Input, shard: RecordSpan
) -> Iterator[tuple[int, Record]]:
  """Yields the index and the record of all that a shard has.

  Raises:
    FailureError: one is no longer what it was.
  """
  source = data.open()
  first = shard.start // data.part_records
  for part in data.parts()[first:]:
    if part.start >= shard.stop:
      break
    rows = read_part(data.table_path(part)).rows
    with storage.open_file(data.images_path(part)) as images:
      for index in range(
        max(part.start, shard.start), min(part.stop, shard.stop)
      ):
        row = rows[index - part.start]
        if not row['bytes']:
          continue
        try:
          record = source[index]
        except CorruptImageError as error:
          raise _changed(source, index) from error
        if row['offset'] >= 0:
          images.seek(int(row['offset']))
          record['image'] = images.read(int(row['image_bytes']))
        if len(record['image']) != row['image_bytes']:
          raise _changed(source, index)
        yield index, record


def _changed(source: Source, index: int) -> FailureError:
  return FailureError(
    f'data {source.spec!r}: the record {source.id(index)} has changed since '
    'the build began: remove the folder that is built, and begin again.'
  )
