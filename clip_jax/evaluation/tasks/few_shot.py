"""Zero-shot against few-shot (paper, section 3.1.5, figures 6 and 7).

It says how many examples of each class a probe needs to be as good as the
class's name.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.examples import (
  Examples,
  join_examples,
  read_examples,
)
from clip_jax.evaluation.metrics.intervals import mean_interval
from clip_jax.evaluation.metrics.ranking import chance_levels
from clip_jax.evaluation.probes.few_shot import FewShotProbes, few_shot_probes
from clip_jax.evaluation.probes.logistic_regression import LinearClassifier
from clip_jax.evaluation.probes.tuning import (
  fit_tuned,
  read_training,
  text_weights,
)
from clip_jax.evaluation.prompts import prompt_warnings
from clip_jax.evaluation.tasks.zero_shot import own_metric
from clip_jax.evaluation.types import Encoder, Evaluation, Options

_TASK = 'few_shot'
_ENDS = ('_low', '_high')  # of intervals
Row = dict[str, Any]


def evaluate(
  encoder: Encoder, dataset: Dataset, options: Options
) -> Evaluation:
  """Measures probes of k examples a class, beside the zero-shot classifier.

  All numbers are by the data set's metric on its test split. Examples are
  drawn from the training and the validation split together; `probes.few_shot`
  describes how C is chosen. Where no k reaches zero-shot, the curve gets one
  more point, the probe of all examples (`linear_probe`'s), as in figure 7.

  Args:
    options: `few_shot`, `probe`, `seed`, `templates`;
      `probe.start_from_text` adds a second curve, of probes that
      start from the zero-shot classifier and are stopped early, and takes the
      joint space for both.
  Returns:
    metrics: 'zero_shot'; 'K_shot', the mean over seeds, for every k, with
      'K_shot_low' and 'K_shot_high' (95 %, by Student's t; not of one seed);
      'full', the probe of all examples, where it was needed;
      'shots_to_match_zero_shot' (examples a class; figure 7), left out where
      the curve does not say; the same with '_from_text' for the second curve;
      'examples' tested.
    records: for each image 'id', 'label', 'zero_shot' (whether it was
      right) and 'shots': k to the fraction of the seeds whose probe was.
    tables: 'curve': 'start' ('zeros' or 'text'), 'shots', 'mean', 'low' and
      'high' (95 %, by Student's t; None of one value), 'values' (a seed
      each), 'C', 'iterations' (at most), 'short' (classes with fewer
      examples) and 'full' (whether it is that point). 'notes': 'note', what
      was left out and why. 'warnings': see `Evaluation`.
  Raises:
    UsageError: the data have no class names or no training split, images
      have several labels, a class has no examples, a label is out of range, or
      all are of one class.
    FailureError: features are not finite.
  """
  train, validation = read_training(
    encoder, dataset, options, _TASK, multilabel=False
  )
  test = read_examples(
    encoder, dataset.test, dataset, options, _TASK, multilabel=False
  )
  pool = join_examples([train] if validation is None else [train, validation])
  text = text_weights(encoder, dataset, options)
  fitted = list(few_shot_probes(pool, options))
  curve = [_point(x, test, dataset, 'zeros') for x in fitted if x.probes]
  notes = [x.note for x in fitted if x.note]
  target = _score(text.scores(test.features.embeddings), test, dataset)
  if all(row['mean'] < target for row in curve):
    tuned = fit_tuned(train, validation, options)
    curve += _full_point(curve, tuned.probe, tuned.C, pool, test, dataset)
  metrics = {'zero_shot': target, **_summary(curve, target, '', notes)}
  if options.probe.start_from_text:
    started = [
      _point(x, test, dataset, 'text')
      for x in few_shot_probes(pool, options, text)
      if x.probes
    ]
    metrics |= _summary(started, target, '_from_text', notes)
    curve += started
  accuracies = [
    name
    for name in metrics
    if not name.startswith('shots_to_match') and not name.endswith(_ENDS)
  ]
  return Evaluation(
    metrics={**metrics, 'examples': float(len(test))},
    chance=chance_levels(accuracies, test.classes, dataset.metric),
    records=_records(fitted, text, test, dataset.first_names),
    corrupt={**pool.corrupt, **test.corrupt},
    tables={
      'curve': curve,
      'notes': [{'note': note} for note in notes],
      'warnings': prompt_warnings(encoder, dataset, options),
    },
  )


def _score(
  scores: Float[np.ndarray, 'N C'], test: Examples, dataset: Dataset
) -> float:
  return own_metric(dataset, scores, test.answers)


def _point(
  fitted: FewShotProbes, test: Examples, dataset: Dataset, start: str
) -> Row:
  assert fitted.regularization
  values = [
    _score(probe.scores(test.inputs), test, dataset) for probe in fitted.probes
  ]
  low = high = None
  if len(values) > 1:
    _, low, high = mean_interval(np.array(values))
  return {
    'start': start,
    'shots': float(fitted.k),
    'mean': float(np.mean(values)),
    'low': low,
    'high': high,
    'values': values,
    'C': fitted.regularization.C,
    'iterations': fitted.regularization.iterations,
    'short': fitted.short,
    'full': False,
  }


def _full_point(
  curve: list[Row],
  probe: LinearClassifier,
  C: float,
  pool: Examples,
  test: Examples,
  dataset: Dataset,
) -> list[Row]:
  """Returns the point of all examples; none where the last k has as many."""
  examples_per_class = len(pool) / pool.classes
  if curve and examples_per_class <= curve[-1]['shots']:
    return []
  value = _score(probe.scores(test.inputs), test, dataset)
  return [
    {
      'start': 'zeros',
      'shots': examples_per_class,
      'mean': value,
      'low': None,
      'high': None,
      'values': [value],
      'C': C,
      'iterations': probe.iterations,
      'short': 0,
      'full': True,
    }
  ]


def _summary(
  curve: list[Row], target: float, ending: str, notes: list[str]
) -> dict[str, float]:
  """Returns the curve's metrics, and adds notes on those that it lacks."""
  metrics: dict[str, float] = {}
  for row in curve:
    name = 'full' if row['full'] else f'{row["shots"]:.0f}_shot{ending}'
    metrics[name] = row['mean']
    if row['low'] is not None:
      metrics |= {f'{name}_low': row['low'], f'{name}_high': row['high']}
  if not curve:
    return metrics
  name = f'shots_to_match_zero_shot{ending}'
  counts = [row['shots'] for row in curve]
  needed = examples_to_match(counts, [row['mean'] for row in curve], target)
  if needed is None:
    notes.append(f'{name}: fewer than {counts[0]:g}, the fewest tried.')
  elif math.isinf(needed):
    notes.append(f'{name}: not reached with {counts[-1]:g}, the most tried.')
  else:
    metrics[name] = needed
  return metrics


def _records(
  fitted: list[FewShotProbes],
  text: LinearClassifier,
  test: Examples,
  names: tuple[str, ...],
) -> list[Row]:
  zero_shot = text.predict(test.features.embeddings) == test.answers
  right = {
    str(x.k): np.mean(
      [probe.predict(test.inputs) == test.answers for probe in x.probes],
      axis=0,
    )
    for x in fitted
    if x.probes
  }
  return [
    {
      'id': test.ids[i],
      'label': names[test.answers[i]],
      'zero_shot': bool(zero_shot[i]),
      'shots': {k: float(hits[i]) for k, hits in right.items()},
    }
    for i in range(len(test))
  ]


def examples_to_match(
  examples_per_class: Sequence[float | int],
  accuracies: Sequence[float],
  target: float,
) -> float | None:
  """Returns how many examples a class a probe needs to match zero-shot.

  As figure 7 of the paper: the curve is made of straight lines between its
  points, over the logarithm of the number of examples, and the result is where
  it first reaches the target.

  Args:
    examples_per_class: of each point, rising and positive; the last may be the
      mean count of the whole training split.
    accuracies: of the probe at each point.
    target: zero-shot accuracy of the same model.
  Returns:
    Examples a class, between the first and the last. `inf` where the curve
    never reaches the target: more than the last are needed, if any number does.
    None where the first point is already above it: fewer than the first are
    needed, and the curve does not say how many.
  Raises:
    UsageError: there are no points, not as many of both, or the numbers of
      examples do not rise from above 0.
  """
  counts = examples_per_class
  if not counts or len(counts) != len(accuracies):
    raise UsageError(
      f'{len(counts)} numbers of examples and {len(accuracies)} accuracies: '
      'give one of each a point, and at least one point.'
    )
  if counts[0] <= 0 or any(b <= a for a, b in itertools.pairwise(counts)):
    raise UsageError(
      f'numbers of examples {list(counts)}: they must rise, from above 0.'
    )
  if accuracies[0] > target:
    return None
  if accuracies[0] == target:
    return float(counts[0])
  for i in range(1, len(counts)):
    if accuracies[i] >= target:
      rise = accuracies[i] - accuracies[i - 1]
      part = (target - accuracies[i - 1]) / rise
      low, high = math.log(counts[i - 1]), math.log(counts[i])
      return math.exp(low + part * (high - low))
  return math.inf
