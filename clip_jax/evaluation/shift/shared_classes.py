"""The classes that a data set and a shift of it share (paper, section 3.3).

The shifted data sets of ImageNet have classes of their own: some of its 1,000
(ImageNet-R, -A, ObjectNet), or wider ones that hold several (Youtube-BB,
ImageNet-Vid). The score of a wide class by a classifier of ImageNet is the
highest of the classes that it holds. Zero-shot CLIP can instead be given the
names of the new classes, which is the adaptation to class shift of figure 14.

Classes are the same where both are of ImageNet's WordNet ids and have one in
common, and otherwise where they have a name in common.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.datasets.names import read_names, spelling
from clip_jax.evaluation.datasets.table import DATASETS
from clip_jax.evaluation.examples import Examples, read_examples
from clip_jax.evaluation.metrics.classification import accuracy
from clip_jax.evaluation.probes.logistic_regression import LinearClassifier
from clip_jax.evaluation.types import Encoder, Options

UNMAPPED = -1  # a class that the other data set does not have


@dataclasses.dataclass(frozen=True)
class SharedClasses:
  """S classes of the shift that hold one of the reference or more.

  Attributes:
    names: of each.
    of_reference: the shared class of each of the reference's, or UNMAPPED.
    of_shift: the shared class of each of the shift's, or UNMAPPED.
  """

  names: tuple[str, ...]
  of_reference: Int[np.ndarray, ' C']
  of_shift: Int[np.ndarray, ' T']

  def pool_reference(
    self, scores: Float[np.ndarray, 'N C']
  ) -> Float[np.ndarray, 'N S']:
    """Returns scores of the reference's classes as ones of the shared."""
    return pool_scores(scores, self.of_reference)

  def pool_shift(
    self, scores: Float[np.ndarray, 'N T']
  ) -> Float[np.ndarray, 'N S']:
    """Returns scores of the shift's classes as ones of the shared."""
    return pool_scores(scores, self.of_shift)


class ModelAccuracy(NamedTuple):
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
class SharedExamples:
  """The test images of the shared classes, labelled by these.

  Attributes:
    shared: the classes.
    reference, shift: images of each.
  """

  shared: SharedClasses
  reference: Examples
  shift: Examples

  def measure(
    self, name: str, kind: str, classifiers: Sequence[LinearClassifier]
  ) -> ModelAccuracy:
    """Returns the mean accuracies of classifiers of the reference's classes.

    Args:
      kind: 'zero_shot' is of texts, others of what probes see.
    Raises:
      FailureError: a score is NaN.
    """
    both: list[float] = []
    for test in (self.reference, self.shift):
      texts = kind == 'zero_shot'
      rows = test.features.embeddings if texts else test.inputs
      scores = [self.shared.pool_reference(x.scores(rows)) for x in classifiers]
      both.append(float(np.mean([accuracy(x, test.answers) for x in scores])))
    return ModelAccuracy(name, both[0], both[1], kind)


def pool_scores(
  scores: Float[np.ndarray, 'N C'], groups: Int[np.ndarray, 'C']
) -> Float[np.ndarray, 'N S']:
  """Returns scores of shared classes: each the highest of those it holds.

  Args:
    scores: of a data set's classes, higher is likelier.
    groups: the shared class of each, 0..S-1, or UNMAPPED; each holds one or
      more.
  """
  order = np.argsort(groups, kind='stable')
  order = order[groups[order] != UNMAPPED]
  _, starts = np.unique(groups[order], return_index=True)
  return np.maximum.reduceat(scores[:, order], starts, axis=1)


def find_shared_classes(reference: Dataset, shift: Dataset) -> SharedClasses:
  """Finds the classes that both have.

  Raises:
    UsageError: there are fewer than two, or a class of the reference is part
      of two of the shift's.
  """
  reference_keys, shift_keys = _keys(reference, shift)
  holders: dict[str, list[int]] = {}
  for target, keys in enumerate(shift_keys):
    for key in keys:
      holders.setdefault(key, []).append(target)
  of_reference = np.full(len(reference_keys), UNMAPPED, np.int64)
  for source, keys in enumerate(reference_keys):
    matches = sorted({t for key in keys for t in holders.get(key, ())})
    if len(matches) > 1:
      names = [shift.first_names[t] for t in matches[:2]]
      raise UsageError(
        f'class {reference.first_names[source]!r} of {reference.name!r} may be '
        f'{names[0]!r} or {names[1]!r} of {shift.name!r}: give each class of '
        'the shift names of its own.'
      )
    if matches:
      of_reference[source] = matches[0]
  targets = np.setdiff1d(of_reference, [UNMAPPED])
  if len(targets) < 2:
    raise UsageError(
      f'data {reference.name!r} and {shift.name!r} share {len(targets)} '
      'classes, by their names: a shift has two or more of its reference.'
    )
  of_shift = np.full(len(shift_keys) + 1, UNMAPPED, np.int64)
  of_shift[targets] = np.arange(len(targets))
  return SharedClasses(
    tuple(shift.first_names[t] for t in targets),
    of_shift[of_reference],  # the last entry is for those UNMAPPED
    of_shift[:-1],
  )


def read_shared_examples(
  encoder: Encoder,
  reference: Dataset,
  shift: Dataset,
  options: Options,
  task: str,
) -> SharedExamples:
  """Reads the test splits of a data set and of a shift of it.

  Raises:
    UsageError: see `find_shared_classes`; images have several labels, or none
      of one of the splits is of a shared class.
    FailureError: see `read_examples`.
  """
  shared = find_shared_classes(reference, shift)
  tests = []
  for dataset, groups in (
    (reference, shared.of_reference),
    (shift, shared.of_shift),
  ):
    test = read_examples(
      encoder, dataset.test, dataset, options, task, multilabel=False
    )
    labels = groups[test.answers]
    if (labels == UNMAPPED).all():
      raise UsageError(
        f'data {dataset.name!r}: no test image is of a class that the shift '
        'and its reference share.'
      )
    test = dataclasses.replace(test, answers=labels, classes=len(shared.names))
    tests.append(test.select(labels != UNMAPPED))
  return SharedExamples(shared, *tests)


def _keys(
  reference: Dataset, shift: Dataset
) -> tuple[list[set[str]], list[set[str]]]:
  """Returns the ids or names of the classes of each, by which they match."""
  both = []
  for dataset in (reference, shift):
    known = dataset.name in DATASETS
    ids = read_names(dataset.name).wordnet_ids if known else ()
    if len(ids) == len(dataset.class_names):
      both.append([set(ids_of_class) for ids_of_class in ids])
  if len(both) < 2 or not both[0]:
    both = [
      [{spelling(name) for name in names} for names in dataset.class_names]
      for dataset in (reference, shift)
    ]
  return both[0], both[1]
