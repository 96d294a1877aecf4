"""Measures the train step on real records, and in turns with open_clip's."""

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from clip_jax import tokenizers
from clip_jax.benchmarks.peer import Turn, open_clip
from clip_jax.benchmarks.step import paper_step, repeated
from clip_jax.benchmarks.timing import (
  WARM_UP_STEPS,
  Figures,
  device_facts,
  median_seconds,
  product_rate,
)
from clip_jax.data.pipeline import training_batches
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.data.sources import open_source
from clip_jax.models import presets
from clip_jax.models.config import CLIPConfig, TextTransformerConfig
from clip_jax.models.counting import model_flops_utilization, training_flops
from clip_jax.models.text_transformer import pooled_index
from clip_jax.parallel.mesh import check_batch_size, make_mesh
from clip_jax.training.gradients import text_lengths
from clip_jax.training.prefetch import FinishedStep, Prefetcher


def bench_train(
  preset: str,
  batch: int,
  steps: int,
  data: str,
  dtype: str,
  remat: str,
  against: str | None = None,
  python: str | None = None,
) -> Figures:
  """Measures the train step on real records, from reading to the update.

  Args:
    preset: a published model.
    batch: pairs, all devices together.
    steps: the number of steps that are measured.
    data: a SPEC with captions.
    dtype, remat: as in `model` of configs/base.py.
    against: 'open_clip' then takes turns with the step alone, as many again,
      on a batch that is ready: neither side reads or decodes in them.
    python: the interpreter of open_clip (see `peer`).
  Returns:
    Rates in pairs a second, and `mfu`, the fraction of the devices' peak that
    the model's arithmetic takes (None where the peak is not known). It is
    counted by the same formula for both libraries, of whole contexts.
    On a CPU, `share_of_product_rate` compares the arithmetic that is done, of
    texts as long as a step computed them, with `product_rate`.
  Raises:
    UsageError: the preset is not known, or the batch does not split over the
      devices.
    FailureError: open_clip is not installed, or does not know the model.
  """
  mesh = make_mesh()
  check_batch_size(batch, mesh)
  model = presets.resolve(preset)
  preprocessing = Preprocessing(image_size=model.image.image_size)
  # Steps with the pipeline, and those in turns.
  total_steps = WARM_UP_STEPS + 2 * steps + 1
  step = paper_step(model, mesh, total_steps, dtype, remat)
  train_step, state = step.jitted, step.init()
  batches = training_batches(
    open_source(data),
    tokenizer=tokenizers.load('clip', model.text.context_length),
    preprocessing=preprocessing,
    batch_size=batch,
    seed=0,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  last = WARM_UP_STEPS + steps
  tokens: list[np.ndarray] = []  # of each batch
  done: list[FinishedStep] = []
  prefetcher = Prefetcher(
    _noting_tokens(itertools.islice(batches, last), tokens),
    mesh,
    batch,
    done.append,
  )
  for i in range(1, last + 1):
    pairs = prefetcher.next()
    state, metrics = train_step(state, pairs)
    prefetcher.submit(i, metrics, log=i in (WARM_UP_STEPS, last))
  prefetcher.drain()
  numbers = done[-1].logged or {}
  batches.close()
  facts = device_facts()
  utilization = functools.partial(
    model_flops_utilization,
    model,
    device_kind=facts['device_kind'],
    devices=facts['devices'],
  )
  platform = mesh.devices.flat[0].platform
  lengths = text_lengths(model.text, step.outputs, platform)
  computed = [_computed_length(x, model.text, lengths) for x in tokens[-steps:]]
  figures = {
    'preset': preset,
    'batch': batch,
    'steps': steps,
    'data': data,
    'dtype': dtype,
    'remat': remat,
    'examples_per_second': numbers['train/examples_per_second'],
    'seconds_per_step': batch / numbers['train/examples_per_second'],
    'input_wait_fraction': numbers['train/input_wait_fraction'],
    **_arithmetic(
      model, computed, numbers['train/examples_per_second'], mesh, dtype
    ),
    'mfu': utilization(numbers['train/examples_per_second']),
    **facts,
  }
  if against is None:
    return figures

  one_step = repeated(train_step, state, pairs)
  with open_clip(preset, dtype, python) as theirs:
    turns = _in_turns(one_step, theirs, batch, steps)
  for name in ('step', 'open_clip'):
    turns[f'{name}_mfu'] = utilization(turns[f'{name}_examples_per_second'])
  return {**figures, 'against': against, **turns}


def _noting_tokens(
  batches: Iterable[Any], noted: list[np.ndarray]
) -> Iterator[Any]:
  """Yields batches, and keeps the tokens of each."""
  for batch in batches:
    noted.append(np.array(batch['tokens']))
    yield batch


def _computed_length(
  tokens: Int[np.ndarray, 'B T'],
  text: TextTransformerConfig,
  lengths: Sequence[int],
) -> int:
  """Returns at which of some lengths a step computes a batch's texts."""
  needed = 1 + int(pooled_index(jnp.asarray(tokens), text).max())
  return next(length for length in lengths if length >= needed)


def _arithmetic(
  model: CLIPConfig,
  lengths: Sequence[int],
  examples_per_second: float,
  mesh: Mesh,
  dtype: str,
) -> Figures:
  """Returns the text tokens of steps, and a CPU's rate beside a product's.

  Args:
    lengths: of the texts of each step, in tokens.
  """
  flops = statistics.mean(
    training_flops(
      dataclasses.replace(
        model, text=dataclasses.replace(model.text, context_length=length)
      )
    )
    for length in lengths
  )
  figures: Figures = {'text_tokens': statistics.mean(lengths)}
  product = product_rate(mesh, dtype)
  if product is not None:
    figures['product_rate'] = product
    figures['share_of_product_rate'] = flops * examples_per_second / product
  return figures


def _in_turns(
  step: Callable[[], None], theirs: Turn, batch: int, turns: int
) -> Figures:
  """Returns rates of both, the median and the best; ratios are ours/theirs."""
  seconds = [
    (median_seconds(step, 1, warm_up=not turn), theirs('train', batch))
    for turn in range(turns)
  ]
  ours, others = zip(*seconds, strict=True)
  figures: Figures = {}
  for name, one in (('step', ours), ('open_clip', others)):
    figures[f'{name}_examples_per_second'] = batch / statistics.median(one)
    figures[f'{name}_examples_per_second_at_best'] = batch / min(one)
  return {
    **figures,
    'ratio': statistics.median(others) / statistics.median(ours),
    'ratio_at_best': min(others) / min(ours),
  }
