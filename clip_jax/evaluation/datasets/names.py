"""Class names and prompt templates: `prompts/NAME.json`, read when asked for.

A file holds

    "source":      where its contents are from, and what is odd about them
    "classes":     a name for each class, or a list of several names
    "templates":   texts with `{}` for the name
    "of":          another data set, for what this file does not say itself
    "wordnet_ids": an id, or a list of ids, for each class of ImageNet's
    "aliases":     what a source calls a class -> one of our names for it
    "ignored":     labels of a source that no class of ours is

With "of" but no "classes", the classes are those of the other data set, with
"wordnet_ids" those of them which have the ids. Where there are no classes at
all (emoji), they are the labels of the source, if it has any.
"""

import difflib
import functools
import hashlib
import importlib.resources
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable

import numpy as np
from jaxtyping import Int

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import OUTSIDE

_FOLDER = 'prompts'


@dataclass(frozen=True)
class Names:
  """The class names and templates of one data set, from a file of `prompts/`.

  Attributes:
    source: where names and templates are from, in a sentence.
    classes: the names of each of C classes, in our order; most have one.
    templates: prompts with `{}` where the class's name belongs.
    wordnet_ids: ImageNet's ids of each class, and () for data sets without
      them. A class of ObjectNet may be several of ImageNet's.
    aliases, ignored: see above.
  """

  source: str
  classes: tuple[tuple[str, ...], ...]
  templates: tuple[str, ...]
  wordnet_ids: tuple[tuple[str, ...], ...] = ()
  aliases: Mapping[str, str] = field(default_factory=dict[str, str])
  ignored: tuple[str, ...] = ()


def contents_hash() -> str:
  """Returns a hash of all files: numbers depend on names and templates."""
  digest = hashlib.sha256()
  for file in sorted(_files(), key=lambda file: file.name):
    digest.update(f'{file.name}\n{file.read_text(encoding="utf-8")}'.encode())
  return digest.hexdigest()


def _files() -> list[Traversable]:
  folder = importlib.resources.files('clip_jax.evaluation.datasets') / _FOLDER
  return [file for file in folder.iterdir() if file.name.endswith('.json')]


@functools.cache
def read_names(name: str) -> Names:
  """Reads a data set's file, once.

  Raises:
    UsageError: there is no data set of that name.
  """
  files = {file.name.removesuffix('.json'): file for file in _files()}
  if name not in files:
    known = ', '.join(sorted(files))
    raise UsageError(f'no data set {name!r}: choose one of {known}.')
  data = json.loads(files[name].read_text(encoding='utf-8'))
  base = read_names(data['of']) if 'of' in data else None
  ids = _tuples(data.get('wordnet_ids', []))
  if 'classes' in data:
    classes = _tuples(data['classes'])
  elif ids:
    assert base
    of_id = dict(zip(base.wordnet_ids, base.classes, strict=True))
    classes = tuple(of_id[x] for x in ids)
  else:
    assert base
    classes, ids = base.classes, base.wordnet_ids
  texts = data.get('templates') or (base.templates if base else ())
  return Names(
    source=data['source'],
    classes=classes,
    templates=tuple(texts),
    wordnet_ids=ids,
    aliases=data.get('aliases', {}),
    ignored=tuple(data.get('ignored', ())) + _others(base, ids),
  )


def _others(
  base: Names | None, ids: tuple[tuple[str, ...], ...]
) -> tuple[str, ...]:
  """Returns the ids of the other data set that are none of this one's.

  TFDS labels ImageNet-A and -R with all 1,000 ids.
  """
  if base is None:
    return ()
  own = {x for ids_of_class in ids for x in ids_of_class}
  return tuple(x for (x,) in base.wordnet_ids if x not in own)


def _tuples(rows: list[str | list[str]]) -> tuple[tuple[str, ...], ...]:
  return tuple((x,) if isinstance(x, str) else tuple(x) for x in rows)


def match(
  label_names: Sequence[str], dataset: str
) -> Int[np.ndarray, ' labels']:
  """Returns the class of each label of a source of a known data set.

  Args:
    label_names: as the source spells them, in its order.
    dataset: a name of the table of data sets.
  Returns:
    Indices into the data set's classes, int64; -1 for a label that it has but
    does not evaluate (ObjectNet's folders without a class in ImageNet,
    ImageNet's classes that ImageNet-R lacks).
  Raises:
    UsageError: there is no such data set; a label is no class of it, or two
      labels are the same class.
  """
  names = read_names(dataset)
  ids = names.wordnet_ids or ((),) * len(names.classes)
  return match_names(
    label_names,
    [(*x, *y) for x, y in zip(names.classes, ids, strict=True)],
    aliases=names.aliases,
    ignored=names.ignored,
    of=dataset,
  )


def match_names(
  label_names: Sequence[str],
  classes: Sequence[Sequence[str]],
  *,
  aliases: Mapping[str, str] | None = None,
  ignored: Iterable[str] = (),
  of: str = 'the class names',
) -> Int[np.ndarray, ' labels']:
  """Returns the class of each label, by name.

  Only letters and digits are compared, whatever their case. An alias goes
  before a name: the label '2' of STL-10 is the class that the aliases give.

  Args:
    label_names: as a source spells them, in its order.
    classes: the names of each class.
    aliases: a source's label -> a name of the class that it is.
    ignored: labels that are no class, and may be there.
    of: what the classes are of, for messages.
  Returns:
    Indices into `classes`, int64; -1 for a label that is ignored.
  Raises:
    UsageError: a label is no class, or may be one of two; two labels are the
      same class.
  """
  classes_of = _index(classes)
  for alias, name in (aliases or {}).items():
    if spelling(name) not in classes_of:
      raise UsageError(
        f'alias {alias!r}: {name!r} is no class of {of}: '
        f'{_nearest(spelling(name), classes)}.'
      )
    classes_of[spelling(alias)] = classes_of[spelling(name)]
  left_out = {spelling(name) for name in ignored} - set(classes_of)
  result: list[int] = []
  label_of: dict[int, str] = {}
  for label in label_names:
    key = spelling(label)
    if key in left_out:
      result.append(OUTSIDE)
      continue
    if key not in classes_of:
      raise UsageError(
        f'label {label!r} is no class of {of}: {_nearest(key, classes)}.'
      )
    if len(classes_of[key]) > 1:
      raise UsageError(
        f'label {label!r} may be any of {len(classes_of[key])} classes of '
        f'{of}: name it otherwise, for ImageNet by its WordNet id.'
      )
    (index,) = classes_of[key]
    if index in label_of:
      raise UsageError(
        f'labels {label_of[index]!r} and {label!r} are the same class of {of}, '
        f'{classes[index][0]!r}: one label a class.'
      )
    label_of[index] = label
    result.append(index)
  return np.array(result, np.int64)


def _index(classes: Sequence[Sequence[str]]) -> dict[str, set[int]]:
  """Returns key to the classes that have it; several where names repeat."""
  classes_of: dict[str, set[int]] = {}
  for index, names in enumerate(classes):
    for name in names:
      classes_of.setdefault(spelling(name), set()).add(index)
  return classes_of


def spelling(name: str) -> str:
  """Returns a name's letters and digits in lower case, by which it is found."""
  plain = unicodedata.normalize('NFKD', name).casefold()
  return ''.join(x for x in plain if x.isalnum())


def _nearest(key: str, classes: Sequence[Sequence[str]]) -> str:
  spelt = {spelling(name): name for names in classes for name in names}
  near = difflib.get_close_matches(key, spelt, n=1, cutoff=0)
  return f'the nearest is {spelt[near[0]]!r}' if near else 'it has none'
