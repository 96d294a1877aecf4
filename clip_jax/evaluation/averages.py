"""Writes averages of models, and measures what they gain and lose.

`inference.interpolation` averages; here is what `clip-jax interpolate` makes of
it: a model for each point of a line, or a soup. Accuracy is that of zero-shot
classification, with the ends of its 95 % interval.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.tasks import zero_shot
from clip_jax.evaluation.types import Options
from clip_jax.inference.interpolation import (
  Variables,
  average,
  greedy_soup,
  write_model,
)
from clip_jax.inference.model import Model
from clip_jax.models.description import Description


@dataclasses.dataclass(frozen=True)
class AccuracyMeasure:
  """Measures models of one description on the same data sets.

  Attributes:
    description: of all models.
    datasets: with classes, one label an image; none: nothing is measured.
    options: of zero-shot classification.
    dtype, batch_size: of `Model`.
  """

  description: Description
  datasets: Sequence[Dataset]
  options: Options
  dtype: str
  batch_size: int

  def __call__(self, variables: Variables) -> dict[str, dict[str, float]]:
    """Returns 'top1', 'low' and 'high' by the name of each data set.

    Raises:
      UsageError: a data set has several labels an image.
    """
    model = Model(
      self.description,
      variables,
      dtype=self.dtype,
      batch_size=self.batch_size,
    )
    return {
      dataset.name: self._accuracy(model, dataset) for dataset in self.datasets
    }

  def _accuracy(self, model: Model, dataset: Dataset) -> dict[str, float]:
    metrics = zero_shot.evaluate(model, dataset, self.options).metrics
    if 'top1' not in metrics:
      raise UsageError(
        f'data {dataset.name!r} has several labels an image: use data with one.'
      )
    return {
      'top1': metrics['top1'],
      'low': metrics['top1_low'],
      'high': metrics['top1_high'],
    }


def write_line(
  names: Sequence[str],
  models: Sequence[Variables],
  alphas: Sequence[float],
  measure: AccuracyMeasure,
  folder: Path,
) -> Iterator[dict[str, Any]]:
  """Writes models on the line from one to another, and yields a row for each.

  Args:
    names: what the two are called in `interpolation.RECORD`.
    models: the two.
    alphas: how far from the first to the second.
    measure: of each model that is written.
    folder: gets the model of a single alpha; of several, each has a folder in
      it.
  Yields:
    'alpha', 'out', and 'accuracy' where there are data sets.
  """
  folder.mkdir(exist_ok=True)
  for alpha in alphas:
    out = folder if len(alphas) == 1 else folder / f'alpha_{alpha:g}'
    weights = (1 - alpha, alpha)
    variables = average(models, weights)
    record = {'models': names, 'alpha': alpha, 'weights': weights}
    write_model(out, measure.description, variables, record)
    row: dict[str, Any] = {'alpha': alpha, 'out': str(out)}
    if measure.datasets:
      row['accuracy'] = measure(variables)
    yield row


def write_soup(
  names: Sequence[str],
  models: Sequence[Variables],
  measure: AccuracyMeasure,
  folder: Path,
) -> dict[str, Any]:
  """Writes the mean of all models, or of those that it gains by.

  Args:
    names: what the models are called in `interpolation.RECORD`.
    models: two or more.
    measure: on held-out data, which make the soup greedy; uniform without.
    folder: gets the model.
  Returns:
    What the record says, and 'out'.
  """
  if measure.datasets:
    [dataset] = measure.datasets
    soup = greedy_soup(models, lambda x: measure(x)[dataset.name]['top1'])
    variables = soup.variables
    record = {
      'models': names,
      'soup': 'greedy',
      'data': dataset.name,
      'top1': soup.score,
      'top1_of_each': soup.scores,
      'weights': soup.weights,
    }
  else:
    weights = (1 / len(models),) * len(models)
    variables = average(models, weights)
    record = {'models': names, 'soup': 'uniform', 'weights': weights}
  write_model(folder, measure.description, variables, record)
  return record | {'out': str(folder)}
