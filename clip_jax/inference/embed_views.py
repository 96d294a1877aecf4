"""Embeds the views and captions of a training set by a teacher, in shards.

`teacher_features` says what is written. A process can be killed at any moment,
and more than one can share the work, as in `embed`; nothing is joined.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.data.augment import Augmentation, augment
from clip_jax.data.captions import CaptionRule
from clip_jax.data.decoding import CorruptImageError, check_corrupt
from clip_jax.data.examples import decoder_of
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.reading import map_ahead
from clip_jax.data.sources import Record, Source
from clip_jax.data.views import Views
from clip_jax.errors import UsageError
from clip_jax.files import check_fields, holding_lock
from clip_jax.inference.embed_folder import refuse_other_job
from clip_jax.inference.encode_shards import (
  EncodedShard,
  Item,
  encode_shards,
)
from clip_jax.inference.identity import (
  hash_each,
  hash_tokenizer,
  model_identity,
)
from clip_jax.inference.model import Model
from clip_jax.inference.shards import Shard, make_shards, records_of
from clip_jax.inference.teacher_features import (
  STORED,
  VERSION,
  ShardNotes,
  describe_views,
  store_of,
)
from clip_jax.progress import Progress


@dataclasses.dataclass(frozen=True)
class ViewsJob:
  """The inputs of one call of `embed_views`.

  Attributes:
    model: the teacher.
    dtype: of the model's arithmetic.
    sources: the training set, those records with captions.
    captions: the columns that captions come from.
    rule: which captions training may draw, and the prompts around them; None:
      all as they are.
    views: which views of each record.
    augmentation, preprocessing: of the run that is to be trained, but for the
      size, which is that of the model's images.
    decode: how JPEGs are read; see `decoder_of`.
    max_corrupt: images that may be left out, over the whole job.
    part_rows: records a shard; a job that goes on keeps its number.
    worker: index and count: this process makes each count-th shard.
  """

  model: Model
  dtype: str
  sources: Sequence[Source]
  captions: Sequence[str]
  rule: CaptionRule | None
  views: Views
  augmentation: Augmentation
  preprocessing: Preprocessing
  decode: str
  max_corrupt: int
  part_rows: int
  worker: tuple[int, int] = (0, 1)

  def identity(self) -> dict[str, Any]:
    """Returns everything that the features depend on, as JSON has it."""
    identity = {
      'version': VERSION,
      **model_identity(self.model),
      'preprocessing': self.model.preprocessing.to_dict(),
      'tokenizer': hash_tokenizer(self.model.tokenizer.describe()),
      'dtype': self.dtype,
      'captions': list(self.captions),
      'rule': dataclasses.asdict(self.rule) if self.rule else None,
      'records': [len(source) for source in self.sources],
      'views': self.views.count,
      'of_views': describe_views(
        self.views, self.augmentation, self.preprocessing
      ),
    }
    return json.loads(json.dumps(identity))

  def texts(self, record: Record) -> list[str]:
    """Returns the texts of a record that training may draw."""
    return self.rule.choose(record)[0] if self.rule else record['caption']

  def items(
    self, shards: Sequence[Shard], corrupt: dict[str, str]
  ) -> Generator[Item, None, None]:
    """Yields all views of the records of some shards, in order.

    A view has the size of the teacher's images. With the student's size, its
    pixels are those that the student sees; with another, the same crop,
    geometry and colours.

    Args:
      corrupt: id to reason, of records that were left out before.
    Raises:
      FailureError: with those that come, too many are corrupt.
    """
    decode = decoder_of(self.decode, self.preprocessing, self.augmentation)
    records = _Records(self.sources)

    def read(index: int) -> tuple[Record, list[np.ndarray], str]:
      try:
        record = records[index]
        image = decode(record['image'])
        made = [
          augment(
            image,
            self.preprocessing,
            self.augmentation,
            self.views.generator(record['id'], view),
          )
          for view in range(self.views.count)
        ]
      except CorruptImageError as error:
        empty: Record = {'id': records.id(index), 'image': b'', 'caption': []}
        return empty, [], str(error)
      return {**record, 'image': b''}, made, ''

    corrupt = dict(corrupt)
    for record, made, reason in map_ahead(read, records_of(shards)):
      if reason:
        corrupt[record['id']] = reason
        check_corrupt(corrupt, self.max_corrupt, records.spec)
      for view in range(self.views.count):
        content = None if reason else made[view]
        yield Item(record['id'], '', content, reason, record)


class _Records:
  """The records of all data sets, one after another."""

  def __init__(self, sources: Sequence[Source]):
    self._sources = sources
    self._ends = np.cumsum([len(source) for source in sources])
    self.spec = '::'.join(source.spec for source in sources)

  def __getitem__(self, index: int) -> Record:
    source, own = self._place(index)
    return source[own]

  def id(self, index: int) -> str:
    source, own = self._place(index)
    return source.id(own)

  def _place(self, index: int) -> tuple[Source, int]:
    number = int(np.searchsorted(self._ends, index, side='right'))
    source = self._sources[number]
    return source, index - (int(self._ends[number]) - len(source))


@dataclasses.dataclass
class Summary:
  """The counts of what is in the folder.

  Attributes:
    shards, planned: those that are there, and all.
    records: in the shards that are there, corrupt ones included.
    dims: E.
    corrupt: id to reason, of records without features.
    truncated: how many captions were truncated.
  """

  shards: int
  planned: int
  records: int
  dims: int
  corrupt: dict[str, str]
  truncated: int


def embed_views(
  job: ViewsJob,
  out: Path,
  *,
  progress: Progress,
  say: Callable[[str], None],
) -> Summary:
  """Makes this worker's shards that are missing.

  Args:
    job: what, and by which model.
    out: the folder.
    progress: shows how far the views are.
    say: takes a line for the person who waits.
  Returns:
    The summary of the shards of all workers that are there.
  Raises:
    UsageError: the folder is another job's.
    FailureError: too much is corrupt, the disk is full, and the like; the same
      call goes on.
  """
  store = store_of(out, job.dtype)
  out.mkdir(exist_ok=True)
  rows = _claim(job, out)
  index, workers = job.worker
  held = UsageError(
    f'another process works on {out} as --shard={index}/{workers}: wait for '
    'it, or name another --out.'
  )
  shards = make_shards('image', sum(map(len, job.sources)), rows)
  with holding_lock(out / f'{index}-of-{workers}.lock', held):
    mine = [shard for shard in shards if shard.number % workers == index]
    missing = [shard for shard in mine if not store.has(shard)]
    records, left = sum(map(len, mine)), sum(map(len, missing))
    if left < records:
      say(f'going on after {records - left:,} of {records:,} records')
    done = [shard for shard in shards if store.has(shard)]
    corrupt = _corrupt(store.read_notes(shard) for shard in done)
    items = job.items(missing, corrupt)
    count = job.views.count
    shown = progress(
      items, records * count, 'views', done=(records - left) * count
    )
    in_views = [
      dataclasses.replace(x, start=x.start * count, stop=x.stop * count)
      for x in missing
    ]
    with (
      contextlib.closing(items),
      contextlib.closing(
        encode_shards(job.model.encode_pixels, in_views, iter(shown))
      ) as results,
    ):
      for shard, encoded in zip(missing, results, strict=True):
        store.write(shard, *_contents(job, encoded))
  done = [shard for shard in shards if store.has(shard)]
  notes = [store.read_notes(shard) for shard in done]
  return Summary(
    shards=len(done),
    planned=len(shards),
    records=sum(map(len, done)),
    dims=job.model.config.embed_dim,
    corrupt=_corrupt(notes),
    truncated=sum(x.truncated for x in notes),
  )


def _corrupt(notes: Iterable[ShardNotes]) -> dict[str, str]:
  """Returns id to reason, of all shards."""
  return {key: why for x in notes for key, why in x.corrupt.items()}


def _claim(job: ViewsJob, out: Path) -> int:
  """Begins the folder, or goes on with the one that is there.

  Returns:
    The records of a shard, as the process that began it divided them.
  Raises:
    UsageError: it is another job's, or holds something else.
  """
  store, identity = store_of(out, job.dtype), job.identity()
  with holding_lock(out / 'lock'):
    manifest = store.read_manifest()
    if manifest is None:
      others = [x.name for x in out.iterdir() if x.suffix in ('.npz', '.json')]
      if others:
        raise UsageError(
          f'{out} is in the way: it holds {others[0]!r} and no manifest.json. '
          'Move it, or name another --out.'
        )
      store.write_manifest(
        {
          'identity': identity,
          'dims': job.model.config.embed_dim,
          'logit_scale': job.model.logit_scale,
          'part_rows': job.part_rows,
        }
      )
      return job.part_rows
    manifest = check_fields(
      out / 'manifest.json', manifest, {'identity': dict, 'part_rows': int}
    )
    refuse_other_job(out, 'the features', identity, manifest['identity'])
    return manifest['part_rows']


def _contents(
  job: ViewsJob, encoded: EncodedShard[np.ndarray]
) -> tuple[ShardNotes, dict[str, np.ndarray]]:
  """Returns the notes and the arrays of a shard; its captions are encoded."""
  dtype, count = STORED[job.dtype], job.views.count
  rows = np.array([not item.reason for item in encoded.items], bool)
  images = np.zeros((len(rows), encoded.features.shape[1]), dtype)
  images[rows] = encoded.features
  records = [item.record for item in encoded.items[::count] if item.record]
  texts = [job.texts(record) for record in records]
  captions = [text for own in texts for text in own]
  lengths = job.model.tokenizer.text_lengths(captions)
  truncated = int((lengths > job.model.tokenizer.context_length).sum())
  arrays = {
    'ids': hash_each(record['id'] for record in records),
    'images': images.reshape(len(records), count, -1),
    'captions': hash_each(captions),
    'ends': np.cumsum([len(own) for own in texts], dtype=np.int64),
    'texts': job.model.encode_text(captions).astype(dtype),
  }
  return ShardNotes(encoded.corrupt, truncated), arrays
