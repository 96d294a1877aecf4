"""Images with their right answers: what is classified, what probes learn."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import OUTSIDE, Dataset, Split
from clip_jax.evaluation.features.extraction import (
  concatenate_features,
  read_features,
)
from clip_jax.evaluation.metrics.ranking import check_in_range
from clip_jax.evaluation.types import Encoder, Features, Options

# Classes, or of multi-label data whether each is there; metrics take both.
Answers = Int[np.ndarray, ' N'] | Bool[np.ndarray, 'N C']


@dataclasses.dataclass(frozen=True)
class Examples:
  """N images of the classes of a data set, with the right answer of each.

  Attributes:
    features: of the images.
    answers: int [N], the class of each; of multi-label data bool [N, C].
    classes: C.
    difficult: of multi-label data, the classes that are neither right nor
      wrong for an image.
  """

  features: Features
  answers: Answers
  classes: int
  difficult: Bool[np.ndarray, 'N C'] | None = None

  def __len__(self) -> int:
    return len(self.features)

  @property
  def ids(self) -> list[str]:
    """The ids of the records."""
    return self.features.ids

  @property
  def corrupt(self) -> dict[str, str]:
    """Id to reason, of the images of the split that could not be read."""
    return self.features.corrupt

  @property
  def multilabel(self) -> bool:
    """True if an image may have several classes."""
    return self.answers.ndim == 2

  @property
  def inputs(self) -> Float[np.ndarray, 'N D']:
    """The input of probes: features before the joint space, where known."""
    pooled = self.features.pooled
    return self.features.embeddings if pooled is None else pooled

  def select(self, rows: Int[np.ndarray, ' K'] | Bool[np.ndarray, ' N']):
    """Returns some of the examples.

    Args:
      rows: indices, or a mask.
    """
    return Examples(
      self.features.select(rows),
      self.answers[rows],
      self.classes,
      None if self.difficult is None else self.difficult[rows],
    )


def examples_of(
  features: Features,
  split: Split,
  dataset: Dataset,
  task: str,
  *,
  multilabel: bool = True,
) -> Examples:
  """Returns the images of a split that are evaluated, with their answers.

  Args:
    features: of the split.
    dataset: its classes; and for messages.
    task: for messages.
    multilabel: whether the task takes images of several classes.
  Raises:
    UsageError: no image is of a class, a label is out of range, or images have
      several and the task takes one.
  """
  classes = len(dataset.class_names)
  if features.label_sets is not None:
    if not multilabel:
      raise UsageError(
        f'data {dataset.name!r} has several labels an image: {task} takes one; '
        'zero_shot and linear_probe take several.'
      )
    answers = _multi_hot(features.label_sets, split, classes)
    difficult = _multi_hot(features.difficult or [], split, classes)
    return Examples(
      features, answers, classes, difficult if difficult.any() else None
    )
  if len(features) and (features.labels < 0).all():
    raise UsageError(
      f'data {split.source.spec!r}: record {features.ids[0]} has no label, '
      f'which {task} needs.'
    )
  answers = split.classes(features.labels)
  evaluated = answers != OUTSIDE
  if not evaluated.any():
    raise UsageError(
      f'data {split.source.spec!r} has no image of a class of '
      f'{dataset.name!r}, which {task} needs.'
    )
  check_in_range(answers[evaluated], classes)
  return Examples(features.select(evaluated), answers[evaluated], classes)


def read_examples(
  encoder: Encoder,
  split: Split,
  dataset: Dataset,
  options: Options,
  task: str,
  *,
  multilabel: bool = True,
) -> Examples:
  """Reads the features of a split, for probes, with their answers.

  Args:
    options: `probe`; and those of `read_features`.
    multilabel: see `examples_of`.
  Raises:
    UsageError: see `examples_of`.
    FailureError: see `read_features`.
  """
  joint = options.probe.joint_space or options.probe.start_from_text
  features = read_features(encoder, split.source, options, pooled=not joint)
  if joint:
    features = dataclasses.replace(features, pooled=None)
  return examples_of(features, split, dataset, task, multilabel=multilabel)


def join_examples(parts: Sequence[Examples]) -> Examples:
  """Returns all examples of some parts of one data set, in order."""
  if len(parts) == 1:
    return parts[0]
  difficult = None
  if any(part.difficult is not None for part in parts):
    difficult = np.concatenate(
      [
        np.zeros_like(part.answers)
        if part.difficult is None
        else part.difficult
        for part in parts
      ]
    )
  return Examples(
    concatenate_features([part.features for part in parts]),
    np.concatenate([part.answers for part in parts]),
    parts[0].classes,
    difficult,
  )


def _multi_hot(
  label_sets: Sequence[Sequence[int]], split: Split, classes: int
) -> Bool[np.ndarray, 'N C']:
  """Returns which classes the labels of each image are."""
  answers = np.zeros((len(label_sets), classes), bool)
  for row, labels in enumerate(label_sets):
    present = split.classes(np.array(labels, np.int64))
    answers[row, present[present != OUTSIDE]] = True
  return answers
