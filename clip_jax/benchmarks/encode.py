"""Measures both encoders at inference, alone or in turns with open_clip's."""

import statistics
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import tokenizers
from clip_jax.benchmarks.peer import Turn, open_clip
from clip_jax.benchmarks.timing import (
  Figures,
  device_facts,
  median_seconds,
  product_rate,
)
from clip_jax.data.reading import read_ahead
from clip_jax.evaluation.datasets.opening import open_dataset
from clip_jax.evaluation.tasks import zero_shot
from clip_jax.evaluation.types import Options
from clip_jax.inference.model import Model
from clip_jax.models import presets
from clip_jax.models.counting import encoding_flops
from clip_jax.models.description import Description
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.parallel.mesh import check_batch_size, make_mesh, replicated

RATES = ('images_per_second', 'texts_per_second')  # of the largest batch


def bench_encode(
  preset: str,
  batches: Sequence[int],
  calls: int,
  dtype: str,
  against: str | None = None,
  python: str | None = None,
  data: str = '',
) -> Figures:
  """Measures both encoders, from uint8 pixels and from words.

  Texts are given as token ids where the package does not have the tokenizer.
  The weights are random, which changes no time. Shares of the product rate are
  those of the largest batch.

  Args:
    preset: a published model.
    batches: rows a call; each is measured.
    calls: the number of calls that are measured, of each.
    dtype: of the arithmetic.
    against: 'open_clip' takes turns with it, call by call (see `peer`); it
      gets float pixels and ids that are ready.
    python: the interpreter of that process, where open_clip is installed;
      None is this one.
    data: a data set whose images are measured too, encoded and classified.
  Raises:
    UsageError: the preset is not known, or a batch does not split over the
      devices.
    FailureError: open_clip is not installed, or does not know the model.
  """
  mesh = make_mesh()
  for batch in batches:
    check_batch_size(batch, mesh)
  model = _random_model(preset, max(batches), dtype)
  head = {'preset': preset, 'calls': calls, 'dtype': dtype, **device_facts()}
  if against is None:
    rows = [_rates(model, batch, calls) for batch in batches]
  else:
    with open_clip(preset, dtype, python) as theirs:
      rows = [_rates(model, batch, calls, theirs) for batch in batches]
    head['against'] = against
  largest = max(rows, key=lambda row: row['batch'])
  rates = {name: largest[name] for name in RATES}
  product = product_rate(mesh, dtype)
  if product is not None:
    rates['product_rate'] = product
    for name, flops in zip(RATES, encoding_flops(model.config), strict=True):
      share = f'{name.split("_")[0]}_share_of_product_rate'
      rates[share] = rates[name] * flops / product
  if data:
    rates |= _data_figures(model, data, calls)
  return {**head, **rates, 'batches': rows}


def _rates(
  model: Model, batch: int, calls: int, theirs: Turn | None = None
) -> Figures:
  size = model.config.image.image_size
  pixels = np.random.default_rng(0).integers(
    0, 256, (batch, size, size, 3), dtype=np.uint8
  )
  texts = [f'a photo of image number {i}.' for i in range(batch)]
  tokens = np.full((batch, model.config.text.context_length), 1, np.int32)
  row: Figures = {'batch': batch}
  for tower, call in (
    ('image', lambda: model.encode_image(pixels)),
    (
      'text',
      lambda: (
        model.encode_text(texts)
        if model.description.tokenizer
        else model.encode_tokens(tokens)
      ),
    ),
  ):
    rate = f'{tower}s_per_second'
    if theirs is None:
      row[rate] = batch / median_seconds(call, calls)
      continue
    pairs = [
      (median_seconds(call, 1, warm_up=not i), theirs(tower, batch))
      for i in range(calls)
    ]
    ours, others = zip(*pairs, strict=True)
    row[rate] = batch / statistics.median(ours)
    row[f'open_clip_{rate}'] = batch / statistics.median(others)
    row[f'{tower}_ratio'] = statistics.median(b / a for a, b in pairs)
    row[f'{tower}_ratio_of_fastest'] = min(others) / min(ours)
  return row


def _data_figures(model: Model, data: str, calls: int) -> Figures:
  """Measures reading, decoding, resizing and encoding the images of a data set.

  Where the data set has class names, its whole zero-shot evaluation takes turns
  with that. 'zero_shot_ratio' is the median over turns of its rate divided by
  that of encoding alone; at 1 they are equally fast.

  Args:
    data: a name of the table of data sets, or a SPEC.
    calls: the number of calls that are measured, of each.
  """
  dataset = open_dataset(data)
  source = dataset.test.source

  def encode() -> int:
    reads = read_ahead(
      source, range(len(source)), preprocessing=model.preprocessing
    )
    decoded = (x.image for x in reads if x.image is not None)
    return len(model.encode_image(decoded))

  def classify() -> None:
    zero_shot.evaluate(model, dataset, Options())

  count = encode()  # of those that can be read
  figures: Figures = {'data': data, 'data_images': count}
  if not dataset.class_names or model.description.tokenizer is None:
    seconds = median_seconds(encode, calls, warm_up=False)
    return {**figures, 'data_images_per_second': count / seconds}
  classify()
  turns = [
    tuple(median_seconds(x, 1, warm_up=False) for x in (encode, classify))
    for _ in range(calls)
  ]
  alone, whole = zip(*turns, strict=True)
  return {
    **figures,
    'classes': len(dataset.class_names),
    'data_images_per_second': count / statistics.median(alone),
    'zero_shot_per_second': count / statistics.median(whole),
    'zero_shot_ratio': statistics.median(a / b for a, b in turns),
    'zero_shot_ratio_of_fastest': min(alone) / min(whole),
  }


def _random_model(preset: str, batch: int, dtype: str) -> Model:
  mesh = make_mesh()
  config = presets.resolve(preset)
  size, length = config.image.image_size, config.text.context_length
  # Other tokenizers come with their model's files: ids are taken instead.
  known = presets.find(preset).tokenizer == 'clip'
  tokenizer = tokenizers.load('clip', length).describe() if known else None
  init = jax.jit(
    lambda key: DualEncoder(config).init(
      key,
      jnp.zeros((1, size, size, 3)),
      jnp.zeros((1, length), jnp.int32),
    ),
    out_shardings=replicated(mesh),
  )
  return Model(
    Description(
      model=config,
      tokenizer=tokenizer,
      preprocessing=presets.preprocessing_of(preset),
    ),
    init(jax.random.key(0)),
    mesh=mesh,
    dtype=dtype,
    batch_size=batch,
  )
