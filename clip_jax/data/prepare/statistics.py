"""Counts what a built data set holds, from the tables of its parts."""

import collections
from typing import Any

import numpy as np

from clip_jax.data.prepare.part import FORMAT_NAMES, Part
from clip_jax.data.record_counts import spread


class Statistics:
  """Running counts of the records that are kept.

  Attributes:
    records, dropped: numbers of records.
    most_captions, least_captions: of a record.
    labels: the number of records with a label.
  """

  def __init__(self) -> None:
    """Begins at nothing."""
    self.records = self.dropped = self.labels = 0
    self.most_captions, self.least_captions = 0, 2**31
    self._image_bytes = self._encoded = self._captions = 0
    self._formats: collections.Counter[str] = collections.Counter()
    self._counters = {
      name: collections.Counter[int]()
      for name in (
        'image_width', 'image_height', 'captions_per_record',
        'caption_characters',
      )
    }  # fmt: skip

  def add(self, part: Part) -> None:
    """Counts the records of a part."""
    rows = part.rows[part.rows['bytes'] > 0]
    self.dropped += len(part.rows) - len(rows)
    if not len(rows):
      return
    self.records += len(rows)
    self.labels += int(rows['label'].sum())
    self.most_captions = max(self.most_captions, int(rows['captions'].max()))
    self.least_captions = min(self.least_captions, int(rows['captions'].min()))
    self._image_bytes += int(rows['image_bytes'].sum())
    self._encoded += int((rows['offset'] >= 0).sum())
    self._captions += len(part.caption_lengths)
    for number, times in enumerate(np.bincount(rows['format']).tolist()):
      if times:
        self._formats[FORMAT_NAMES[number] or 'other'] += times
    _count(self._counters['image_width'], rows['width'])
    _count(self._counters['image_height'], rows['height'])
    _count(self._counters['captions_per_record'], rows['captions'])
    _count(self._counters['caption_characters'], part.caption_lengths)

  def summary(self) -> dict[str, Any]:
    """Returns all counts, as JSON has them."""
    return {
      'records': self.records,
      'dropped': self.dropped,
      'image_bytes': self._image_bytes,
      'images_encoded_anew': self._encoded,
      'captions': self._captions,
      'records_with_label': self.labels,
      'image_formats': dict(sorted(self._formats.items())),
      **{name: spread(x) for name, x in self._counters.items()},
    }


def _count(counter: collections.Counter[int], values: np.ndarray) -> None:
  numbers, times = np.unique(values, return_counts=True)
  counter.update(dict(zip(numbers.tolist(), times.tolist(), strict=True)))
