"""Makes training batches of sources, on Grain, as a function of (seed, step).

    source -> shuffle each epoch anew -> repeat -> mixture -> caption and view
           -> batch -> this process's batches from start_step on

Each arrow is random access: the order of an epoch is a pseudo-random
permutation that is computed index by index (`grain.MapDataset.shuffle`), and no
list of indices is held. So a resumed run, also one with another number of
hosts, reads what it would have read without the interruption.
"""

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import grain
import numpy as np

from clip_jax.data.augment import Augmentation
from clip_jax.data.decoding import check_corrupt
from clip_jax.data.examples import (
  Collate,
  ImageCache,
  Reader,
  Repeats,
  SequenceLength,
  Teachers,
  Tokenize,
  View,
  decoder_of,
)
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.sources import Record, Source
from clip_jax.errors import UsageError

if TYPE_CHECKING:
  from clip_jax.data.captions import CaptionRule
  from clip_jax.data.views import Views

# Batches made ahead of the one that trains.
PREFETCH = 4


class Batches(Iterator[dict[str, np.ndarray]]):
  """The training batches of this process, one for each step, without end.

  A batch is {'image': uint8 [b, S, S, 3], 'tokens': int32 [b, T]}, and has what
  teachers add. Of native aspect, it has 'image': uint8 [b, L, P, P, 3] and
  'grid': int32 [b, 2].

  Attributes:
    corrupt: the reason by id, for each record that was skipped so far.
    records: the number of records in all sources, which is an epoch where
      there is one source.
    filtered: how often a record was passed over that has no caption, or none
      that passes the rule.
    repeats: what repeats of this process's pairs so far.
  """

  def __init__(
    self, batches: Iterator[dict[str, Any]], records: int, limit: int
  ):
    self._batches = batches
    self._limit = limit
    self.records = records
    self.corrupt: dict[str, str] = {}
    self.filtered = 0
    self.repeats = Repeats()

  def __next__(self) -> dict[str, np.ndarray]:
    batch = next(self._batches)
    for key, reason in batch.pop('corrupt'):
      if key not in self.corrupt:
        self.corrupt[key] = reason
        logging.getLogger(__name__).warning(
          'skipped a corrupt record: %s: %s', key, reason
        )
    check_corrupt(self.corrupt, self._limit)
    self.filtered += batch.pop('filtered')
    self.repeats = Repeats(*np.add(self.repeats, batch.pop('repeats')).tolist())
    return batch

  def close(self) -> None:
    """Ends the threads or processes that read ahead."""
    close = getattr(self._batches, 'close', None)
    if close is not None:
      close()


def check_captions(sources: Iterable[Source]) -> None:
  """Refuses a source that has no captions to train on.

  Raises:
    UsageError: there is such a source; the message says what would help.
  """
  for source in sources:
    if not source.has_captions():
      raise UsageError(
        f'data {source.spec!r}: no captions to train on{source.hint}'
      )


