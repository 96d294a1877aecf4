"""The test pictures of a data set and of a shift of it, of shared classes."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.metrics.classification import accuracy
from clip_jax.evaluation.probes.examples import (
  JointExamples,
  read_examples,
  refuse_multilabel,
)
from clip_jax.evaluation.probes.logistic_regression import LinearClassifier
from clip_jax.evaluation.shift.class_shift import UNMAPPED
from clip_jax.evaluation.shift.shared_classes import SharedClasses
from clip_jax.evaluation.types import Encoder, Options


class Measured(NamedTuple):
  """A model on both data sets.

  Attributes:
    name: for people.
    reference_accuracy, shift_accuracy: fractions, 0 to 1.
    kind: 'zero_shot', 'adapted', 'probe', 'full_probe' or 'baseline'.
  """

  name: str
  reference_accuracy: float
  shift_accuracy: float
  kind: str


@dataclasses.dataclass(frozen=True)
class SharedTests:
  """The test pictures of the shared classes, labelled by these.

  Attributes:
    shared: the classes.
    reference, shift: pictures of each.
  """

  shared: SharedClasses
  reference: JointExamples
  shift: JointExamples

  def measure(
    self, name: str, kind: str, classifiers: Sequence[LinearClassifier]
  ) -> Measured:
    """The accuracies of classifiers of the reference's classes: their means.

    Args:
      kind: 'zero_shot' is of texts, others of what probes see.
    Raises:
      FailureError: a score is NaN.
    """
    both: list[float] = []
    for test in (self.reference, self.shift):
      rows = test.embeddings if kind == 'zero_shot' else test.vectors
      scores = [self.shared.pool(x.scores(rows)) for x in classifiers]
      both.append(float(np.mean([accuracy(x, test.answers) for x in scores])))
    return Measured(name, both[0], both[1], kind)


def read_tests(
  encoder: Encoder,
  reference: Dataset,
  shift: Dataset,
  shared: SharedClasses,
  options: Options,
  task: str,
) -> SharedTests:
  """Reads the test splits of a data set and of a shift of it.

  Raises:
    UsageError: pictures have several labels, or none of one of the splits is
      of a shared class.
    FailureError: see `read_examples`.
  """
  found = []
  for dataset, groups in (
    (reference, shared.of_reference),
    (shift, shared.of_shift),
  ):
    test = read_examples(encoder, dataset.test, dataset, options, task)
    refuse_multilabel(test, dataset, task)
    found.append(_regroup(test, groups, dataset))
  return SharedTests(shared, *found)


def _regroup(
  test: JointExamples, groups: Int[np.ndarray, ' C'], dataset: Dataset
) -> JointExamples:
  """Those of the shared classes."""
  labels = groups[test.answers]
  if (labels == UNMAPPED).all():
    raise UsageError(
      f'data {dataset.name!r}: no test picture is of a class that the shift '
      'and its reference share.'
    )
  kept = dataclasses.replace(test, answers=labels).of(labels != UNMAPPED)
  return dataclasses.replace(kept, classes=int(groups.max()) + 1)
