"""What probes are fitted on, and how: the parts that their evaluators share.

As the paper does (appendix A.3), probes see what a ViT has before its
projection into the joint space: of a B/32, 768 numbers a picture and not 512.
They see the joint space where it is asked for, where they start from the text
tower's weights, which are of that space, and where an encoder tells no more.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import Dataset, Split
from clip_jax.evaluation.features.extraction import (
  Answers,
  answered,
  read_features,
)
from clip_jax.evaluation.metrics.classification import (
  accuracy,
  map_11_point,
)
from clip_jax.evaluation.metrics.labels import count_each
from clip_jax.evaluation.metrics.ranking import scaled
from clip_jax.evaluation.probes import regularization as c_sweep
from clip_jax.evaluation.probes import sampling as few_shot_sampling
from clip_jax.evaluation.probes.logistic_regression import (
  LinearClassifier,
  fit,
  fit_multilabel,
  place,
)
from clip_jax.evaluation.prompts import classifier_for
from clip_jax.evaluation.types import Encoder, Options

HELD_OUT = 0.2  # of the training split, where the data set has no validation


@dataclasses.dataclass(frozen=True)
class Examples:
  """N pictures with their right answers.

  Attributes:
    vectors: float32, what a probe sees.
    answers: the class of each, or bool [N, C] of multi-label data.
    classes: C.
    ids: of the records.
    difficult: of multi-label data, classes that are neither right nor wrong.
    corrupt: id to reason, of the pictures that were left out.
  """

  vectors: Float[np.ndarray, 'N D']
  answers: Answers
  classes: int
  ids: list[str]
  difficult: Bool[np.ndarray, 'N C'] | None = None
  corrupt: dict[str, str] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.ids)

  @property
  def multilabel(self) -> bool:
    """Whether a picture may have several classes."""
    return self.answers.ndim == 2

  @functools.cached_property
  def placed(self) -> Float[np.ndarray, 'N D'] | Float[Array, 'M D']:
    """The vectors where probes are fitted, moved there once for all of them."""
    if self.difficult is not None:  # each class learns from other rows
      return self.vectors
    return place(self.vectors, 2 if self.multilabel else self.classes)

  def of(self, rows: Int[np.ndarray, ' K'] | Bool[np.ndarray, ' N']):
    """Some of them: indices, or a mask."""
    picked = np.arange(len(self))[rows]
    values = {x.name: getattr(self, x.name) for x in dataclasses.fields(self)}
    arrays = {
      name: value[picked]  # all have a row for each picture
      for name, value in values.items()
      if isinstance(value, np.ndarray)
    }
    ids = [self.ids[i] for i in picked]
    return dataclasses.replace(self, ids=ids, **arrays)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointExamples(Examples):
  """Those on which probes stand beside zero-shot.

  Attributes:
    embeddings: float32, of unit length: what texts are compared with.
  """

  embeddings: Float[np.ndarray, 'N E']


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


def read_examples(
  encoder: Encoder, split: Split, dataset: Dataset, options: Options, task: str
) -> JointExamples:
  """The features of a split with the classes of a data set.

  Args:
    options: `joint_space`, `start_from_text`; and those of `read_features`.
  Raises:
    UsageError: no record has a label, or one is out of range.
    FailureError: see `read_features`.
  """
  classes = len(dataset.class_names)
  features, answers, difficult = answered(
    read_features(encoder, split, options), split, classes, task
  )
  if not len(features):
    raise UsageError(
      f'data {split.source.spec!r} has no picture of a class of '
      f'{dataset.name!r}, which {task} needs.'
    )
  joint = options.joint_space or options.start_from_text
  return JointExamples(
    features.vectors if joint or features.pooled is None else features.pooled,
    answers,
    classes,
    features.ids,
    difficult,
    features.corrupt,
    embeddings=features.vectors,
  )


def _read_to_fit(
  encoder: Encoder, split: Split, dataset: Dataset, options: Options, task: str
) -> Examples:
  """Without the embeddings, which of a large split are gigabytes."""
  found = read_examples(encoder, split, dataset, options, task)
  names = [field.name for field in dataclasses.fields(Examples)]
  return Examples(**{name: getattr(found, name) for name in names})


def read_training(
  encoder: Encoder, dataset: Dataset, options: Options, task: str
) -> tuple[Examples, Examples | None]:
  """What a probe learns from: training and, where there is one, validation.

  Raises:
    UsageError: there is no training split, or a class has no examples.
    FailureError: see `read_examples`.
  """
  dataset.require_classes(task)
  split = dataset.require_train(task)
  train = _read_to_fit(encoder, split, dataset, options, task)
  validation = None
  if dataset.validation is not None:
    validation = _read_to_fit(
      encoder, dataset.validation, dataset, options, task
    )
  if not train.multilabel:
    parts = [part.answers for part in (train, validation) if part is not None]
    try:
      count_each(np.concatenate(parts), train.classes, dataset.first_names)
    except UsageError as error:
      raise UsageError(
        f'data {split.source.spec!r}, to train on: {error}'
      ) from error
  return train, validation


def refuse_multilabel(examples: Examples, dataset: Dataset, task: str) -> None:
  """Refuses data whose pictures are not of one class each.

  Raises:
    UsageError: pictures have several labels.
  """
  if examples.multilabel:
    raise UsageError(
      f'data {dataset.name!r} has several labels a picture: {task} takes one; '
      'zero_shot and linear_probe take several.'
    )


def join(parts: Sequence[Examples | None]) -> Examples:
  """All rows of those that are there, in order."""
  there = [part for part in parts if part is not None]
  if len(there) == 1:
    return there[0]
  return Examples(
    np.concatenate([part.vectors for part in there]),
    np.concatenate([part.answers for part in there]),
    there[0].classes,
    [key for part in there for key in part.ids],
    _join_difficult(there),
    {key: why for part in there for key, why in part.corrupt.items()},
  )


def _join_difficult(
  parts: Sequence[Examples],
) -> Bool[np.ndarray, 'N C'] | None:
  if all(part.difficult is None for part in parts):
    return None
  masks = (
    np.zeros_like(part.answers) if part.difficult is None else part.difficult
    for part in parts
  )
  return np.concatenate([*masks])


def text_weights(
  encoder: Encoder, dataset: Dataset, options: Options
) -> LinearClassifier:
  """The zero-shot classifier as a probe: its logits are the model's.

  Raises:
    UsageError, FailureError: see `classifier_for`.
  """
  directions = classifier_for(encoder, dataset, options)
  weights = scaled(directions, encoder.logit_scale)
  return LinearClassifier(weights, np.zeros(weights.shape[1], np.float32))


def fit_probe(
  examples: Examples,
  C: float,
  *,
  iterations: int,
  initial: LinearClassifier | None = None,
) -> LinearClassifier:
  """The probe of labels, or of multi-label data one a class.

  Args:
    examples: to fit on.
    C: see `fit`.
    iterations: steps at most; 0 gives `initial` back.
    initial: to start from; None for zeros.
  Raises:
    UsageError, FailureError: see `fit` and `fit_multilabel`.
  """
  if initial is not None and not iterations:
    return initial
  if examples.multilabel:
    return fit_multilabel(
      examples.placed,
      examples.answers,
      C=C,
      difficult=examples.difficult,
      initial=initial,
      max_iterations=iterations,
    )
  return fit(
    examples.placed,
    examples.answers,
    C=C,
    classes=examples.classes,
    initial=initial,
    max_iterations=iterations,
  )


def validation_score(probe: LinearClassifier, held: Examples) -> float:
  """Accuracy; of multi-label data the mean average precision of the classes
  that are there.
  """
  scores = probe.scores(held.vectors)
  if not held.multilabel:
    return accuracy(scores, held.answers)
  there = held.answers.any(axis=0)
  difficult = None if held.difficult is None else held.difficult[:, there]
  return map_11_point(scores[:, there], held.answers[:, there], difficult)


def fit_tuned(
  train: Examples,
  validation: Examples | None,
  options: Options,
  initial: LinearClassifier | None = None,
) -> TunedProbe:
  """The paper's probe (appendix A.3): C by a sweep, then all rows fitted.

  Args:
    train, validation: without the latter, a fifth of every class of `train`
      is held out by `options.seed`, of multi-label data a fifth of the rows.
    options: `C`, `probe_iterations`, `seed`.
    initial: what every fit starts from; None for zeros.
  Raises:
    UsageError: nothing can be held out, or see `fit`.
    FailureError: a feature is not finite.
  """
  every = join([train, validation])
  iterations = options.probe_iterations
  if options.C is not None:
    probe = fit_probe(every, options.C, iterations=iterations, initial=initial)
    return TunedProbe(probe, options.C, {})
  fitting, held = train, validation
  if held is None:
    fitting, held = _hold_out(train, options.seed)
  sweep = sweep_c(fitting, held, options, initial)
  probe = fit_probe(every, sweep.best_C, iterations=iterations, initial=initial)
  return TunedProbe(probe, sweep.best_C, sweep.tried)


def sweep_c(
  fitting: Examples,
  held: Examples,
  options: Options,
  initial: LinearClassifier | None = None,
) -> c_sweep.SweepResult:
  """The paper's search for C by the score on what is held out.

  Raises:
    UsageError, FailureError: see `fit_probe`.
  """

  def score(C: float) -> float:
    probe = fit_probe(
      fitting, C, iterations=options.probe_iterations, initial=initial
    )
    return validation_score(probe, held)

  return c_sweep.binary_search(score)


def _hold_out(train: Examples, seed: int) -> tuple[Examples, Examples]:
  labels, classes = train.answers, train.classes
  if train.multilabel:  # a picture of several classes has no one stratum
    labels, classes = np.zeros(len(train), np.int64), 1
  fitting, held = few_shot_sampling.split(
    labels, HELD_OUT, seed, classes=classes
  )
  return train.of(fitting), train.of(held)
