"""The cost of a natural shift of the data (paper, section 3.3).

Zero-shot CLIP and probes of it are measured on a data set and on a shift of it
(figures 13 to 15).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.examples import join_examples
from clip_jax.evaluation.metrics.classification import accuracy
from clip_jax.evaluation.metrics.ranking import chance_levels
from clip_jax.evaluation.probes.few_shot import few_shot_probes
from clip_jax.evaluation.probes.tuning import (
  fit_tuned,
  read_training,
  text_weights,
)
from clip_jax.evaluation.prompts import prompt_warnings
from clip_jax.evaluation.shift.effective_robustness import (
  LogitFit,
  effective_robustness,
  fit_logits,
  read_baselines,
  relative_robustness,
)
from clip_jax.evaluation.shift.shared_classes import (
  ModelAccuracy,
  SharedExamples,
  read_shared_examples,
)
from clip_jax.evaluation.types import Encoder, Evaluation, Options

_TASK = 'robustness'
_ACCURACIES = (
  'zero_shot_reference',
  'zero_shot_shift',
  'adapted_shift',
  'probe_reference',
  'probe_shift',
)
_LINE_POINTS = np.linspace(0.02, 0.98, 49)  # reference accuracies of a figure


def evaluate(
  encoder: Encoder, dataset: Dataset, options: Options
) -> Evaluation:
  """Calls `evaluate_shift` for a data set that names its reference.

  Args:
    options: `robustness`, and those of `evaluate_shift`.
  Raises:
    UsageError: it is no shift of another; see also `evaluate_shift` and
      `read_baselines`.
    FailureError: see `evaluate_shift`.
  """
  if dataset.reference is None:
    raise UsageError(
      f'data {dataset.name!r} is no shift of another data set, which '
      f'{_TASK} needs: use one that is, as imagenet_v2 is of imagenet.'
    )
  baselines = (
    read_baselines(options.robustness.baselines)
    if options.robustness.baselines
    else ()
  )
  return evaluate_shift(encoder, dataset.reference, dataset, options, baselines)


def evaluate_shift(
  encoder: Encoder,
  reference: Dataset,
  shift: Dataset,
  options: Options,
  baselines: Sequence[tuple[str, float, float]] = (),
) -> Evaluation:
  """Measures zero-shot and probes on both, and robustness above a line.

  All accuracies are of the test images of the classes that both share, and
  among these (`shared_classes`). Probes are fitted on the reference's training
  split, on k examples a class and on all; where it cannot be opened, there are
  none. The line is one of standard models; without such it goes through these
  probes, which then stand for what training on the reference gives, as of
  figure 15.

  Args:
    options: `few_shot`, `probe`, `seed`, `templates`.
    baselines: standard models: a name, the accuracies on the reference and on
      the shift, fractions; see `read_baselines`.
  Returns:
    metrics: 'zero_shot_reference' and 'zero_shot_shift', by the names of the
      reference's classes; 'adapted_shift', by those of the shift's classes,
      and 'adaptation_gain', how much more that is (figure 14); 'probe_…' of
      the probe of all examples; 'effective_robustness' of zero-shot, and
      'adapted_effective_robustness'; 'relative_robustness' of zero-shot over
      the probe of all examples, and 'adapted_relative_robustness';
      'shared_classes', 'examples' (of the shift), 'reference_examples'.
      What there are no probes or no line for is left out.
    records: for each image of the shift 'id', 'label', and whether it was
      right: 'zero_shot' and 'adapted'.
    tables: 'models': 'name', 'reference_accuracy', 'shift_accuracy', 'kind'
      ('zero_shot', 'adapted', 'probe', 'full_probe', 'baseline'). 'fit', one
      row or none: 'slope', 'intercept', 'models', and what it is 'through',
      'baselines' or 'probes'. 'line': points of it with its band of 95 %,
      'reference_accuracy', 'shift_accuracy', 'low', 'high'. 'notes': 'note',
      what was left out and why. 'warnings': see `Evaluation`.
  Raises:
    UsageError: a data set has no class names or several labels an image, they
      share fewer than two classes, a class of the reference has no training
      examples, a label is out of range, or baselines are wrong.
    FailureError: features are not finite.
  """
  for dataset in (reference, shift):
    dataset.require_classes(_TASK)
  tests = read_shared_examples(encoder, reference, shift, options, _TASK)
  shared = tests.shared
  zero_shot = text_weights(encoder, reference, options)
  plain = tests.measure('zero-shot', 'zero_shot', [zero_shot])
  own = shared.pool_shift(
    text_weights(encoder, shift, options).scores(
      tests.shift.features.embeddings
    )
  )
  adapted = ModelAccuracy(
    'zero-shot, adapted to class shift',
    plain.reference_accuracy,  # the reference's names are its own
    accuracy(own, tests.shift.answers),
    'adapted',
  )
  notes: list[str] = []
  probes = list(_probes(encoder, reference, tests, options, notes))
  standard = [ModelAccuracy(*row, kind='baseline') for row in baselines]
  line = _line(standard, probes, notes)
  metrics = _metrics(plain, adapted, probes, line, tests)
  return Evaluation(
    metrics=metrics,
    chance=chance_levels(
      [name for name in metrics if name in _ACCURACIES],
      len(shared.names),
      'accuracy',
    ),
    records=_records(
      tests,
      zero_shot=shared.pool_reference(
        zero_shot.scores(tests.shift.features.embeddings)
      ),
      adapted=own,
    ),
    corrupt={**tests.reference.corrupt, **tests.shift.corrupt},
    tables={
      'models': [row._asdict() for row in (plain, adapted, *probes, *standard)],
      'fit': _describe(line, 'baselines' if standard else 'probes'),
      'line': _points(line),
      'notes': [{'note': note} for note in notes],
      'warnings': [
        row
        for dataset in (reference, shift)
        for row in prompt_warnings(encoder, dataset, options)
      ],
    },
  )


def _probes(
  encoder: Encoder,
  reference: Dataset,
  tests: SharedExamples,
  options: Options,
  notes: list[str],
) -> Iterator[ModelAccuracy]:
  """Yields probes of k examples, the mean over seeds, then that of all."""
  try:
    _ = reference.require_train(_TASK).source  # opened when it is asked for
  except UsageError as error:
    notes.append(f'no probes: {error}')
    return
  train, validation = read_training(encoder, reference, options, _TASK)
  parts = [train] if validation is None else [train, validation]
  for fitted in few_shot_probes(join_examples(parts), options):
    if fitted.probes:
      yield tests.measure(f'{fitted.k}-shot probe', 'probe', fitted.probes)
    else:
      notes.append(fitted.note)
  full = fit_tuned(train, validation, options).probe
  yield tests.measure('probe of all examples', 'full_probe', [full])


def _line(
  standard: Sequence[ModelAccuracy],
  probes: Sequence[ModelAccuracy],
  notes: list[str],
) -> LogitFit | None:
  """Fits the line through the standard models; without any, the probes."""
  models = standard or probes
  x, y = (
    np.array([m.reference_accuracy for m in models], float),
    np.array([m.shift_accuracy for m in models], float),
  )
  if standard:
    return fit_logits(x, y)
  if len(models) < 3 or not np.ptp(x):
    notes.append(
      f'no line, and so no effective robustness: {len(models)} probes with '
      f'{len(np.unique(x))} accuracies on the reference, and no baselines.'
    )
    return None
  notes.append(
    'the line goes through the probes of this model, not through standard '
    'models: give these with baselines.'
  )
  return fit_logits(x, y)


def _metrics(
  plain: ModelAccuracy,
  adapted: ModelAccuracy,
  probes: Sequence[ModelAccuracy],
  line: LogitFit | None,
  tests: SharedExamples,
) -> dict[str, float]:
  metrics = {
    'zero_shot_reference': plain.reference_accuracy,
    'zero_shot_shift': plain.shift_accuracy,
    'adapted_shift': adapted.shift_accuracy,
    'adaptation_gain': adapted.shift_accuracy - plain.shift_accuracy,
  }
  for model, prefix in ((plain, ''), (adapted, 'adapted_')):
    if line is not None:
      metrics[f'{prefix}effective_robustness'] = effective_robustness(
        model.shift_accuracy, model.reference_accuracy, line
      )
    if probes:
      metrics[f'{prefix}relative_robustness'] = relative_robustness(
        model.shift_accuracy, probes[-1].shift_accuracy
      )
  if probes:
    metrics['probe_reference'] = probes[-1].reference_accuracy
    metrics['probe_shift'] = probes[-1].shift_accuracy
  metrics['shared_classes'] = float(len(tests.shared.names))
  metrics['examples'] = float(len(tests.shift))
  metrics['reference_examples'] = float(len(tests.reference))
  return metrics


def _records(
  tests: SharedExamples,
  *,
  zero_shot: Float[np.ndarray, 'N S'],
  adapted: Float[np.ndarray, 'N S'],
) -> list[dict[str, Any]]:
  labels = tests.shift.answers
  right = {
    'zero_shot': zero_shot.argmax(axis=1) == labels,
    'adapted': adapted.argmax(axis=1) == labels,
  }
  return [
    {
      'id': key,
      'label': tests.shared.names[labels[i]],
      **{name: bool(hits[i]) for name, hits in right.items()},
    }
    for i, key in enumerate(tests.shift.ids)
  ]


def _describe(line: LogitFit | None, through: str) -> list[dict[str, Any]]:
  if line is None:
    return []
  return [
    {
      'slope': line.slope,
      'intercept': line.intercept,
      'models': line.models,
      'through': through,
    }
  ]


def _points(line: LogitFit | None) -> list[dict[str, Any]]:
  if line is None:
    return []
  return [
    {
      'reference_accuracy': x,
      'shift_accuracy': line.predict(x),
      **line.band(x)._asdict(),
    }
    for x in _LINE_POINTS.tolist()
  ]
