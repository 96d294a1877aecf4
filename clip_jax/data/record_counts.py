"""Counts what records hold, in a memory that does not grow with them."""

import collections
import hashlib
import heapq
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32
from PIL import Image

# The most records of each kind that the summary names; all are counted.
_NAMED_CORRUPT = 20
_NAMED_WORST = 5
_NAMED_COPIES = 5
_NAMED_FORMATS = 10
# Images with a shorter side, in pixels, are called tiny; those with a larger
# ratio of the sides elongated.
TINY_SIDE = 32
ELONGATED = 3.0
# Different values that are remembered to find copies of; about 100 bytes each.
MAX_REMEMBERED = 1_000_000
_SHOWN = 80  # characters of a caption


@runtime_checkable
class TextLengths(Protocol):
  """The part of a tokenizer that is used here."""

  context_length: int

  def text_lengths(self, texts: list[str]) -> Int32[np.ndarray, ' N']:
    """Returns each text's number of tokens, specials too, not truncated."""
    ...


class Look(NamedTuple):
  """The properties of an image that `data inspect` counts.

  Attributes:
    size: (width, height) in pixels; (0, 0) of one that is corrupt.
    format: with its mode, as in 'JPEG RGB'.
    digest: of its bytes.
    reason: why it is corrupt, or ''.
    thumbnail: for the contact sheet, where it is on it.
  """

  size: tuple[int, int] = (0, 0)
  format: str = ''
  digest: int = 0
  reason: str = ''
  thumbnail: Image.Image | None = None


class RecordCounts:
  """Running counts of records."""

  def __init__(self, tokenizer: TextLengths | None):
    self._tokenizer = tokenizer
    self._truncated = 0
    self._per_record: collections.Counter[int] = collections.Counter()
    self._characters: collections.Counter[int] = collections.Counter()
    self._tokens: collections.Counter[int] = collections.Counter()
    self._widths: collections.Counter[int] = collections.Counter()
    self._heights: collections.Counter[int] = collections.Counter()
    self._sizes = _Copies()
    self._formats: collections.Counter[str] = collections.Counter()
    self._labels: collections.Counter[Hashable] = collections.Counter()
    self._corrupt: list[dict[str, str]] = []
    self._reasons: collections.Counter[str] = collections.Counter()
    self._elongated = _Worst()
    self._tiny = _Worst()
    self._empty = _Worst()
    self._images = _Copies()
    self._captions = _Copies()

  def add_corrupt(self, key: str, reason: str) -> None:
    """Counts a record that cannot be read."""
    self._reasons[_kind_of(reason)] += 1
    if len(self._corrupt) < _NAMED_CORRUPT:
      self._corrupt.append({'id': key, 'reason': reason})

  def add(
    self,
    key: str,
    look: Look,
    captions: Sequence[str],
    label: Hashable | None,
  ) -> None:
    """Counts a record; `label` is None where it has none."""
    width, height = look.size
    self._widths[width] += 1
    self._heights[height] += 1
    self._sizes.add(width << 32 | height, f'{width}x{height}')
    self._formats[look.format] += 1
    self._images.add(look.digest, key)
    if label is not None:
      self._labels[label] += 1
    self._judge(key, width, height, captions)
    self._per_record[len(captions)] += 1
    self._characters.update(map(len, captions))
    for caption in captions:
      text = caption.strip()
      if text:
        self._captions.add(short_digest(text.encode('utf-8', 'replace')), text)
    if self._tokenizer and captions:
      lengths = self._tokenizer.text_lengths(list(captions)).tolist()
      self._tokens.update(lengths)
      limit = self._tokenizer.context_length
      self._truncated += sum(x > limit for x in lengths)

  def _judge(
    self, key: str, width: int, height: int, captions: Sequence[str]
  ) -> None:
    """Remembers a record that is among the worst."""
    short, long = sorted((width, height))
    size = f'{width:,} x {height:,} pixels'
    if long > ELONGATED * short:
      ratio = long / short
      self._elongated.add(ratio, key, f'elongated, {ratio:.1f} to 1: {size}')
    if short < TINY_SIDE:
      self._tiny.add(-short, key, f'tiny: {size}')
    if any(not caption.strip() for caption in captions):
      self._empty.add(0, key, 'an empty caption')
    elif not captions:
      self._empty.add(0, key, 'no caption')

  def summary(self, label_count: int | None) -> dict[str, Any]:
    """Returns all counts, as JSON has them.

    Args:
      label_count: the labels that the data say they have, or None.
    """
    captions = self._characters.total()
    summary: dict[str, Any] = {
      'corrupt': self._reasons.total(),
      'corrupt_reasons': dict(self._reasons.most_common()),
      'corrupt_records': self._corrupt,
      'captions': captions,
      'records_without_caption': self._per_record[0],
      'captions_per_record': spread(self._per_record),
      'caption_characters': spread(self._characters),
    }
    if self._tokenizer:
      summary['caption_tokens'] = spread(self._tokens)
      summary['captions_truncated'] = self._truncated
      summary['captions_truncated_fraction'] = round(
        self._truncated / max(1, captions), 4
      )
    if self._labels:
      summary['labels'] = label_count or len(self._labels)
      summary['records_per_label'] = spread(
        collections.Counter(self._labels.values())
      )
    return summary | {
      'image_width': spread(self._widths),
      'image_height': spread(self._heights),
      'image_sizes': self._sizes.most_common(_NAMED_FORMATS),
      'image_formats': dict(self._formats.most_common(_NAMED_FORMATS)),
      'copied_images': self._images.copies,
      'copied_image_ids': self._images.most_common(_NAMED_COPIES, least=2),
      'repeated_captions': self._captions.copies,
      'most_frequent_captions': self._captions.most_common(
        _NAMED_COPIES, least=2
      ),
      'elongated_images': self._elongated.count,
      'tiny_images': self._tiny.count,
      'worst_records': [
        *self._elongated.worst(), *self._tiny.worst(), *self._empty.worst()
      ],
    }  # fmt: skip

  def notices(self) -> list[str]:
    """Returns lines about what was not counted to the end."""
    return [
      f'{what} are found among the first {MAX_REMEMBERED:,} different ones'
      for what, copies in (
        ('copied images', self._images), ('repeated captions', self._captions)
      )
      if copies.is_full
    ]  # fmt: skip


