"""Measures what the host does: the input pipeline and the tokenizer."""

import time

from clip_jax import tokenizers
from clip_jax.benchmarks.timing import (
  WARM_UP_STEPS,
  Figures,
  median_seconds,
)
from clip_jax.data.pipeline import training_batches
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.sources import open_source
from clip_jax.data.sources.base import SAMPLE_RECORDS
from clip_jax.tokenizers.sample_captions import sample_captions

_CAPTIONS = 20_000  # for a tokenizer where no data is named


def bench_input(
  data: str, batch: int, steps: int, size: int, workers: int
) -> Figures:
  """Measures the input pipeline alone: records to batches on the host."""
  batches = training_batches(
    open_source(data),
    tokenizer=tokenizers.load('clip'),
    preprocessing=Preprocessing(image_size=size),
    batch_size=batch,
    seed=0,
    workers=workers,
  )
  for _ in range(WARM_UP_STEPS):
    next(batches)
  start = time.perf_counter()
  for _ in range(steps):
    next(batches)
  seconds = time.perf_counter() - start
  batches.close()
  return {
    'data': data,
    'batch': batch,
    'image_size': size,
    'workers': workers,
    'examples_per_second': batch * steps / seconds,
  }


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
