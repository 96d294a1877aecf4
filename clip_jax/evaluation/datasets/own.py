"""A user's own data as rows of the table, for the suite: NAME=SPEC."""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from clip_jax.data.sources import Source, open_source, with_scheme
from clip_jax.data.sources.base import DEFAULT_CAPTIONS, SAMPLE_RECORDS
from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import Dataset
from clip_jax.evaluation.datasets.opening import open_dataset
from clip_jax.evaluation.datasets.table import DATASETS, DatasetFacts

_TEXTS = 1000  # looked at, to tell captions from the names of labels
_CLASSIFIED = ('zero_shot', 'prompt_gain')
_PROBED = ('linear_probe', 'few_shot')


class SelectedDatasets(NamedTuple):
  """The data sets that the flag --datasets selects.

  Attributes:
    names: of all, in order.
    own: name to SPEC, of a user's own data, which are not in the table.
  """

  names: list[str]
  own: dict[str, str]


def parse_datasets(words: Sequence[str]) -> SelectedDatasets:
  """Parses the values of --datasets: names of the table, and NAME=SPEC.

  Raises:
    UsageError: a SPEC has no name, or one that is taken or cannot be one.
  """
  names, own = [], {}
  for word in words:
    name, equals, spec = word.partition('=')
    if not equals:
      if ':' in word:
        raise UsageError(
          f'--datasets={word}: give your own data a name, as mine={word}.'
        )
      names.append(word)
      continue
    if not re.fullmatch(r'[\w-]+', name) or not spec:
      raise UsageError(
        f'--datasets={word}: use NAME=SPEC with a NAME of letters, digits, _ '
        'and -, as mine=folder:pets#test.'
      )
    if name in DATASETS or name in own:
      raise UsageError(
        f'--datasets={word}: {name} is the name of another data set.'
      )
    names.append(name)
    own[name] = spec
  return SelectedDatasets(names, own)


def own_row(name: str, spec: str, captions: Sequence[str]) -> DatasetFacts:
  """Returns the row of a user's data, with the tasks that it can be used for.

  Labels are classified, captions retrieved. Of a split '#test', probes learn
  from '#train' of the same location, where there is one.

  Args:
    name: to call it.
    spec: what is evaluated.
    captions: see `open_source`.
  Raises:
    UsageError: it cannot be opened, or has neither labels nor captions.
  """
  spec = with_scheme(spec)
  captions = _columns_of(spec, captions)
  source = open_source(spec, captions=captions)
  train = None
  tasks: list[str] = []
  if source.label_names:
    tasks += _CLASSIFIED
    train = _train_of(spec, captions)
    tasks += _PROBED if train else ()
    tasks.append('overlap')
  if _has_captions(source):
    tasks.append('retrieval')
  if not tasks:
    raise UsageError(
      f'data {spec!r} has no label names and no captions: there is nothing to '
      'evaluate.'
    )
  return DatasetFacts(
    name=name,
    title=name,
    group='own',
    metric='accuracy' if source.label_names else None,
    train=train,
    validation=None,
    test=spec,
    sizes=(None, len(source)),
    tasks=tuple(tasks),
  )


def open_own(facts: DatasetFacts, captions: Sequence[str]) -> Dataset:
  """Opens the data set of an `own_row`.

  Raises:
    UsageError: it cannot be opened.
  """
  assert facts.test
  dataset = open_dataset(
    facts.test, train=facts.train, captions=_columns_of(facts.test, captions)
  )
  return dataclasses.replace(dataset, name=facts.name, title=facts.title)


def _columns_of(spec: str, captions: Sequence[str]) -> Sequence[str]:
  """Returns the columns of captions; a folder among other data has none."""
  return DEFAULT_CAPTIONS if spec.startswith('folder:') else captions


def _has_captions(source: Source) -> bool:
  """Returns whether a source has captions beside the names of its labels."""
  names = set(source.label_names or ())
  texts = itertools.islice(source.texts(SAMPLE_RECORDS), _TEXTS)
  return any(text not in names for text in texts)


def _train_of(spec: str, captions: Sequence[str]) -> str | None:
  location, _, split = spec.rpartition('#')
  if split != 'test':
    return None
  try:
    open_source(f'{location}#train', captions=captions)
  except UsageError:
    return None
  return f'{location}#train'
