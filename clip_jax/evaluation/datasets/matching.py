"""Which class a source's label is: by its name, never by its position.

Published lists, TFDS and folders order the same classes differently, and spell
them differently: `british_shorthair`, `British Shorthair`; a TFDS label of
CIFAR-10 is a bare digit, of ImageNet a WordNet id.
"""

import difflib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from clip_jax.errors import UsageError
from clip_jax.evaluation.datasets.names import read_names

OUTSIDE = -1  # a label that the data set has and its evaluation leaves out


def match(
  label_names: Sequence[str], dataset: str
) -> Int[np.ndarray, ' labels']:
  """The class of each label of a source of a known data set.

  Args:
    label_names: as the source spells them, in its order.
    dataset: a name of the table of data sets.
  Returns:
    Indices into `class_names(dataset)`, int64; -1 for a label that the data
    set has but does not evaluate (ObjectNet's folders without a class in
    ImageNet, ImageNet's classes that ImageNet-R lacks).
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
  """The class of each label, by name.

  Letters and digits count, upper and lower case and all else do not. An alias
  goes before a name: of STL-10, '2' is what the aliases say.

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
  found = _index(classes)
  for alias, name in (aliases or {}).items():
    if spelling(name) not in found:
      raise UsageError(
        f'alias {alias!r}: {name!r} is no class of {of}: '
        f'{_nearest(spelling(name), classes)}.'
      )
    found[spelling(alias)] = found[spelling(name)]
  left_out = {spelling(name) for name in ignored} - set(found)
  result: list[int] = []
  label_of: dict[int, str] = {}
  for label in label_names:
    key = spelling(label)
    if key in left_out:
      result.append(OUTSIDE)
      continue
    if key not in found:
      raise UsageError(
        f'label {label!r} is no class of {of}: {_nearest(key, classes)}.'
      )
    if len(found[key]) > 1:
      raise UsageError(
        f'label {label!r} may be any of {len(found[key])} classes of {of}: '
        'name it otherwise, for ImageNet by its WordNet id.'
      )
    (index,) = found[key]
    if index in label_of:
      raise UsageError(
        f'labels {label_of[index]!r} and {label!r} are the same class of {of}, '
        f'{classes[index][0]!r}: one label a class.'
      )
    label_of[index] = label
    result.append(index)
  return np.array(result, np.int64)


def _index(classes: Sequence[Sequence[str]]) -> dict[str, set[int]]:
  """Key -> the classes that have it; more than one where names repeat."""
  found: dict[str, set[int]] = {}
  for index, names in enumerate(classes):
    for name in names:
      found.setdefault(spelling(name), set()).add(index)
  return found


def spelling(name: str) -> str:
  """What of a name counts: its letters and digits, in lower case."""
  plain = unicodedata.normalize('NFKD', name).casefold()
  return ''.join(x for x in plain if x.isalnum())


def _nearest(key: str, classes: Sequence[Sequence[str]]) -> str:
  spelt = {spelling(name): name for names in classes for name in names}
  near = difflib.get_close_matches(key, spelt, n=1, cutoff=0)
  return f'the nearest is {spelt[near[0]]!r}' if near else 'it has none'
