"""Overlap of the test with the training data, and what it changes (section 5).

A detector splits the test images: Overlap are those of which a near-duplicate
is among the training images, Clean the rest, All both. How much contamination
inflates a result is the accuracy on All minus that on Clean.

No detector is perfect, and Overlap may differ from Clean in more than having
been seen: in the paper some of it was black frames of films. The paper chose
the threshold of each data set by looking at pairs: see the tables.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from clip_jax.data.sources import Source, open_source
from clip_jax.errors import UsageError, check_choice
from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.examples import Examples, examples_of
from clip_jax.evaluation.features.extraction import read_features
from clip_jax.evaluation.metrics.intervals import (
  OVERLAP_CONFIDENCE,
  clopper_pearson,
  overlap_p_value,
)
from clip_jax.evaluation.metrics.ranking import chance_levels, top_classes
from clip_jax.evaluation.near_duplicates.detectors import (
  NearDuplicates,
  find_learned,
  find_perceptual,
)
from clip_jax.evaluation.near_duplicates.perceptual_hash import BITS
from clip_jax.evaluation.prompts import classifier_for, prompt_warnings
from clip_jax.evaluation.types import Encoder, Evaluation, Options

DETECTORS = ('perceptual', 'learned')
# The thresholds of the sweeps: bits, beyond which images are rarely copies, and
# cosines.
_DISTANCES = [float(n) for n in range(17)]
_SIMILARITIES = [n / 100 for n in range(80, 100)]
_PAIRS_A_STEP = 8  # shown of each step of the sweep
# Hits of one training image that are said: so many, and such a part of all.
_MANY_HITS, _MANY = 10, 0.1


def evaluate(
  encoder: Encoder, dataset: Dataset, options: Options
) -> Evaluation:
  """Measures accuracy on All, Overlap and Clean test images (figure 17).

  The 'perceptual' detector takes images for near-duplicates whose hashes
  differ in at most `max_distance` bits, and which are the same in every place
  and colour (`same_image`): flat images of one pattern share their hash. It
  never compares images without texture, which are alike whatever they are of.
  The 'learned' one takes those whose features, by this very model, have a
  cosine of at least `min_similarity`: it finds more, and also what is merely of
  the same thing. Accuracy is top-1 over images, whatever the data set's own
  metric is.

  Args:
    options: `overlap`; `templates`, `cache`, `max_corrupt_records`, `progress`.
  Returns:
    metrics: 'examples', 'overlap_examples', 'clean_examples', and
      'refuted_examples' and 'uncompared_examples' of the perceptual detector
      (counts); 'overlap_share'; 'accuracy_all', 'accuracy_overlap',
      'accuracy_clean'; 'all_minus_clean'; 'overlap_minus_clean' and its
      'overlap_minus_clean_low' and '_high', the ends of the 99.5 %
      Clopper-Pearson interval of Overlap's accuracy less Clean's; 'p_value',
      one-tailed, that Overlap is as easy as Clean. What is undefined, Overlap
      or Clean being empty, is left out.
    records: for each test image 'id', 'label', 'predicted', 'correct',
      'nearest' (the training image, or None), 'distance' or 'similarity'
      (or None), 'overlapping', 'refuted': near by its hash, and not the same.
    tables: 'thresholds': 'threshold', 'overlapping' (a count),
      'overlap_accuracy', 'clean_accuracy' (None where undefined); beyond
      `max_distance`, hits are by the hash alone. 'pairs', to look at: 'test',
      'train' (ids), 'distance' or 'similarity', 'overlapping'; nearest first,
      the first few of each step of the sweep. 'warnings': see `Evaluation`;
      also that many hits share one image.
  Raises:
    UsageError: an option makes no sense, or there is no training data, no
      class name or no label.
    FailureError: too many images are corrupt, features are not finite, or
      cached hashes are of other images.
  """
  _check(options)
  dataset.require_classes('overlap')
  train = _training_source(dataset, options)
  features = read_features(encoder, dataset.test.source, options)
  test = examples_of(
    features, dataset.test, dataset, 'overlap', multilabel=False
  )
  predicted = _predict(encoder, dataset, test, options)
  correct = predicted == test.answers
  measure = _measure_of(options)
  if options.overlap.detector == 'perceptual':
    duplicates = find_perceptual(test, dataset.test.source, train, options)
  else:
    duplicates = find_learned(encoder, test, train, options)
  overlapping = measure.hits(duplicates, measure.threshold)
  metrics = compare(correct, overlapping)
  if options.overlap.detector == 'perceptual':
    metrics['refuted_examples'] = float(duplicates.refuted.sum())
    metrics['uncompared_examples'] = float(duplicates.uncompared)
  accuracies = [name for name in metrics if name.startswith('accuracy_')]
  return Evaluation(
    metrics,
    _records(dataset, test, predicted, duplicates, overlapping, measure),
    {
      **{f'{train.spec} {x}': y for x, y in duplicates.corrupt.items()},
      **test.corrupt,
    },
    {
      'thresholds': _sweep(correct, duplicates, measure),
      'pairs': _pairs(test, duplicates, overlapping, measure),
      'warnings': [
        *prompt_warnings(encoder, dataset, options),
        *_repeated_hits(duplicates, overlapping),
      ],
    },
    chance_levels(accuracies, len(dataset.class_names), 'accuracy'),
  )


def compare(
  correct: Bool[np.ndarray, ' N'], overlapping: Bool[np.ndarray, ' N']
) -> dict[str, float]:
  """Returns the paper's statistics of what is right and what was seen.

  Returns:
    The metrics of `evaluate`, for at least one image.
  """
  seen, clean = correct[overlapping], correct[~overlapping]
  metrics = {
    'examples': float(len(correct)),
    'overlap_examples': float(len(seen)),
    'clean_examples': float(len(clean)),
    'overlap_share': float(overlapping.mean()),
    'accuracy_all': float(correct.mean()),
  }
  if len(seen):
    metrics['accuracy_overlap'] = float(seen.mean())
  if len(clean):
    rate = float(clean.mean())
    metrics['accuracy_clean'] = rate
    metrics['all_minus_clean'] = metrics['accuracy_all'] - rate
  if len(seen) and len(clean):
    hits = int(seen.sum())
    interval = clopper_pearson(hits, len(seen), OVERLAP_CONFIDENCE)
    metrics['overlap_minus_clean'] = metrics['accuracy_overlap'] - rate
    metrics['overlap_minus_clean_low'] = interval.low - rate
    metrics['overlap_minus_clean_high'] = interval.high - rate
    metrics['p_value'] = overlap_p_value(hits, len(seen), rate)
  return metrics


def _check(options: Options) -> None:
  check_choice('detector', options.overlap.detector, DETECTORS)
  if not 0 <= options.overlap.max_distance <= BITS:
    raise UsageError(
      f'max_distance={options.overlap.max_distance} bits: use 0 to 64.'
    )
  if not -1 <= options.overlap.min_similarity <= 1:
    raise UsageError(
      f'min_similarity={options.overlap.min_similarity}: use a cosine, -1 to 1.'
    )


def _training_source(dataset: Dataset, options: Options) -> Source:
  if options.overlap.train:
    return open_source(options.overlap.train)
  if dataset.train is None:
    raise UsageError(
      f'data {dataset.name!r} has no training split: name what the model was '
      'trained on with --overlap_with=SPEC.'
    )
  return dataset.train.source


def _predict(
  encoder: Encoder, dataset: Dataset, test: Examples, options: Options
) -> Int[np.ndarray, ' N']:
  weights = classifier_for(encoder, dataset, options)
  best, _ = top_classes(
    test.features.embeddings, weights, k=1, logit_scale=encoder.logit_scale
  )
  return best[:, 0]


def _repeated_hits(
  duplicates: NearDuplicates, overlapping: np.ndarray
) -> list[dict[str, Any]]:
  """Returns a warning where many hits are of one training image.

  That is a pattern, such as a star or a sign, rather than copies; and such hits
  are no independent draws, as the p-value takes them to be.
  """
  rows, counts = np.unique(duplicates.rows[overlapping], return_counts=True)
  if not len(rows) or counts.max() < max(_MANY_HITS, _MANY * counts.sum()):
    return []
  most = int(counts.argmax())
  return [
    {
      'warning': f'{counts[most]:,} of {counts.sum():,} overlapping images '
      f'are near one training image, {duplicates.train_ids[rows[most]]}: look '
      'at it; hits of one pattern are no copies, and the p-value takes them '
      'for independent.'
    }
  ]


def _sweep(
  correct: np.ndarray, duplicates: NearDuplicates, measure: '_Measure'
) -> list[dict[str, Any]]:
  rows = []
  for threshold in measure.thresholds:
    metrics = compare(correct, measure.hits(duplicates, threshold))
    rows.append(
      {
        'threshold': measure.number(threshold),
        'overlapping': int(metrics['overlap_examples']),
        'overlap_accuracy': metrics.get('accuracy_overlap'),
        'clean_accuracy': metrics.get('accuracy_clean'),
      }
    )
  return rows


def _pairs(
  test: Examples,
  duplicates: NearDuplicates,
  overlapping: np.ndarray,
  measure: '_Measure',
) -> list[dict[str, Any]]:
  order = measure.nearest_first(duplicates.values)
  before = np.zeros(len(test), bool)
  rows = []
  for threshold in measure.thresholds:
    within = measure.within(duplicates.values, threshold)
    fresh = within & ~before
    before = within
    for i in order[fresh[order]][:_PAIRS_A_STEP].tolist():
      rows.append(
        {
          'test': test.ids[i],
          'train': duplicates.train_ids[duplicates.rows[i]],
          measure.name: measure.number(float(duplicates.values[i])),
          'overlapping': bool(overlapping[i]),
        }
      )
  return rows


def _records(
  dataset: Dataset,
  test: Examples,
  predicted: np.ndarray,
  duplicates: NearDuplicates,
  overlapping: np.ndarray,
  measure: '_Measure',
) -> list[dict[str, Any]]:
  names = dataset.first_names
  records = []
  for i, key in enumerate(test.ids):
    row = int(duplicates.rows[i])
    value = float(duplicates.values[i])
    compared = row >= 0
    records.append(
      {
        'id': key,
        'label': names[test.answers[i]],
        'predicted': names[predicted[i]],
        'correct': bool(predicted[i] == test.answers[i]),
        'nearest': duplicates.train_ids[row] if compared else None,
        measure.name: measure.number(value) if compared else None,
        'overlapping': bool(overlapping[i]),
        'refuted': bool(duplicates.refuted[i]),
      }
    )
  return records


class _Measure(NamedTuple):
  """The measure by which a detector tells how near two images are.

  Attributes:
    name: 'distance', in bits, or 'similarity', a cosine.
    least: whether the nearest images have the least value.
    threshold: of the options.
    thresholds: of the sweep, strictest first; `threshold` is one of them.
    number: the type of a value in the tables: bits are whole numbers.
  """

  name: str
  least: bool
  threshold: float
  thresholds: list[float]
  number: type[int] | type[float]

  def within(
    self, values: Float[np.ndarray, ' N'], threshold: float
  ) -> Bool[np.ndarray, ' N']:
    """Returns which images are near; those that were not compared are not."""
    return values <= threshold if self.least else values >= threshold

  def hits(
    self, duplicates: NearDuplicates, threshold: float
  ) -> Bool[np.ndarray, ' N']:
    """Returns which images overlap."""
    return self.within(duplicates.values, threshold) & ~duplicates.refuted

  def nearest_first(
    self, values: Float[np.ndarray, ' N']
  ) -> Int[np.ndarray, ' N']:
    """Returns the order in which the nearest images come first."""
    return np.argsort(values if self.least else -values, kind='stable')


def _measure_of(options: Options) -> _Measure:
  """Returns the measure of the detector that the options choose."""
  if options.overlap.detector == 'perceptual':
    threshold = float(options.overlap.max_distance)
    thresholds = sorted({*_DISTANCES, threshold})
    return _Measure('distance', True, threshold, thresholds, int)
  threshold = float(options.overlap.min_similarity)
  thresholds = sorted({*_SIMILARITIES, threshold}, reverse=True)
  return _Measure('similarity', False, threshold, thresholds, float)