def training_batches(
  sources: Source | Sequence[Source],
  *,
  weights: Sequence[float] | None = None,
  tokenizer: Tokenize,
  preprocessing: Preprocessing,
  augmentation: Augmentation | None = None,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  workers: int = 0,
  threads: int = 2,
  cache: bool = False,
  captions: 'CaptionRule | None' = None,
  decode: str = 'fast',
  max_corrupt_records: int = 100,
  views: 'Views | None' = None,
  teachers: Teachers | None = None,
  sequence_lengths: Sequence[int] = (),
) -> Batches:
  """Returns the batches of this process, from `start_step` on.

  Process p has rows [p * b, (p + 1) * b) of each global batch, where b is
  batch_size / process_count. Every record comes once an epoch, and each epoch
  has an order of its own. Of a record's captions one is drawn each time. A
  corrupt record is replaced by the next readable one of its source, and so is
  one without a caption that passes. Records that are known to have no caption
  are left out.

  Args:
    sources: one source, or those of a mixture.
    weights: how often each source of a mixture is drawn from, relative to the
      others; by default in proportion to its number of records.
    tokenizer: texts -> int32 [N, T]; has to pickle if workers > 0.
    augmentation: by default the paper's random square crop.
    batch_size: pairs in a batch, all processes together.
    seed: determines the order, the captions drawn, and the augmentation.
    workers: processes that make batches; 0 makes them in this process.
    threads: in this process, or in each worker; 0 makes a batch only when it
      is asked for.
    cache: keep decoded images in memory, up to CACHE_BYTES in each process.
    captions: which captions pass, and how often each is drawn; by default all,
      each as often.
    decode: 'fast', or 'exact', with Pillow's pixels; see `decoder_of`.
    max_corrupt_records: the number of different corrupt records that end the
      run when it is exceeded.
    views: of each record, one of which is drawn each time; by default every
      view is new.
    teachers: adds arrays about these views to a batch; it has to pickle if
      workers > 0.
    sequence_lengths: of native aspect, of which each step draws its L.
  Raises:
    UsageError: sizes that do not divide, or sources without captions.
    FailureError: (from next) more than max_corrupt_records are corrupt.
  """
  sources = [sources] if isinstance(sources, Source) else list(sources)
  if batch_size < 1 or batch_size % process_count:
    raise UsageError(
      f'data.batch_size={batch_size} does not split over {process_count} '
      f'processes: use a multiple of {process_count}'
    )
  check_captions(sources)
  sources = captioned_sources(sources)
  firsts = itertools.accumulate(map(len, sources), initial=0)
  augmentation = augmentation or Augmentation()
  decoder = decoder_of(decode, preprocessing, augmentation)
  images = ImageCache() if cache else None  # of all sources together
  stream = _training_order(
    [
      Reader(source, decoder, max_corrupt_records, images, captions, first)
      for source, first in zip(sources, firsts, strict=False)
    ],
    weights,
    seed,
  )
  if sequence_lengths:
    lengths = SequenceLength(tuple(sequence_lengths), batch_size, seed)
    stream = stream.map_with_index(lengths)
  examples = stream.seed(seed % 2**32).random_map(
    View(preprocessing, augmentation, views)
  )
  batches = examples.batch(
    batch_size // process_count,
    drop_remainder=True,  # There is none; without it batches of 1 overflow.
    batch_fn=Collate(tokenizer, teachers),
  )
  first = start_step * process_count + process_index
  iterator = batches[first::process_count].to_iter_dataset(
    grain.ReadOptions(num_threads=threads, prefetch_buffer_size=PREFETCH)
  )
  if workers:
    from clip_jax.data.worker_processes import read_in_processes

    iterator = read_in_processes(iterator, workers, PREFETCH)
  return Batches(
    iter(iterator), records=sum(map(len, sources)), limit=max_corrupt_records
  )


def step_records(
  sources: Sequence[Source],
  *,
  weights: Sequence[float] | None = None,
  batch_size: int,
  seed: int,
  step: int,
) -> list[str]:
  """Returns the ids of the records that a step trains on; no image is read.

  A corrupt record is named as itself, though the step had the one after it.

  Args:
    sources, weights, batch_size, seed: as in `training_batches`.
    step: counted from 1; `training_batches` from start_step=0 gives it first.
  """
  readers = [_Ids(source) for source in captioned_sources(sources)]
  stream = _training_order(readers, weights, seed)
  first = (step - 1) * batch_size
  return [str(stream[i]) for i in range(first, first + batch_size)]


def _training_order(
  readers: Sequence[Any], weights: Sequence[float] | None, seed: int
) -> grain.MapDataset:
  """Returns the endless sequence of records that training reads."""
  weights = [len(x) for x in readers] if weights is None else list(weights)
  if not readers or len(weights) != len(readers) or min(weights) <= 0:
    raise UsageError(
      f'data.weights={tuple(weights)} for {len(readers)} data sets: '
      'use one over 0 for each'
    )
  streams = []
  for position, reader in enumerate(readers):
    own_seed = np.random.SeedSequence([seed % 2**64, position])
    streams.append(
      grain.MapDataset.source(reader)
      .shuffle(int(own_seed.generate_state(1)[0]))
      .repeat()
    )
  if len(streams) == 1:
    return streams[0]
  return grain.MapDataset.mix(streams, weights)


def captioned_sources(sources: Iterable[Source]) -> list[Source]:
  """Returns sources without the records that are known to have no caption."""
  return [
    source if indices is None else _Captioned(source, indices)
    for source in sources
    for indices in [source.captioned()]
  ]


class _Captioned(Source):
  """The records of a source at some indices."""

  def __init__(self, source: Source, indices: Sequence[int]):
    self.spec = source.spec
    self.label_names = source.label_names
    self._source = source
    self._indices = indices

  def __len__(self) -> int:
    return len(self._indices)

  def id(self, index: int) -> str:
    return self._source.id(self._indices[index])

  def captions(self, index: int) -> list[str]:
    return self._source.captions(self._indices[index])

  def __getitem__(self, index: int) -> Record:
    return self._source[self._indices[index]]


@dataclasses.dataclass(frozen=True)
class _Ids:
  """The ids of a source's records, as a sequence that Grain can read."""

  source: Source

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> str:
    return self.source.id(index)
