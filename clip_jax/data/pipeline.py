"""Sources to batches, on Grain; what comes at a step depends on (seed, step).

    source -> shuffle each epoch anew -> repeat -> mixture -> caption and view
           -> batch -> this process's batches from start_step on

Every arrow is random access, so that a resumed run, also one with another
number of hosts, reads what it would have read without the interruption.
"""

import dataclasses
import itertools
import logging
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags
from jaxtyping import Int32
from PIL import Image

from clip_jax.data.augment import Augmentation, augment
from clip_jax.data.images import (
  CorruptImageError,
  Preprocessing,
  convert,
  decode,
  upright,
)
from clip_jax.data.repeats import Repeats, count_repeats
from clip_jax.data.sources import Record, Source
from clip_jax.errors import FailureError, UsageError

# Decoded pictures kept in memory stay below this; the others are read again.
CACHE_BYTES = 2**30

# Batches made ahead of the one that trains.
PREFETCH = 4

Tokenize = Callable[[Sequence[str]], Int32[np.ndarray, 'N T']]


class Batches(Iterator[dict[str, np.ndarray]]):
  """This process's training batches, one a step, without end.

  Each is {'image': uint8 [b, S, S, 3], 'tokens': int32 [b, T]}.

  Attributes:
    corrupt: id -> reason, of the records skipped so far.
    records: in the sources together; an epoch of a single source.
    repeats: of this process's pairs so far.
  """

  def __init__(
    self, batches: Iterator[dict[str, Any]], records: int, limit: int
  ):
    self._batches = batches
    self._limit = limit
    self.records = records
    self.corrupt: dict[str, str] = {}
    self.repeats = Repeats()

  def __next__(self) -> dict[str, np.ndarray]:
    batch = next(self._batches)
    for key, reason in batch.pop('corrupt'):
      if key not in self.corrupt:
        self.corrupt[key] = reason
        logging.getLogger(__name__).warning(
          'skipped a corrupt record: %s: %s', key, reason
        )
    _check_limit(self.corrupt, self._limit)
    self.repeats = Repeats(*np.add(self.repeats, batch.pop('repeats')).tolist())
    return batch

  def close(self) -> None:
    """Ends the threads or processes that read ahead."""
    close = getattr(self._batches, 'close', None)
    if close is not None:
      close()


def check_captions(sources: Iterable[Source]) -> None:
  """A UsageError where a source has no captions to train on."""
  for source in sources:
    if next(source.texts(), None) is None:
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
  max_corrupt_records: int = 100,
) -> Batches:
  """The stream of batches from `start_step` on; process p has rows
  [p * b, (p + 1) * b) of each global batch, b = batch_size / process_count.

  Every record comes once an epoch, in an order of the epoch's own. A record
  with several captions has one drawn each time. A corrupt record is replaced
  by the next good one of its source; one that is known to have no caption is
  none of them.

  Args:
    sources: one source, or a mixture of several.
    weights: how often each of several is drawn from, relative to the others;
      by default as often as it has records.
    tokenizer: texts -> int32 [N, T]; has to pickle if workers > 0.
    augmentation: by default the paper's random square crop.
    batch_size: pairs, all processes together.
    seed: of order, captions and augmentation.
    workers: processes that prepare batches; 0 prepares them in this one.
    threads: in this process, or in each worker; 0 prepares a batch only when
      it is asked for.
    cache: keep decoded pictures in memory, up to CACHE_BYTES in each process.
    max_corrupt_records: distinct ones, before the run is given up.
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
  sources = [_with_captions(source) for source in sources]
  stream = _in_order(
    [
      _Reader(source, preprocessing, max_corrupt_records, cache)
      for source in sources
    ],
    weights,
    seed,
  )
  views = stream.seed(seed % 2**32).random_map(
    _View(preprocessing, augmentation or Augmentation())
  )
  batches = views.batch(
    batch_size // process_count,
    drop_remainder=True,  # There is none; without it batches of 1 overflow.
    batch_fn=_Collate(tokenizer),
  )
  first = start_step * process_count + process_index
  iterator = batches[first::process_count].to_iter_dataset(
    grain.ReadOptions(num_threads=threads, prefetch_buffer_size=PREFETCH)
  )
  if workers:
    if not flags.FLAGS.is_parsed():  # Called from Python; Grain insists.
      flags.FLAGS.mark_as_parsed()
    iterator = iterator.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=PREFETCH
      )
    )
  return Batches(
    iter(iterator),
    records=sum(map(len, sources)),
    limit=max_corrupt_records,
  )


def step_records(
  sources: Sequence[Source],
  *,
  weights: Sequence[float] | None = None,
  batch_size: int,
  seed: int,
  step: int,
) -> list[str]:
  """The ids of the records that a step trains on; no picture is read.

  A corrupt record is named as itself, though the step had the one after it.

  Args:
    sources, weights, batch_size, seed: as in `training_batches`.
    step: counted from 1; `training_batches` from start_step=0 gives it first.
  """
  readers = [_Ids(_with_captions(source)) for source in sources]
  stream = _in_order(readers, weights, seed)
  first = (step - 1) * batch_size
  return [str(stream[i]) for i in range(first, first + batch_size)]


def _in_order(
  readers: Sequence[Any], weights: Sequence[float] | None, seed: int
) -> grain.MapDataset:
  """The elements of all readers in the order of training, without end."""
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


def _with_captions(source: Source) -> Source:
  """The source without the records that are known to have no caption."""
  indices = source.captioned()
  return source if indices is None else _Captioned(source, indices)


class _Captioned(Source):
  """Some records of a source."""

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
  """A source's records as their ids."""

  source: Source

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> str:
    return self.source.id(index)


