"""Opens the data set of an evaluation, by its name in the table or by a SPEC.

A row of the table has class names, prompts and a metric, and labels are matched
with its classes by name; a SPEC has its labels alone. Splits for training are
opened when they are first asked for.
"""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from clip_jax.data.built_in import tfds_folder
from clip_jax.data.sources import Source, open_source, parse_spec, with_scheme
from clip_jax.data.sources.base import DEFAULT_CAPTIONS
from clip_jax.data.sources.csv import CsvSource
from clip_jax.data.sources.tfds import TfdsSource
from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import ClassOfLabel, Dataset, Split
from clip_jax.evaluation.datasets.names import OUTSIDE, Names, match, read_names
from clip_jax.evaluation.datasets.presence import (
  ROOT_VARIABLE,
  data_root,
  fill_root,
  why_absent,
)
from clip_jax.evaluation.datasets.table import DATASETS, DatasetFacts
from clip_jax.evaluation.datasets.targets import (
  CAPTION_TARGETS,
  CSV_TARGETS,
  TFDS_TARGETS,
  CaptionLabels,
  Greyscale,
)

_Open = Callable[[str], Source]


def open_dataset(
  name: str,
  *,
  root: Path | None = None,
  train: str | None = None,
  validation: str | None = None,
  class_names: Sequence[str] | None = None,
  captions: Sequence[str] = DEFAULT_CAPTIONS,
) -> Dataset:
  """Opens a data set: its test split now, the others when they are asked for.

  Args:
    name: a row of the table, 'cifar10', or a SPEC, 'folder:pets#test'.
    root: the folder of the data sets that TFDS does not prepare; by default
      what CLIP_JAX_DATA says, or ~/clip_data.
    train: a SPEC instead of the row's; its validation split then goes too.
    validation: a SPEC instead of the row's.
    class_names: instead of the names there are, one line for each label of
      the source, in its order; 'a|b' are two names of one class.
    captions: see `open_source`.
  Raises:
    UsageError: there is no such data set, its test split is missing or is
      labelled otherwise than the table says, or there are more or fewer
      class names than labels.
  """
  lines = None if class_names is None else tuple(class_names)
  facts = DATASETS.get(name)
  if facts:
    if train is None:  # else the two may have images in common
      validation = validation or facts.validation
    specs = (train or facts.train, validation)
    return _open_row(facts, root or data_root(), specs, lines, tuple(captions))
  if ':' not in with_scheme(name):
    near = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0)
    raise UsageError(
      f'no data set {name!r}: the nearest is {near[0]!r} (clip-jax eval --list '
      'has all), and a SPEC is SCHEME:LOCATION[#SPLIT].'
    )

  def open_split(spec: str) -> Source:
    return open_source(spec, captions=tuple(captions))

  source = open_split(name)
  names, class_of_label = _classes(source, None, lines)
  return Dataset(
    name,
    Split(source, class_of_label),
    train=_deferred(train, open_split, source, class_of_label),
    validation=_deferred(validation, open_split, source, class_of_label),
    class_names=names,
  )


def _open_row(
  facts: DatasetFacts,
  root: Path,
  specs: tuple[str | None, str | None],
  lines: tuple[str, ...] | None,
  captions: tuple[str, ...],
) -> Dataset:
  """Opens a data set of the table; `specs` are for training and validation."""
  _require(facts, root)
  names = read_names(facts.name)

  def open_split(spec: str) -> Source:
    return _source(facts, fill_root(spec, root), captions)

  assert facts.test
  source = open_split(facts.test)
  if names.classes and source.label_names is None:
    raise UsageError(
      f'data {source.spec!r}: no label names, which are how the classes of '
      f'{facts.name} are found.'
    )
  class_names, class_of_label = _classes(source, names, lines, facts.name)
  # Class names of the table are the same for every split; a user's names and a
  # source's own are those of the split that is evaluated.
  by_name = facts.name if names.classes and lines is None else None
  return Dataset(
    facts.name,
    Split(source, class_of_label),
    train=_deferred(specs[0], open_split, source, class_of_label, by_name),
    validation=_deferred(specs[1], open_split, source, class_of_label, by_name),
    class_names=class_names,
    templates=names.templates,
    metric=facts.metric or 'accuracy',
    title=facts.title,
    reference=_reference(facts, root),
  )


def _reference(facts: DatasetFacts, root: Path) -> Dataset | None:
  """Opens the data set that this one is a shift of, if it is present."""
  if not facts.shift_of or why_absent(DATASETS[facts.shift_of], root):
    return None
  return open_dataset(facts.shift_of, root=root)


