"""Zero-shot classification (paper, section 3.1): the right name among all."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from clip_jax.evaluation.captions import CaptionClassifier, CaptionModel
from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.examples import Answers, Examples, examples_of
from clip_jax.evaluation.features.concurrency import encode_concurrently
from clip_jax.evaluation.features.extraction import read_features
from clip_jax.evaluation.metrics.calibration import (
  calibration_error,
  reliability_table,
)
from clip_jax.evaluation.metrics.ranking import (
  accuracies,
  chance_levels,
  ranks_of,
  scaled,
  scores_of,
  top_classes,
)
from clip_jax.evaluation.prompts import classifier_for, prompt_warnings
from clip_jax.evaluation.types import Encoder, Evaluation, Options

PAIRS = 50  # confusions in the table
PAIR_EXAMPLES = 5  # ids of each confusion


def evaluate(
  encoder: Encoder, dataset: Dataset, options: Options
) -> Evaluation:
  """Classifies each image among the names of all classes.

  A model that was trained to predict captions alone (the paper's figure 2)
  chooses the class whose prompt is the most likely caption.

  Args:
    options: `templates`, `cache`, `max_corrupt_records`, `progress`.
  Returns:
    metrics: 'top1' and, of more than ten classes, 'top5': fractions of the
      images whose class is the first, or among the first five; 'top1_low'
      and 'top1_high', its 95 % interval (Clopper and Pearson); the data set's
      own metric under its name, where that is another; 'ece', the expected
      calibration error of the first class's probability; 'examples', images
      classified. Of data with several labels an image (VOC2007)
      'map_11_point' and 'examples'.
    records: for each image 'id', 'label' (the name), 'top': up to five
      [name, probability], best first, and 'rank' (of the label among `top`,
      from 0, or None). With several labels 'labels' instead, and no 'rank'.
    tables: 'per_class': 'class', 'examples', and 'accuracy' (with several
      labels 'average_precision'); 'confusions', the most frequent first:
      'right', 'given', 'times', mean 'probability' and some 'examples' (ids,
      the most certain first); 'reliability': see `Reliability`; 'warnings':
      see `Evaluation`.
  Raises:
    UsageError: there are no class names or labels, a label is out of range, a
      class's name is empty, or a template has no slot.
    FailureError: too many images are corrupt, or features are not finite.
  """
  dataset.require_classes('zero_shot')
  model = encoder
  if isinstance(model, CaptionModel) and model.classifies_by_captions:
    encoder = CaptionClassifier(model, dataset, options)
    options = dataclasses.replace(options, cache=None)
    weights = np.eye(len(dataset.class_names), dtype=np.float32)
    features = read_features(encoder, dataset.test.source, options)
  else:
    weights, features = encode_concurrently(
      options,
      lambda options: classifier_for(encoder, dataset, options),
      lambda options: read_features(encoder, dataset.test.source, options),
    )
  examples = examples_of(features, dataset.test, dataset, 'zero_shot')
  evaluate_examples = _multilabel if examples.multilabel else _single_label
  result = evaluate_examples(encoder, dataset, examples, weights)
  warnings = prompt_warnings(model, dataset, options)
  return dataclasses.replace(
    result, tables={**result.tables, 'warnings': warnings}
  )


def own_metric(
  dataset: Dataset,
  scores: Float[np.ndarray, 'N C'],
  truth: Answers,
  difficult: Bool[np.ndarray, 'N C'] | None = None,
) -> float:
  """Returns the data set's metric, as `metrics.METRICS` has it.

  Args:
    truth: classes; of data with several labels an image, which are right.
    difficult: of the latter, which are neither right nor wrong.
  """
  # It brings scikit-learn along, which training can do without.
  from clip_jax.evaluation.metrics.classification import (
    METRICS,
    map_11_point,
  )

  if truth.ndim == 2:
    return map_11_point(scores, truth, difficult)
  if dataset.metric == 'map_11_point':
    truth = truth[:, None] == np.arange(scores.shape[1])
  return METRICS[dataset.metric](scores, truth)


def _single_label(
  encoder: Encoder,
  dataset: Dataset,
  examples: Examples,
  weights: Float[np.ndarray, 'E C'],
) -> Evaluation:
  from clip_jax.evaluation.metrics.intervals import (
    clopper_pearson,
  )

  labels, names = examples.answers, dataset.first_names
  best, probabilities = top_classes(
    examples.features.embeddings, weights, k=5, logit_scale=encoder.logit_scale
  )
  right = best[:, 0] == labels
  mistakes = (
    (i, names[labels[i]], names[best[i, 0]], float(probabilities[i, 0]))
    for i in np.flatnonzero(~right).tolist()
  )
  low, high = clopper_pearson(int(right.sum()), len(labels))
  bins = reliability_table(probabilities[:, 0], right)
  metrics = {
    **accuracies(best, labels, ranks_of(len(names))),
    'top1_low': low,
    'top1_high': high,
    'ece': calibration_error(bins),
    'examples': float(len(labels)),
  }
  if dataset.metric != 'accuracy':
    scores = _scores(encoder, examples, weights)
    metrics[dataset.metric] = own_metric(dataset, scores, labels)
  return Evaluation(
    metrics=metrics,
    chance=chance_levels(metrics, len(names)),
    records=[
      {
        'id': examples.ids[i],
        'label': names[label],
        'rank': top.index(label) if label in top else None,
        'top': _named(top, values, names),
      }
      for i, (label, top, values) in enumerate(
        zip(labels.tolist(), best.tolist(), probabilities.tolist(), strict=True)
      )
    ],
    corrupt=examples.corrupt,
    tables={
      'per_class': _per_class(labels, right, names),
      'confusions': [
        {
          'right': pair.right,
          'given': pair.given,
          'times': pair.times,
          'probability': pair.probability,
          'examples': [examples.ids[i] for i in pair.examples[:PAIR_EXAMPLES]],
        }
        for pair in most_frequent_confusions(mistakes, PAIRS)
      ],
      'reliability': [row._asdict() for row in bins],
    },
  )


def _multilabel(
  encoder: Encoder,
  dataset: Dataset,
  examples: Examples,
  weights: Float[np.ndarray, 'E C'],
) -> Evaluation:
  truth, difficult = examples.answers, examples.difficult
  names = dataset.first_names
  scores = _scores(encoder, examples, weights)
  best, probabilities = top_classes(
    examples.features.embeddings, weights, k=5, logit_scale=encoder.logit_scale
  )
  return Evaluation(
    metrics={
      'map_11_point': own_metric(dataset, scores, truth, difficult),
      'examples': float(len(examples)),
    },
    records=[
      {
        'id': key,
        'labels': [names[c] for c in np.flatnonzero(answers)],
        'top': _named(top, values, names),
      }
      for key, answers, top, values in zip(
        examples.ids, truth, best.tolist(), probabilities.tolist(), strict=True
      )
    ],
    corrupt=examples.corrupt,
    tables={
      'per_class': [
        {
          'class': name,
          'examples': int(truth[:, c].sum()),
          'average_precision': own_metric(
            dataset,
            scores[:, [c]],
            truth[:, [c]],
            None if difficult is None else difficult[:, [c]],
          ),
        }
        for c, name in enumerate(names)
      ]
    },
  )


def _scores(
  encoder: Encoder, examples: Examples, weights: Float[np.ndarray, 'E C']
) -> Float[np.ndarray, 'N C']:
  weights = scaled(weights, encoder.logit_scale)
  return scores_of(examples.features.embeddings, weights)


def _named(
  top: Sequence[int], values: Sequence[float], names: Sequence[str]
) -> list[list[Any]]:
  return [[names[c], p] for c, p in zip(top, values, strict=True)]


def _per_class(
  labels: Int[np.ndarray, ' N'],
  right: Bool[np.ndarray, ' N'],
  names: Sequence[str],
) -> list[dict[str, Any]]:
  """Returns a row for each class that occurs, in their order."""
  totals = np.bincount(labels)
  hits = np.bincount(labels, weights=right)
  return [
    {
      'class': names[c],
      'examples': int(totals[c]),
      'accuracy': float(hits[c] / totals[c]),
    }
    for c in np.flatnonzero(totals).tolist()
  ]


@dataclasses.dataclass(frozen=True)
class Confusion:
  """A name that was given in place of another.

  Attributes:
    right, given: the names.
    examples: the images, as the caller numbers them, the most certain first.
    probability: of the given name, a mean over the examples.
  """

  right: str
  given: str
  examples: list[int]
  probability: float

  @property
  def times(self) -> int:
    """The number of examples that were given the wrong name."""
    return len(self.examples)


def most_frequent_confusions(
  mistakes: Iterable[tuple[int, str, str, float]], count: int
) -> list[Confusion]:
  """Returns the most frequent confusions; of equals the most certain first.

  Args:
    mistakes: the number of an image, its right name, the wrong one that it was
      given, and the probability of that.
    count: how many to return at most.
  """
  by_names = collections.defaultdict(list)
  for example, right, given, probability in mistakes:
    by_names[right, given].append((probability, example))
  pairs = [
    Confusion(
      right,
      given,
      [example for _, example in sorted(times, key=lambda x: -x[0])],
      sum(probability for probability, _ in times) / len(times),
    )
    for (right, given), times in by_names.items()
  ]
  pairs.sort(key=lambda c: (-c.times, -c.probability, c.right, c.given))
  return pairs[:count]