class _Read(NamedTuple):
  """A decoded record, and the corrupt ones that were passed over for it."""

  picture: Image.Image
  captions: list[str]
  key: int  # the same for another record with the same bytes
  corrupt: tuple[tuple[str, str], ...] = ()


class _Reader:
  """Decodes a source's records; a corrupt one gives way to the next."""

  def __init__(
    self,
    source: Source,
    preprocessing: Preprocessing,
    max_corrupt_records: int,
    cache: bool,
  ):
    self._source = source
    self._preprocessing = preprocessing
    self._limit = max_corrupt_records
    self._cache: dict[int, _Read] | None = {} if cache else None
    self._cached_bytes = 0
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> _Read:
    if self._cache is not None and index in self._cache:
      return self._cache[index]
    read = self._search(index)
    if self._cache is not None:
      self._keep(index, read)
    return read

  def _search(self, start: int) -> _Read:
    corrupt: dict[str, str] = {}
    for offset in range(len(self)):
      index = (start + offset) % len(self)
      try:
        read = self._read(index)
      except CorruptImageError as error:
        corrupt[self._source.id(index)] = str(error)
        _check_limit(corrupt, self._limit)
      else:
        return read._replace(corrupt=tuple(corrupt.items()))
    key, reason = next(iter(corrupt.items()))
    raise FailureError(
      f'data {self._source.spec!r}: no readable record; {key}: {reason}'
    )

  def _read(self, index: int) -> _Read:
    record = self._source[index]
    if not record['caption']:
      raise CorruptImageError('no caption')
    picture = upright(decode(record['image']), self._preprocessing)
    return _Read(
      convert(picture, 'RGB'), record['caption'], _key(record['image'])
    )

  def _keep(self, index: int, read: _Read) -> None:
    assert self._cache is not None
    size = 4 * read.picture.width * read.picture.height  # Pillow pads RGB.
    with self._lock:
      if self._cached_bytes + size <= CACHE_BYTES:
        self._cached_bytes += size
        self._cache[index] = read

  def __getstate__(self):
    # A worker process fills a cache of its own.
    state = self.__dict__ | {'_cached_bytes': 0, '_lock': None}
    state['_cache'] = None if self._cache is None else {}
    return state

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class _View:
  """A record to one training example, by the position's own generator."""

  preprocessing: Preprocessing
  augmentation: Augmentation

  def __call__(self, element: _Read, rng: np.random.Generator):
    captions = element.captions
    drawn = rng.integers(len(captions)) if len(captions) > 1 else 0
    pixels = augment(
      element.picture, self.preprocessing, self.augmentation, rng
    )
    return pixels, captions[drawn], element.key, element.corrupt


@dataclasses.dataclass(frozen=True)
class _Collate:
  """Examples to a batch; texts become tokens all at once."""

  tokenizer: Tokenize

  def __call__(self, examples: Sequence[tuple]) -> dict[str, Any]:
    pixels, captions, keys, corrupt = zip(*examples, strict=True)
    tokens = np.asarray(self.tokenizer(list(captions)), np.int32)
    return {
      'image': np.stack(pixels),
      'tokens': tokens,
      'repeats': count_repeats(tokens, keys),
      'corrupt': tuple(itertools.chain(*corrupt)),
    }


def _key(image: Any) -> int:
  """Tells images apart; their length and a checksum do for counting."""
  content = image if isinstance(image, bytes) else np.asarray(image).tobytes()
  return len(content) << 32 | zlib.crc32(content)


def _check_limit(corrupt: dict[str, str], limit: int) -> None:
  if len(corrupt) > limit:
    some = '; '.join(
      f'{k}: {v}' for k, v in itertools.islice(corrupt.items(), 3)
    )
    raise FailureError(
      f'over data.max_corrupt_records={limit} records are corrupt ({some})'
    )
