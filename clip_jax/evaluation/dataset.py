"""The data set of an evaluation: images in splits, answers, class names."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import weakref
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import Source
from clip_jax.errors import UsageError

OUTSIDE = -1  # a label that the data set has and its evaluation leaves out
Metric = Literal[
  'accuracy', 'mean_per_class', 'map_11_point', 'roc_auc', 'mean_top1_top5'
]
ClassOfLabel = Int[np.ndarray, ' labels'] | None
_SAMPLES = 64  # records that `data_identity` reads in full, evenly spaced
# Every evaluator asks for the identity, and an open source does not change.
_identities: weakref.WeakKeyDictionary[Source, dict[str, Any]] = (
  weakref.WeakKeyDictionary()
)


class Split:
  """A source and which class each of its labels is."""

  def __init__(
    self,
    source: Source | Callable[[], Source],
    class_of_label: ClassOfLabel | Callable[[Source], ClassOfLabel] = None,
  ):
    """Keeps both, or what opens them when they are first asked for.

    So a data set whose training split is missing can still be evaluated by the
    tasks that train nothing.

    Args:
      source: images with labels, captions, or both; or what opens them.
      class_of_label: see the attribute of that name; or what finds it for the
        source.
    """
    self._source = source
    self._class_of_label = class_of_label

  @functools.cached_property
  def source(self) -> Source:
    """Images with labels, captions, or both.

    Raises:
      UsageError: it cannot be opened.
    """
    if isinstance(self._source, Source):
      return self._source
    return self._source()

  @functools.cached_property
  def class_of_label(self) -> ClassOfLabel:
    """The class of each label of the source; None where labels are classes.

    `OUTSIDE` stands for labels that are not evaluated.

    Raises:
      UsageError: the source cannot be opened, or has labels of no class.
    """
    if callable(self._class_of_label):
      return self._class_of_label(self.source)
    return self._class_of_label

  @property
  def notices(self) -> tuple[str, ...]:
    """The notices of the source; none where it is not open yet."""
    is_open = isinstance(self._source, Source) or 'source' in self.__dict__
    return self.source.notices if is_open else ()

  def classes(self, labels: Int[np.ndarray, ' N']) -> Int[np.ndarray, ' N']:
    """Returns the class of each record from its label.

    `OUTSIDE` stands for a label that is of no class.

    Raises:
      UsageError: a label is out of the range of the source's names.
    """
    names = self.source.label_names
    count = len(names) if names else None
    if self.class_of_label is not None:
      count = len(self.class_of_label)
    wrong = (labels < 0) if count is None else (labels < 0) | (labels >= count)
    if wrong.any():
      allowed = '0 or more' if count is None else f'0 to {count - 1:,}'
      raise UsageError(
        f'data {self.source.spec!r}: {int(wrong.sum()):,} of {len(labels):,} '
        f'labels are not {allowed}, such as {int(labels[wrong][0])}: a label '
        'is the index of a name.'
      )
    if self.class_of_label is None:
      return labels
    return self.class_of_label[labels]


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set as evaluators take it; `open_dataset` makes those of the table.

  Attributes:
    name: of the table, or a SPEC.
    test: what is evaluated.
    train: what probes learn from.
    validation: what probes are tuned on; None holds some of `train` out.
    class_names: one or more names of each class; () where there are none.
    templates: its own prompts, or ().
    metric: the name of its metric in `metrics.METRICS`.
    title: for people; '' is the name.
    reference: the data set that this one is a shift of (section 3.3).
  """

  name: str
  test: Split
  train: Split | None = None
  validation: Split | None = None
  class_names: tuple[tuple[str, ...], ...] = ()
  templates: tuple[str, ...] = ()
  metric: Metric = 'accuracy'
  title: str = ''
  reference: 'Dataset | None' = None

  @property
  def first_names(self) -> tuple[str, ...]:
    """The name of each class that is shown."""
    return tuple(names[0] for names in self.class_names)

  @property
  def notices(self) -> tuple[str, ...]:
    """The notices of the splits that are open, each line once."""
    splits = (self.test, self.train, self.validation)
    lines = [line for split in splits if split for line in split.notices]
    lines += self.reference.notices if self.reference else ()
    return tuple(dict.fromkeys(lines))

  def require_classes(self, task: str) -> None:
    """Refuses data without names for a task that needs them.

    Raises:
      UsageError: it has none.
    """
    if not self.class_names:
      raise UsageError(
        f'data {self.name!r} has no label names, which {task} needs: use '
        'a folder of classes, a csv with a column label of names, or a '
        'labelled tfds data set, or name them with --class_names=FILE'
        f'{self.test.source.hint}.'
      )

  def require_train(self, task: str) -> Split:
    """Returns the split to learn from.

    Raises:
      UsageError: there is none.
    """
    if self.train is None:
      raise UsageError(
        f'data {self.name!r} has no training split, which {task} needs: name '
        'one with --train=SPEC.'
      )
    return self.train


def dataset_of(source: Source, classes: str = 'all') -> Dataset:
  """Returns a user's own data as a data set: its label names are the classes.

  Args:
    source: what is evaluated.
    classes: 'all' names, or only those 'present' in its records, which are
      read for it.
  """
  names = source.label_names or ()
  split = Split(source)
  if classes == 'present':
    present = [i for i in _labels_of(source) if 0 <= i < len(names)]
    class_of_label = np.full(len(names), OUTSIDE)
    class_of_label[present] = np.arange(len(present))
    names, split = [names[i] for i in present], Split(source, class_of_label)
  return Dataset(
    source.spec, split, class_names=tuple((name,) for name in names)
  )


def _labels_of(source: Source) -> list[int]:
  """Returns the labels that readable records have, in order."""
  labels = set()
  for index in range(len(source)):
    with contextlib.suppress(CorruptImageError):
      labels.add(source[index].get('label', OUTSIDE))
  return sorted(labels)


def data_identity(source: Source) -> dict[str, Any]:
  """Returns what the features of a source depend on, as JSON has it.

  It notices another SPEC, number of records, or list of label names; any change
  in 64 records spread over the source (all of them, of fewer): bytes, id,
  captions, labels; and of folders and tables every change of an id, a label, a
  caption, or of a file's size or time (`Source.outline`). It does not notice
  that TFDS's records were changed in between without changing their number:
  a data set of TFDS has a version for that. It is computed once for each open
  source: a later change on disk is noticed when the data are opened again.
  """
  if source not in _identities:
    _identities[source] = _compute_identity(source)
  return _identities[source]


def _compute_identity(source: Source) -> dict[str, Any]:
  outline = hashlib.sha256()
  lines = 0
  for line in source.outline():
    outline.update(line.encode('utf-8', 'surrogatepass') + b'\n')
    lines += 1
  return {
    'data': source.spec,
    'records': len(source),
    'label_names': _hash_of(list(source.label_names or ())),
    'outline': outline.hexdigest() if lines else None,
    'sample': _sample(source),
  }


def _sample(source: Source) -> str:
  digest = hashlib.sha256()
  last = max(len(source) - 1, 0)
  indices = np.linspace(0, last, min(len(source), _SAMPLES)).round()
  for index in map(int, indices):
    try:
      record = source[index]
    except CorruptImageError as error:
      digest.update(_hash_of([source.id(index), str(error)]).encode())
      continue
    others = {name: x for name, x in record.items() if name != 'image'}
    digest.update(_hash_of(others).encode())
    digest.update(hashlib.sha256(record['image']).digest())
  return digest.hexdigest()


def _hash_of(value: Any) -> str:
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
