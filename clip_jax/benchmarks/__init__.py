"""What this machine does in a second: the figures of `clip-jax bench`.

Compilation and the first calls are left out of every figure. A rate of
`train` and `read` is that of one uninterrupted stretch of steps; the others
are medians of several calls. Machines are noisy: comparisons are worth
something only within one run.
"""

import time

import jax
import jax.numpy as jnp

from clip_jax import tokenizers
from clip_jax.benchmarks.encode import encode as encode
from clip_jax.benchmarks.loss import loss as loss
from clip_jax.benchmarks.timing import Figures, device_facts, median_seconds
from clip_jax.data.images import Preprocessing
from clip_jax.data.pipeline import PREFETCH, training_batches
from clip_jax.data.sources import open_source
from clip_jax.models import presets
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.objectives.forms import make_loss
from clip_jax.parallel.mesh import (
  BATCH_AXES,
  check_batch_size,
  make_mesh,
)
from clip_jax.tokenizers.sample_captions import sample_captions
from clip_jax.training.feed import Feed
from clip_jax.training.optimizer import make_optimizer
from clip_jax.training.state import abstract_state, sharded_init
from clip_jax.training.step import jit_train_step, make_train_step

_CAPTIONS = 20_000  # that a tokenizer is measured on
# Batches made ahead, while the step compiled, must not flatter the pipeline.
_WARM_UP_STEPS = PREFETCH + 2


def train(
  preset: str, batch: int, steps: int, data: str, dtype: str, remat: str
) -> Figures:
  """The train step on real records: reading, decoding, towers, update.

  Args:
    preset: a published model.
    batch: pairs, all devices together.
    steps: that are measured.
    data: a SPEC with captions.
    dtype, remat: as in `model` of configs/base.py.
  """
  mesh = make_mesh()
  check_batch_size(batch, mesh)
  model = presets.resolve(preset)
  preprocessing = Preprocessing(image_size=model.image.image_size)
  module = DualEncoder(model, jnp.dtype(dtype), remat)
  optimizer, schedule = make_optimizer(
    steps + _WARM_UP_STEPS + 1,
    learning_rate=5e-4,
    schedule='cosine',
    warmup_steps=1,
    weight_decay=0.2,
    b1=0.9,
    b2=0.98,
    eps=1e-6,
    clip_norm=0.0,
    mu_dtype='float32',
    nu_dtype='float32',
  )
  abstract = abstract_state(module, optimizer, mesh)
  loss_fn = make_loss('softmax', 'all_gather', mesh, BATCH_AXES, 1)
  train_step = jit_train_step(
    make_train_step(module, optimizer, schedule, loss_fn, preprocessing, mesh),
    abstract,
    mesh,
  )
  state = sharded_init(module, optimizer, mesh, seed=0)
  batches = training_batches(
    open_source(data),
    tokenizer=tokenizers.load('clip', model.text.context_length),
    preprocessing=preprocessing,
    batch_size=batch,
    seed=0,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  feed = Feed(batches, mesh)
  for step in range(1, _WARM_UP_STEPS + steps + 1):
    state, metrics = train_step(state, feed.next())
    feed.launched(metrics)
    if step == _WARM_UP_STEPS:
      feed.numbers()
  numbers = feed.numbers()
  batches.close()
  return {
    'preset': preset,
    'batch': batch,
    'steps': steps,
    'data': data,
    'dtype': dtype,
    'remat': remat,
    'examples_per_second': numbers['train/examples_per_second'],
    'seconds_per_step': batch / numbers['train/examples_per_second'],
    'input_wait_fraction': numbers['train/input_wait_fraction'],
    **device_facts(),
  }


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
  for _ in range(_WARM_UP_STEPS):
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