def _kind_of(reason: str) -> str:
  """Returns what a reason has in common with those of other records."""
  where, _, rest = reason.partition(': ')
  # The errors of files begin with a path, in which no two need be alike.
  kind = rest if rest and ('/' in where or '.' in where) else reason
  return kind.partition(':')[0].rstrip('.')


def short_digest(content: bytes) -> int:
  """Returns 8 bytes of a hash: of a million, two are alike once in 10^7."""
  digest = hashlib.blake2b(content, digest_size=8).digest()
  return int.from_bytes(digest, 'big')


class _Copies:
  """Counts how often values come, by their digests.

  Attributes:
    copies: values that had come before.
    is_full: whether new values are not remembered any more.
  """

  def __init__(self):
    self._times: dict[int, int] = {}
    self._names: dict[int, str] = {}
    self.copies = 0
    self.is_full = False

  def add(self, digest: int, name: str) -> None:
    """Counts a value; the first name of it is shown."""
    times = self._times.get(digest, 0)
    if not times:
      if len(self._times) >= MAX_REMEMBERED:
        self.is_full = True
        return
      self._names[digest] = name[:_SHOWN]
    self._times[digest] = times + 1
    self.copies += times > 0

  def most_common(self, most: int, least: int = 1) -> dict[str, int]:
    """Returns the most frequent values that came `least` times or more."""
    common = heapq.nlargest(most, self._times.items(), key=lambda x: x[1])
    names: dict[str, int] = {}
    for digest, times in common:
      if times >= least:
        names.setdefault(self._names[digest], times)
    return names


class _Worst:
  """Counts records, and keeps those that are worst."""

  def __init__(self):
    self.count = 0
    self._heap: list[tuple[float, int, str, str]] = []

  def add(self, badness: float | int, key: str, reason: str) -> None:
    """Counts a record; of two that are as bad, the first is kept."""
    self.count += 1
    item = (float(badness), -self.count, key, reason)
    if len(self._heap) < _NAMED_WORST:
      heapq.heappush(self._heap, item)
    else:
      heapq.heappushpop(self._heap, item)

  def worst(self) -> list[dict[str, str]]:
    """Returns the worst first."""
    return [
      {'id': key, 'reason': reason}
      for _, _, key, reason in sorted(self._heap, reverse=True)
    ]


def spread(counter: collections.Counter[int]) -> dict[str, int | float]:
  """Returns least, median, mean and most of a histogram value -> times."""
  total = counter.total()
  if not total:
    return {}
  ordered = sorted(counter.items())

  def quantile(fraction: float) -> int:
    left = fraction * total
    for value, times in ordered:
      left -= times
      if left <= 0:
        return value
    return ordered[-1][0]

  return {
    'min': ordered[0][0],
    'median': quantile(0.5),
    'mean': round(sum(k * n for k, n in ordered) / total, 2),
    'p95': quantile(0.95),
    'max': ordered[-1][0],
  }
