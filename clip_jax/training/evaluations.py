"""The evaluations of a run: of held-out data, and of as many training pairs.

Where the two differ, the model learns its training pairs by heart.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from clip_jax.data.sources import Record, Source
from clip_jax.data.sources.base import SAMPLE_RECORDS, sample_indices
from clip_jax.evaluation import Evaluation, Options, find_evaluator
from clip_jax.evaluation.dataset import dataset_of
from clip_jax.evaluation.features.extraction import (
  read_features,
  text_features,
)
from clip_jax.evaluation.tasks.pair_loss import evaluate_loss
from clip_jax.evaluation.types import Features
from clip_jax.inference.model import Model
from clip_jax.models.counting import TRAINING_ONLY
from clip_jax.training.config import has_text_features
from clip_jax.training.metrics import TRAIN_PREFIX
from clip_jax.training.run import Run
from clip_jax.training.state import TrainState


def evaluate(run: Run, model: Model) -> dict[str, Evaluation]:
  """Returns the evaluations of a model, by the name of their evaluator.

  These are the config's tasks, 'loss' where the data have captions, and
  'train_loss' and 'train_retrieval' on a sample of the training pairs.
  """
  source = run.evaluation_source
  if source is None:
    return {}
  config = run.config
  options = Options(
    max_corrupt_records=config.data.max_corrupt_records,
    cache=_FeatureMemory(model),
  )
  # Templates are for class names: retrieval uses the captions unchanged.
  prompted = dataclasses.replace(
    options, templates=tuple(config.evaluation.templates)
  )
  held_out = dataset_of(source, config.evaluation.classes)
  sample = TrainingSample(run.sources, len(source), config.seed)
  compared = config.evaluation.train_sample and _has_pairs(sample)
  evaluations: dict[str, Evaluation] = {}
  if has_text_features(config) and _has_pairs(source):
    for name, data in (('loss', source), (f'{TRAIN_PREFIX}loss', sample)):
      if data is source or compared:
        evaluations[name] = evaluate_loss(
          model,
          dataset_of(data),
          options,
          objective=config.objective.name,
          batch_size=config.data.batch_size,
        )
  for task in config.evaluation.tasks:
    evaluations[task] = find_evaluator(task)(
      model, held_out, options if task == 'retrieval' else prompted
    )
  if compared and 'retrieval' in evaluations:
    evaluations[f'{TRAIN_PREFIX}retrieval'] = find_evaluator('retrieval')(
      model, dataset_of(sample), options
    )
  return evaluations


def model_of(run: Run, state: TrainState) -> Model:
  """Returns a state as a model that encodes on the run's devices."""
  variables = state.variables
  params = {k: v for k, v in variables['params'].items() if k != TRAINING_ONLY}
  return Model(
    run.description,
    {**variables, 'params': params},
    mesh=run.program.mesh,
    dtype=run.config.model.dtype,
    batch_size=run.config.evaluation.batch_size,
    step=int(state.step),
  )


class TrainingSample(Source):
  """Records drawn evenly from some sources, by a seed."""

  def __init__(self, sources: Sequence[Source], count: int, seed: int):
    """Draws records without replacement.

    Args:
      count: how many to draw; all of them, where there are fewer.
    """
    self.spec = '::'.join(source.spec for source in sources)
    self._sources = sources
    ends = np.cumsum([len(source) for source in sources])
    total = int(ends[-1])
    drawn = np.sort(
      np.random.default_rng(seed).choice(
        total, min(count, total), replace=False
      )
    )
    which = np.searchsorted(ends, drawn, side='right')
    starts = np.concatenate([[0], ends[:-1]])
    self._positions = list(
      zip(which.tolist(), (drawn - starts[which]).tolist(), strict=True)
    )

  def __len__(self) -> int:
    return len(self._positions)

  def id(self, index: int) -> str:
    source, position = self._positions[index]
    return self._sources[source].id(position)

  def captions(self, index: int) -> list[str]:
    source, position = self._positions[index]
    return self._sources[source].captions(position)

  def __getitem__(self, index: int) -> Record:
    source, position = self._positions[index]
    return self._sources[source][position]


def _has_pairs(source: Source) -> bool:
  """Returns whether two images or more have captions, as a loss needs."""
  indices = sample_indices(len(source), SAMPLE_RECORDS)
  with_captions = (i for i in indices if source.captions(i))
  return len(list(itertools.islice(with_captions, 2))) == 2


class _FeatureMemory:
  """Features of one state, so that each image is encoded once for all."""

  folder = None  # nothing is kept on disk

  def __init__(self, model: Model):
    self._model = model
    self._images: dict[Source, Features] = {}
    self._texts: dict[tuple[str, ...], Float[np.ndarray, 'N E']] = {}

  def images(self, source: Source, options: Options) -> Features:
    """Returns the features of images; see `FeatureStore.images`."""
    if source not in self._images:
      fresh = dataclasses.replace(options, cache=None)
      self._images[source] = read_features(
        self._model, source, fresh, pooled=True
      )
    return self._images[source]

  def texts(
    self, texts: Sequence[str], options: Options
  ) -> Float[np.ndarray, 'N E']:
    """Returns the features of texts; see `FeatureStore.texts`."""
    key = tuple(texts)
    if key not in self._texts:
      fresh = dataclasses.replace(options, cache=None)
      self._texts[key] = text_features(self._model, key, fresh)
    return self._texts[key]