def _require(facts: DatasetFacts, root: Path) -> None:
  """Raises a UsageError that says how to get a data set that is absent."""
  reason = why_absent(facts, root)
  if reason is None:
    return
  spec = fill_root(facts.test or '', root)
  parsed = parse_spec(spec)
  if parsed.scheme == 'tfds':
    build = f'tfds build {parsed.location}'
    hint = f'{build} --file_format=array_record; read from {tfds_folder()}'
  else:
    hint = f'--root, {ROOT_VARIABLE} or else ~/clip_data is where it is looked '
    hint += f'for, here {root}'
  raise UsageError(f'data {facts.name!r}: {spec}: {reason} ({hint}).')


def _source(
  facts: DatasetFacts, spec: str, captions: tuple[str, ...]
) -> Source:
  """Opens a split of a row, its records labelled as the row says."""
  parsed = parse_spec(spec)
  if facts.target in TFDS_TARGETS and parsed.scheme == 'tfds':
    source = TfdsSource(parsed, captions, TFDS_TARGETS[facts.target])
  elif facts.target in CSV_TARGETS and parsed.scheme == 'csv':
    source = CsvSource(parsed, captions, CSV_TARGETS[facts.target])
  else:
    source = open_source(spec, captions=captions)
  if facts.target in CAPTION_TARGETS:
    # English, whatever language the texts are asked for in.
    english = open_source(spec)
    texts = map(english.captions, range(len(english)))
    source = CaptionLabels(source, facts.target, texts)
  return Greyscale(source) if facts.greyscale else source


def _classes(
  source: Source,
  names: Names | None,
  lines: tuple[str, ...] | None,
  row: str = '',
) -> tuple[tuple[tuple[str, ...], ...], ClassOfLabel]:
  """Returns the names of each class, and the class of each label."""
  labels = source.label_names
  class_of_label = None
  if names and names.classes and labels is not None:
    class_of_label = match(labels, row)
  if lines is None:
    if names and names.classes:
      return names.classes, class_of_label
    return tuple((label,) for label in labels or ()), None
  return _renamed(source, class_of_label, lines)


def _renamed(
  source: Source, class_of_label: ClassOfLabel, lines: tuple[str, ...]
) -> tuple[tuple[tuple[str, ...], ...], ClassOfLabel]:
  """Returns a user's names and the classes: a label each, but those left out.

  Args:
    lines: a user's names, one line for each label.
  """
  labels = source.label_names
  if labels is not None and len(lines) != len(labels):
    raise UsageError(
      f'--class_names has {len(lines):,} names, and data {source.spec!r} has '
      f'{len(labels):,} classes: a line for each, in this order: '
      f'{", ".join(labels[:3])}{", …" if len(labels) > 3 else ""}'
    )
  names = [
    tuple(word.strip() for word in line.split('|') if word.strip())
    for line in lines
  ]
  for number, names_of_class in enumerate(names, 1):
    if not names_of_class:
      raise UsageError(f'--class_names: line {number} has no name.')
  is_class = np.ones(len(names), bool)
  if class_of_label is not None:
    is_class = class_of_label != OUTSIDE
  renumbered = np.where(is_class, np.cumsum(is_class) - 1, OUTSIDE)
  return (
    tuple(x for x, keep in zip(names, is_class, strict=True) if keep),
    renumbered.astype(np.int64),
  )


def _deferred(
  spec: str | None,
  open_split: _Open,
  test: Source,
  class_of_label: ClassOfLabel,
  row: str | None = None,
) -> Split | None:
  """Returns a split that is opened when it is first read.

  Args:
    test: the test split; labels of the same name are of the same class.
    class_of_label: of the test split.
    row: the row of the table whose names are the classes; None takes those of
      the test split.
  """
  if spec is None:
    return None

  def find_classes(source: Source) -> ClassOfLabel:
    if row is not None and source.label_names is not None:
      return match(source.label_names, row)
    return _match_test_labels(test, source, class_of_label)

  return Split(lambda: open_split(spec), find_classes)


def _match_test_labels(
  test: Source, source: Source, class_of_label: ClassOfLabel
) -> ClassOfLabel:
  """Returns the class of each label of another split, by the label's name."""
  if source.label_names == test.label_names:
    return class_of_label
  label_of = {name: i for i, name in enumerate(test.label_names or ())}
  others = [name for name in source.label_names or () if name not in label_of]
  if others or not source.label_names:
    what = f'a label {others[0]!r}' if others else 'no label names'
    raise UsageError(
      f'data {source.spec!r} has {what}, unlike {test.spec!r}: both need the '
      'same classes.'
    )
  labels = np.array([label_of[name] for name in source.label_names], np.int64)
  return labels if class_of_label is None else class_of_label[labels]
