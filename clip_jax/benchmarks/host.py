"""Measures what the host does: the input pipeline and the tokenizer."""

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from clip_jax import tokenizers
from clip_jax.benchmarks.peer import open_clip_input
from clip_jax.benchmarks.photographs import make_photographs
from clip_jax.benchmarks.timing import (
  WARM_UP_STEPS,
  Figures,
  median_seconds,
)
from clip_jax.data import decoding
from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.pipeline import Batches, check_captions, training_batches
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.sources import Record, Source, open_source
from clip_jax.data.sources.base import SAMPLE_RECORDS, sample_indices
from clip_jax.errors import FailureError, UsageError
from clip_jax.tokenizers.sample_captions import sample_captions

MADE = 'JPEGs of 500 x 375'  # where no data is named
_IMAGES = 64  # that take turns with a peer
_CAPTIONS = 20_000  # for a tokenizer where no data is named


def bench_input(
  data: str,
  batch: int,
  steps: int,
  size: int,
  workers: int,
  decode: str = 'fast',
  against: str | None = None,
  python: str | None = None,
) -> Figures:
  """Measures the input pipeline alone: records to batches on the host.

  Args:
    data: a SPEC with captions; '' makes JPEGs of 500 x 375 up.
    batch: pairs.
    steps: batches that are measured.
    size: pixels a side of the crops.
    workers: processes that make the batches.
    decode: 'fast' or 'exact', as `data.decode` of a config.
    against: 'open_clip' takes turns with its training transform, batch by
      batch, on one core; see `_in_turns`.
    python: the interpreter of that process, where open_clip is installed;
      None is this one.
  Raises:
    UsageError: there are no captions, or workers beside `against`.
    FailureError: open_clip is not installed, or too many records are corrupt.
  """
  head = {
    'data': data or MADE,
    'batch': batch,
    'image_size': size,
    'workers': workers,
    'decode': decode,
  }
  if against is None:
    source = open_source(data) if data else _made_records()
    batches = _batches(source, batch, size, decode, workers)
    for _ in range(WARM_UP_STEPS):
      next(batches)
    start = time.perf_counter()
    for _ in range(steps):
      next(batches)
    seconds = time.perf_counter() - start
    batches.close()
    return {**head, 'examples_per_second': batch * steps / seconds}
  if workers:
    raise UsageError(
      f'--workers={workers}: turns are taken on one core, without workers.'
    )
  records = _sample(open_source(data)) if data else _made_records()
  figures = _in_turns(records, batch, steps, size, decode, python)
  return {**head, 'against': against, **figures}


class _Records(Source):
  """A few records in memory, again and again: a data set of a million.

  A shuffled index costs 0.004 ms there; of 64 records it would be 0.4 ms.
  """

  def __init__(self, spec: str, records: list[Record]):
    self.spec = spec
    self.records = records

  def __len__(self) -> int:
    return 10**6

  def __getitem__(self, index: int) -> Record:
    return self.records[index % len(self.records)]

  def id(self, index: int) -> str:
    return f'{index}: {self[index]["id"]}'

  def captions(self, index: int) -> list[str]:
    return self[index]['caption']


def _made_records() -> _Records:
  """Returns photographs that are made up, with plain captions."""
  captions = sample_captions(_IMAGES)
  records: list[Record] = [
    {'id': str(i), 'image': image, 'caption': [captions[i]]}
    for i, image in enumerate(make_photographs(_IMAGES))
  ]
  return _Records(MADE, records)


def _sample(source: Source) -> _Records:
  """Returns some records of a source, those that both sides can read."""
  check_captions([source])
  records: list[Record] = []
  for index in sample_indices(len(source), _IMAGES):
    with contextlib.suppress(CorruptImageError):
      record = source[index]
      decoding.decode(record['image'])
      if record['caption']:
        records.append(record)
  if not records:
    raise FailureError(f'data {source.spec!r}: no readable record.')
  return _Records(source.spec, records)


def _batches(
  source: Source,
  batch: int,
  size: int,
  decode: str,
  workers: int = 0,
  threads: int = 2,
) -> Batches:
  return training_batches(
    source,
    tokenizer=tokenizers.load('clip'),
    preprocessing=Preprocessing(
      image_size=size, background='white', exif=True
    ),  # as a recipe that leaves them open has them
    batch_size=batch,
    seed=0,
    workers=workers,
    threads=threads,
    decode=decode,
  )


def _in_turns(
  source: _Records,
  batch: int,
  turns: int,
  size: int,
  decode: str,
  python: str | None,
) -> Figures:
  """Measures batches of both, in turns, on one core and from the same memory.

  open_clip's transform comes twice: as it is published, and, as 'same_crop',
  with the crop that ours has. Ours are whole batches, with tokens. The first
  turn of each is not counted.
  """
  with tempfile.TemporaryDirectory() as folder, _one_core():
    for number, record in enumerate(source.records):
      Path(folder, f'{number:06}').write_bytes(record['image'])
    with open_clip_input(folder, size, python) as theirs:
      batches = _batches(source, batch, size, decode, threads=0)
      rows = [
        (
          median_seconds(lambda: next(batches), 1, warm_up=False),
          theirs('published', batch),
          theirs('square', batch),
        )
        for _ in range(1 + turns)
      ]
  ours, published, square = zip(*rows[1:], strict=True)
  return {
    'turns': turns,
    'images': len(source.records),
    'bytes_per_image': statistics.mean(len(x['image']) for x in source.records),
    'examples_per_second': batch / statistics.median(ours),
    'open_clip_per_second': batch / statistics.median(published),
    'open_clip_same_crop_per_second': batch / statistics.median(square),
    'ratio': _median_ratio(published, ours),
    'ratio_of_fastest': min(published) / min(ours),
    'ratio_same_crop': _median_ratio(square, ours),
    'ratio_same_crop_of_fastest': min(square) / min(ours),
    'does': 'records, decode, random square crop of the shorter side, bicubic, '
    'uint8 [B, S, S, 3]; captions, tokens',
    'open_clip_does': 'image_transform(S, is_train=True): Pillow decodes, '
    'RandomResizedCrop of 0.9 to 1 of the area, bicubic, float [B, 3, S, S], '
    'normalized',
    'open_clip_same_crop_does': 'the same with a random square crop of the '
    'shorter side',
  }


def _median_ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
  return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
  """Keeps this thread, and what it starts, on one core, where Linux does."""
  if not hasattr(os, 'sched_setaffinity'):
    yield
    return
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, {min(before)})
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


def bench_tokenizer(spec: str, data: str, calls: int) -> Figures:
  """Measures a tokenizer on captions, all in one batch, in one thread.

  `first_examples_per_second` is that of the first call, which meets every
  word for the first time; the texts of a long run are between the two.

  Args:
    spec: a tokenizer.
    data: a SPEC with captions; '' makes up plain ones, 8 to 20 words long.
    calls: the number of calls that are measured.
  """
  tokenizer = tokenizers.load(spec)
  captions = (
    list(open_source(data).texts(SAMPLE_RECORDS))
    if data
    else sample_captions(_CAPTIONS)
  )
  tokenizer('')  # the vocabulary is read now, if not before
  start = time.perf_counter()
  tokenizer(captions)
  first_seconds = time.perf_counter() - start
  seconds = median_seconds(lambda: tokenizer(captions), calls)
  return {
    'tokenizer': spec,
    'data': data or 'plain captions',
    'captions': len(captions),
    'examples_per_second': len(captions) / seconds,
    'first_examples_per_second': len(captions) / first_seconds,
  }
