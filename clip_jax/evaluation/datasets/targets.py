"""Labels that a data set implies, but does not store as labels.

Some are made of the objects that TFDS lists for an image (VOC2007, KITTI,
CLEVR), some are columns of a table (FairFace), some the words of an emoji's
name. `note` in the table describes them for people.
"""

import io
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from clip_jax.data.decoding import convert, decode
from clip_jax.data.sources import Record, Source
from clip_jax.data.sources.csv import Columns
from clip_jax.data.sources.tfds import Labels, Target

_VEHICLES = (0, 1, 2)  # Car, Van, Truck among KITTI's types
_DISTANCES = (8.0, 20.0)  # metres, the last that count as nearer
_COUNTS = range(3, 11)  # objects in an image of CLEVR


def _object_names(features: Mapping[str, Any]) -> tuple[str, ...]:
  return tuple(features['labels'].feature.names)


def _objects(data: Mapping[str, Any]) -> Labels:
  """Returns the classes of an image by VOC2007's rule.

  A class whose objects are all hard to see is neither right nor wrong (label 0
  of the data set's devkit).
  """
  clear = [int(label) for label in data['labels_no_difficult']]
  seen = {int(label) for label in data['labels']}
  return {'labels': clear, 'difficult': sorted(seen - set(clear))}


def _distance_names(features: Mapping[str, Any]) -> tuple[str, ...]:
  del features  # VTAB's names
  return ('below_8', 'below_20', 'above_20', 'no_vehicle')


def _nearest_vehicle(data: Mapping[str, Any]) -> Labels:
  """Returns how far ahead the nearest vehicle is, as a class of VTAB's.

  VTAB is Zhai et al. 2019.
  """
  objects = data['objects']
  ahead = [
    float(location[2])
    for kind, location in zip(objects['type'], objects['location'], strict=True)
    if int(kind) in _VEHICLES
  ]
  if not ahead:
    return {'label': len(_DISTANCES) + 1}
  return {'label': int(np.searchsorted(_DISTANCES, min(ahead)))}


def _count_names(features: Mapping[str, Any]) -> tuple[str, ...]:
  del features  # VTAB's names
  return tuple(f'count_{count}' for count in _COUNTS)


def _object_count(data: Mapping[str, Any]) -> Labels:
  return {'label': len(data['objects']['shape']) - _COUNTS[0]}


# Functions from TFDS features to labels, by `target` of the table.
TFDS_TARGETS: Mapping[str, Target] = MappingProxyType(
  {
    'object_labels': Target(
      ('labels', 'labels_no_difficult'), _object_names, _objects
    ),
    'nearest_vehicle': Target(('objects',), _distance_names, _nearest_vehicle),
    'object_count': Target(('objects',), _count_names, _object_count),
  }
)

# The columns of FairFace's tables, by `target`: one attribute of a face,
# or two at once.
CSV_TARGETS: Mapping[str, Columns] = MappingProxyType(
  {
    'face_race': Columns('file', ('race',)),
    'face_gender': Columns('file', ('gender',)),
    'face_age': Columns('file', ('age',)),
    'face_race_gender': Columns('file', ('race', 'gender')),
  }
)

_TONES = (
  'light skin tone',
  'medium-light skin tone',
  'medium skin tone',
  'medium-dark skin tone',
  'dark skin tone',
)
_PEOPLE = ('man', 'woman', 'person')
_OTHER_PEOPLE = {'men', 'women', 'people', 'boy', 'girl', 'family'}


def skin_tone(caption: str) -> int | None:
  """Returns which of the five tones a name has; None for none, or for two.

  >>> skin_tone('thumbs up medium-dark skin tone')
  3
  """
  parts = caption.split()
  tones = {
    f'{before} skin tone'
    for before, *rest in zip(parts, parts[1:], parts[2:], strict=False)
    if rest == ['skin', 'tone']
  }
  return _TONES.index(tones.pop()) if len(tones) == 1 else None


def gender(caption: str) -> int | None:
  """Returns whether a name is of a man (0), a woman (1) or a person (2).

  None stands for anything else.

  >>> gender('woman running')
  1
  """
  parts = caption.split()
  people = [part for part in parts if part in _PEOPLE]
  if len(people) != 1 or _OTHER_PEOPLE & set(parts):
    return None
  return _PEOPLE.index(people[0])


class CaptionTarget(NamedTuple):
  """A label that captions state: the names of labels, and a caption's label."""

  label_names: tuple[str, ...]
  label: Callable[[str], int | None]


CAPTION_TARGETS: Mapping[str, CaptionTarget] = MappingProxyType(
  {
    'skin_tone': CaptionTarget(_TONES, skin_tone),
    'gender': CaptionTarget(_PEOPLE, gender),
  }
)


class CaptionLabels(Source):
  """The records of a source whose captions imply a label, with that label."""

  def __init__(self, source: Source, name: str, captions: Iterable[list[str]]):
    """Chooses the records; decodes no image.

    Args:
      source: all records.
      name: of `CAPTION_TARGETS`.
      captions: of each record, in order; a record whose captions imply no
        label, or two, is left out.
    """
    target = CAPTION_TARGETS[name]
    # Not the source's own: there are fewer records, and other labels.
    self.spec = f'{source.spec}, {name}'
    self.label_names = target.label_names
    self.notices = source.notices
    self._source = source
    self._labelled: list[tuple[int, int]] = []  # index, label
    for index, texts in enumerate(captions):
      answers = {target.label(text) for text in texts}
      labels = [label for label in answers if label is not None]
      if len(labels) == 1:
        self._labelled.append((index, labels[0]))

  def __len__(self) -> int:
    return len(self._labelled)

  def id(self, index: int) -> str:
    return self._source.id(self._labelled[index][0])

  def captions(self, index: int) -> list[str]:
    return self._source.captions(self._labelled[index][0])

  def __getitem__(self, index: int) -> Record:
    row, label = self._labelled[index]
    return {**self._source[row], 'label': label}


class Greyscale(Source):
  """A source whose images are grey; all else is as it was."""

  def __init__(self, source: Source):
    self.spec = f'{source.spec}, greyscale'  # not the same images
    self.label_names = source.label_names
    self.notices = source.notices
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def id(self, index: int) -> str:
    return self._source.id(index)

  def captions(self, index: int) -> list[str]:
    return self._source.captions(index)

  def __getitem__(self, index: int) -> Record:
    record = self._source[index]
    # Luma of ITU-R 601, as Pillow has it.
    grey = convert(convert(decode(record['image']), 'L'), 'RGB')
    encoded = io.BytesIO()
    grey.save(encoded, 'PNG')
    return {**record, 'image': encoded.getvalue()}
