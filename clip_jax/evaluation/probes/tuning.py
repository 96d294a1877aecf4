"""The paper's linear probe: how it is fitted, and how C is chosen.

As the paper's (appendix A.3), probes are fitted on what a ViT has before its
projection into the joint space: of a B/32, 768 numbers an image and not 512.
They are fitted on the joint space where the options ask for it, where they
start from the text tower's weights, and where an encoder gives nothing else.

C is the one with the best score on a validation split: see `c_sweep`.
"""

import dataclasses

import numpy as np

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import Dataset, Split
from clip_jax.evaluation.examples import (
  Examples,
  join_examples,
  read_examples,
)
from clip_jax.evaluation.metrics.classification import accuracy, map_11_point
from clip_jax.evaluation.metrics.ranking import count_each, scaled
from clip_jax.evaluation.probes.c_sweep import SweepResult, binary_search
from clip_jax.evaluation.probes.logistic_regression import (
  Inputs,
  LinearClassifier,
  fit,
  fit_multilabel,
  move_to_solver,
)
from clip_jax.evaluation.probes.sampling import hold_out
from clip_jax.evaluation.prompts import classifier_for
from clip_jax.evaluation.types import Encoder, Options

HELD_OUT = 0.2  # of the training split, where the data set has no validation


@dataclasses.dataclass(frozen=True)
class TunedProbe:
  """A probe with the regularisation that was best on what was held out.

  Attributes:
    probe: fitted on everything.
    C: of the probe.
    sweep: C to validation score, of those tried; none where C was given.
  """

  probe: LinearClassifier
  C: float
  sweep: dict[float, float]


def read_training(
  encoder: Encoder,
  dataset: Dataset,
  options: Options,
  task: str,
  *,
  multilabel: bool = True,
) -> tuple[Examples, Examples | None]:
  """Reads the splits that a probe learns from: training and any validation.

  Args:
    multilabel: see `examples_of`.
  Raises:
    UsageError: there is no training split, or a class has no examples.
    FailureError: see `read_examples`.
  """
  dataset.require_classes(task)
  split = dataset.require_train(task)

  def read(split: Split) -> Examples:
    examples = read_examples(
      encoder, split, dataset, options, task, multilabel=multilabel
    )
    if examples.features.pooled is None:
      return examples
    # The embeddings are not used, and those of a large split are gigabytes.
    nothing = np.empty((len(examples), 0), np.float32)
    features = dataclasses.replace(examples.features, embeddings=nothing)
    return dataclasses.replace(examples, features=features)

  train = read(split)
  validation = dataset.validation and read(dataset.validation)
  if not train.multilabel:
    parts = [part.answers for part in (train, validation) if part is not None]
    try:
      count_each(np.concatenate(parts), train.classes, dataset.first_names)
    except UsageError as error:
      raise UsageError(
        f'data {split.source.spec!r}, to train on: {error}'
      ) from error
  return train, validation


def text_weights(
  encoder: Encoder, dataset: Dataset, options: Options
) -> LinearClassifier:
  """Returns the zero-shot classifier as a probe: its logits are the model's.

  Raises:
    UsageError, FailureError: see `classifier_for`.
  """
  directions = classifier_for(encoder, dataset, options)
  weights = scaled(directions, encoder.logit_scale)
  return LinearClassifier(weights, np.zeros(weights.shape[1], np.float32))


def place_inputs(examples: Examples) -> Inputs:
  """Returns the inputs on the solver's device, for several fits."""
  if examples.difficult is not None:  # each class is fitted on other rows
    return examples.inputs
  classes = 2 if examples.multilabel else examples.classes
  return move_to_solver(examples.inputs, classes)


def fit_probe(
  examples: Examples,
  C: float,
  *,
  iterations: int,
  initial: LinearClassifier | None = None,
  inputs: Inputs | None = None,
) -> LinearClassifier:
  """Fits the probe of labels, or of multi-label data one a class.

  Args:
    examples: to fit on.
    C: see `fit`.
    iterations: steps at most; 0 gives `initial` back.
    initial: to start from; None for zeros.
    inputs: those of `place_inputs`, where there are several fits.
  Raises:
    UsageError, FailureError: see `fit` and `fit_multilabel`.
  """
  if initial is not None and not iterations:
    return initial
  inputs = place_inputs(examples) if inputs is None else inputs
  if examples.multilabel:
    return fit_multilabel(
      inputs,
      examples.answers,
      C=C,
      difficult=examples.difficult,
      initial=initial,
      max_iterations=iterations,
    )
  return fit(
    inputs,
    examples.answers,
    C=C,
    classes=examples.classes,
    initial=initial,
    max_iterations=iterations,
  )


def validation_score(probe: LinearClassifier, held_out: Examples) -> float:
  """Returns the accuracy of a probe, or its mean average precision.

  The latter is that of multi-label data, over the classes that occur.
  """
  scores = probe.scores(held_out.inputs)
  if not held_out.multilabel:
    return accuracy(scores, held_out.answers)
  present = held_out.answers.any(axis=0)
  difficult = held_out.difficult
  if difficult is not None:
    difficult = difficult[:, present]
  return map_11_point(
    scores[:, present], held_out.answers[:, present], difficult
  )


def fit_tuned(
  train: Examples,
  validation: Examples | None,
  options: Options,
  initial: LinearClassifier | None = None,
) -> TunedProbe:
  """Fits the paper's probe (appendix A.3): C by a sweep, then all rows.

  Args:
    train, validation: without the latter, a fifth of every class of `train`
      is held out by `options.seed`, of multi-label data a fifth of the rows.
    options: `probe`, `seed`.
    initial: what every fit starts from; None for zeros.
  Raises:
    UsageError: nothing can be held out, or see `fit`.
    FailureError: a feature is not finite.
  """
  best_C, sweep = options.probe.C, {}
  if best_C is None:
    fitting, held_out = train, validation
    if held_out is None:
      fitting, held_out = _hold_out(train, options.seed)
    result = sweep_c(fitting, held_out, options, initial)
    best_C, sweep = result.best_C, result.tried
  parts = [part for part in (train, validation) if part is not None]
  probe = fit_probe(
    join_examples(parts),
    best_C,
    iterations=options.probe.max_iterations,
    initial=initial,
  )
  return TunedProbe(probe, best_C, sweep)


def sweep_c(
  fitting: Examples,
  held_out: Examples,
  options: Options,
  initial: LinearClassifier | None = None,
) -> SweepResult:
  """Returns the paper's search for C by the score on what is held out.

  Raises:
    UsageError, FailureError: see `fit_probe`.
  """
  inputs = place_inputs(fitting)

  def score(C: float) -> float:
    probe = fit_probe(
      fitting,
      C,
      iterations=options.probe.max_iterations,
      initial=initial,
      inputs=inputs,
    )
    return validation_score(probe, held_out)

  return binary_search(score)


def _hold_out(train: Examples, seed: int) -> tuple[Examples, Examples]:
  labels, classes = train.answers, train.classes
  if train.multilabel:  # an image of several classes has no one stratum
    labels, classes = np.zeros(len(train), np.int64), 1
  fitting, held_out = hold_out(labels, HELD_OUT, seed, classes=classes)
  return train.select(fitting), train.select(held_out)
