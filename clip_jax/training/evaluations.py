"""What is measured of a run's states: held-out data, and training pairs alike.

Beside each number of held-out data stands the same of as many pairs that were
trained on: where the two part, the model learns its training pairs by heart.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.data.sources import Record, Source
from clip_jax.evaluation import Evaluation, Options, find_evaluator
from clip_jax.evaluation.dataset import Split, of_source
from clip_jax.evaluation.features.extraction import (
  Features,
  read_features,
)
from clip_jax.evaluation.prompts import text_features
from clip_jax.evaluation.tasks.pair_loss import evaluate_loss
from clip_jax.inference.model import Model
from clip_jax.training.run import Run

Evaluations = Mapping[str, Evaluation]

TRAIN = 'train_'  # before the name of an evaluator: of training pairs


def evaluate(run: Run, model: Model) -> dict[str, Evaluation]:
  """The evaluations of a model, by the name of their evaluator.

  Those are the config's tasks, 'loss' where the data have captions, and
  'train_loss' and 'train_retrieval' on a sample of the training pairs.
  """
  source = run.evaluation_source
  if source is None:
    return {}
  config = run.config
  remembered: Any = _Remembered(model)  # what a FeatureCache is asked for
  options = Options(
    max_corrupt_records=config.data.max_corrupt_records, cache=remembered
  )
  # They are for names; what a caption is retrieved by is the caption.
  prompted = dataclasses.replace(
    options, templates=tuple(config.evaluation.templates)
  )
  held_out = of_source(source)
  sample = Sample(run.sources, len(source), config.seed)
  compared = config.evaluation.train_sample and _has_pairs(sample)
  found: dict[str, Evaluation] = {}
  if _has_pairs(source):
    for name, data in (('loss', source), (f'{TRAIN}loss', sample)):
      if data is source or compared:
        found[name] = evaluate_loss(
          model,
          of_source(data),
          options,
          objective=config.objective.name,
          batch_size=config.data.batch_size,
        )
  for task in config.evaluation.tasks:
    found[task] = find_evaluator(task)(
      model, held_out, options if task == 'retrieval' else prompted
    )
  if compared and 'retrieval' in found:
    found[f'{TRAIN}retrieval'] = find_evaluator('retrieval')(
      model, of_source(sample), options
    )
  return found


def named(evaluations: Evaluations) -> dict[str, float]:
  """Metrics under their names in metrics.jsonl: eval/EVALUATOR/METRIC.

  The level of chance of one is beside it, as eval/EVALUATOR/METRIC_chance.
  """
  found = {}
  for task, evaluation in evaluations.items():
    for name, value in evaluation.metrics.items():
      found[f'eval/{task}/{name}'] = value
      if name in evaluation.chance:
        found[f'eval/{task}/{name}_chance'] = evaluation.chance[name]
  return found


class Sample(Source):
  """Records drawn evenly from some sources; the same at every call."""

  def __init__(self, sources: Sequence[Source], most: int, seed: int):
    """Draws records without replacement.

    Args:
      most: records; all of them, where there are fewer.
    """
    self.spec = '::'.join(source.spec for source in sources)
    self._sources = sources
    ends = np.cumsum([len(source) for source in sources])
    total = int(ends[-1])
    drawn = np.sort(
      np.random.default_rng(seed).choice(total, min(most, total), replace=False)
    )
    which = np.searchsorted(ends, drawn, side='right')
    starts = np.concatenate([[0], ends[:-1]])
    self._places = list(
      zip(which.tolist(), (drawn - starts[which]).tolist(), strict=True)
    )

  def __len__(self) -> int:
    return len(self._places)

  def id(self, index: int) -> str:
    source, place = self._places[index]
    return self._sources[source].id(place)

  def captions(self, index: int) -> list[str]:
    source, place = self._places[index]
    return self._sources[source].captions(place)

  def __getitem__(self, index: int) -> Record:
    source, place = self._places[index]
    return self._sources[source][place]


def _has_pairs(source: Source) -> bool:
  """Whether two images or more have captions, which a loss needs."""
  with_captions = (i for i in range(len(source)) if source.captions(i))
  return len(list(itertools.islice(with_captions, 2))) == 2


class _Remembered:
  """Features of one state, so that each image is encoded once for all."""

  def __init__(self, model: Model):
    self._model = model
    self._images: dict[Source, Features] = {}
    self._texts: dict[tuple[str, ...], Float[np.ndarray, 'N E']] = {}

  def images(self, source: Source, options: Options) -> Features:
    """As `FeatureCache.images`."""
    if source not in self._images:
      fresh = dataclasses.replace(options, cache=None)
      self._images[source] = read_features(self._model, Split(source), fresh)
    return self._images[source]

  def texts(
    self, texts: Sequence[str], options: Options
  ) -> Float[np.ndarray, 'N E']:
    """As `FeatureCache.texts`."""
    key = tuple(texts)
    if key not in self._texts:
      fresh = dataclasses.replace(options, cache=None)
      self._texts[key] = text_features(self._model, key, fresh)
    return self._texts[key]
