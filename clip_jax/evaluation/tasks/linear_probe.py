"""The linear probe (paper, section 3.2, appendix A.3, figures 10 and 11).

It says how well a linear classifier on the features separates the classes, as
table 10 of the paper does.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.examples import Examples, read_examples
from clip_jax.evaluation.metrics.classification import (
  mean_per_class,
)
from clip_jax.evaluation.metrics.intervals import clopper_pearson
from clip_jax.evaluation.metrics.ranking import (
  accuracies,
  chance_levels,
  ranks_of,
)
from clip_jax.evaluation.probes.tuning import (
  TunedProbe,
  fit_tuned,
  read_training,
  text_weights,
)
from clip_jax.evaluation.prompts import prompt_warnings
from clip_jax.evaluation.tasks.zero_shot import own_metric
from clip_jax.evaluation.types import Encoder, Evaluation, Options
from clip_jax.inference.classifier import sigmoid, softmax
from clip_jax.inference.nearest import top_k

_TASK = 'linear_probe'
_SHOWN = 5  # classes of a record


def evaluate(
  encoder: Encoder, dataset: Dataset, options: Options
) -> Evaluation:
  """Fits logistic regression on training and validation, and tests it.

  C is chosen on the validation split, or where there is none on a fifth of
  the training split (stratified, by the seed); the probe is then fitted on
  both. `probes.tuning` describes its inputs.

  Args:
    options: `probe`, `seed`. `probe.start_from_text` starts from the zero-shot
      classifier's weights, in the joint space. The optimum is one, so that the
      start changes the result only where `probe.max_iterations` are too few to
      reach it, and otherwise the number of steps.
  Returns:
    metrics: 'top1' with 'top1_low' and 'top1_high' (the exact interval of
      95 %), of more than ten classes 'top5', 'mean_per_class', the data
      set's own metric under its name where that is another; of multi-label
      data only the latter.
      'examples' tested, 'train_examples' fitted on.
    records: for each image 'id', 'label' (of multi-label data 'labels'),
      'top': up to five [name, probability], best first, and 'rank' of the
      label among these, or None.
    tables: 'probe', one row: 'C', 'iterations', 'converged', 'start' ('text'
      or 'zeros'). 'sweep': 'C' and its 'score' on validation, by rising C; no
      rows where C was given. 'warnings': see `Evaluation`.
  Raises:
    UsageError: the data have no class names or no training split, a class
      has no examples, a label is out of range, or all examples are of one
      class.
    FailureError: features are not finite.
  """
  train, validation = read_training(encoder, dataset, options, _TASK)
  test = read_examples(encoder, dataset.test, dataset, options, _TASK)
  initial, warnings = None, []
  if options.probe.start_from_text:
    initial = text_weights(encoder, dataset, options)
    warnings = prompt_warnings(encoder, dataset, options)
  tuned = fit_tuned(train, validation, options, initial)
  scores = tuned.probe.scores(test.inputs)
  best = top_k(scores, _SHOWN)
  fitted = [part for part in (train, validation) if part is not None]
  measured = _measure(scores, best, test, dataset)
  return Evaluation(
    metrics={
      **measured,
      'examples': float(len(test)),
      'train_examples': float(sum(map(len, fitted))),
    },
    chance=chance_levels(measured, test.classes),
    records=_describe(scores, best, test, dataset.first_names),
    corrupt={
      key: why for part in (*fitted, test) for key, why in part.corrupt.items()
    },
    tables={**_tables(tuned, options), 'warnings': warnings},
  )


def _measure(
  scores: Float[np.ndarray, 'N C'],
  best: Int[np.ndarray, 'N K'],
  test: Examples,
  dataset: Dataset,
) -> dict[str, float]:
  own = own_metric(dataset, scores, test.answers, test.difficult)
  if test.multilabel:
    return {dataset.metric: own}
  right = int((best[:, 0] == test.answers).sum())
  interval = clopper_pearson(right, len(test))
  metrics = accuracies(best, test.answers, ranks_of(test.classes))
  metrics['top1_low'], metrics['top1_high'] = interval
  metrics['mean_per_class'] = mean_per_class(scores, test.answers)
  if dataset.metric != 'accuracy':  # which is top1
    metrics[dataset.metric] = own
  return metrics


def _describe(
  scores: Float[np.ndarray, 'N C'],
  best: Int[np.ndarray, 'N K'],
  test: Examples,
  names: tuple[str, ...],
) -> list[dict[str, Any]]:
  to_chances = sigmoid if test.multilabel else softmax
  chances = to_chances(scores)
  records = []
  for row, classes in enumerate(best.tolist()):
    record: dict[str, Any] = {'id': test.ids[row]}
    if test.multilabel:
      present = np.flatnonzero(test.answers[row])
      record['labels'] = [names[c] for c in present]
    else:
      label = int(test.answers[row])
      record['label'] = names[label]
      record['rank'] = classes.index(label) if label in classes else None
    record['top'] = [[names[c], float(chances[row, c])] for c in classes]
    records.append(record)
  return records


def _tables(
  tuned: TunedProbe, options: Options
) -> dict[str, list[dict[str, Any]]]:
  probe = {
    'C': tuned.C,
    'iterations': tuned.probe.iterations,
    'converged': tuned.probe.converged,
    'start': 'text' if options.probe.start_from_text else 'zeros',
  }
  sweep = [{'C': C, 'score': score} for C, score in tuned.sweep.items()]
  return {'probe': [probe], 'sweep': sweep}
