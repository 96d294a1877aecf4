"""What this machine does in a second: the figures of `clip-jax bench`.

Compilation and the first calls are left out of every figure. A rate of
`train` and `read` is that of one uninterrupted stretch of steps; the others
are medians of several calls. Machines are noisy: comparisons are worth
something only within one run.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import tokenizers
from clip_jax.benchmarks.encode import encode as encode
from clip_jax.benchmarks.timing import (
  WARM_UP_STEPS,
  Figures,
  device_facts,
  median_seconds,
)
from clip_jax.benchmarks.train import train as train
from clip_jax.data.images import Preprocessing
from clip_jax.data.pipeline import training_batches
from clip_jax.data.sources import open_source
from clip_jax.objectives.contrastive import FORMS, make_softmax_loss
from clip_jax.parallel.mesh import (
  BATCH_AXES,
  batch_sharding,
  check_batch_size,
  make_mesh,
)
from clip_jax.tokenizers.sample_captions import sample_captions

_CAPTIONS = 20_000  # that a tokenizer is measured on


def loss(batch: int, embed_dim: int, calls: int) -> list[Figures]:
  """Value and gradient of each form of the loss, and its scratch memory."""
  mesh = make_mesh()
  check_batch_size(batch, mesh)
  images, texts = (
    jax.device_put(_unit_rows(batch, embed_dim, i), batch_sharding(mesh))
    for i in range(2)
  )
  scale = jnp.float32(1 / 0.07)
  figures = []
  for form in FORMS:
    loss_fn = make_softmax_loss(form, mesh, BATCH_AXES)
    compiled = (
      jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 1, 2)))
      .lower(images, texts, scale)
      .compile()
    )
    seconds = median_seconds(
      lambda call=compiled: jax.block_until_ready(call(images, texts, scale)),
      calls,
    )
    memory: Any = compiled.memory_analysis()
    figures.append(
      {
        'form': form,
        'batch': batch,
        'embed_dim': embed_dim,
        'temp_bytes': int(memory.temp_size_in_bytes),
        'seconds': seconds,
        **device_facts(),
      }
    )
  return figures


def read(data: str, batch: int, steps: int, size: int, workers: int) -> Figures:
  """The input pipeline alone: records to batches on the host."""
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


def tokenize(spec: str, data: str, calls: int) -> Figures:
  """A tokenizer on captions, in one batch of them all, in one thread.

  `first_examples_per_second` is that of the first call, which meets every
  word for the first time; the texts of a long run are between the two.

  Args:
    spec: a tokenizer.
    data: a SPEC with captions; '' makes up plain ones, 8 to 20 words long.
    calls: that are measured.
  """
  tokenizer = tokenizers.load(spec)
  captions = (
    list(open_source(data).texts()) if data else sample_captions(_CAPTIONS)
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


def _unit_rows(rows: int, width: int, seed: int) -> np.ndarray:
  x = np.random.default_rng(seed).normal(size=(rows, width))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
