"""Summarizes a data set: counts, lengths, sizes, copies, the worst, a sheet.

Of a large data set it reads a sample, and says so.
"""

import bisect
import collections
import itertools
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from PIL import Image

from clip_jax.data.contact_sheet import (
  SHEET_COLUMNS,
  SHEET_ROWS,
  contact_sheet,
  thumbnail,
)
from clip_jax.data.decoding import CorruptImageError, decode
from clip_jax.data.record_counts import (
  Look,
  RecordCounts,
  TextLengths,
  short_digest,
)
from clip_jax.data.sources import Record, Source, open_source, split_mixture
from clip_jax.errors import UsageError, plural
from clip_jax.files import replacing, typed_path
from clip_jax.progress import Progress, no_progress

# Records that are read of a larger data set, unless another number is given.
DEFAULT_SAMPLE = 10_000
# Captions whose language is told, of all that are read.
_LANGUAGE_TEXTS = 10_000
_NAMED_LANGUAGES = 15
# Records that wait to be counted.
_AHEAD = 32


def inspect(
  spec: str,
  captions: Sequence[str] = ('caption',),
  sheet_path: str | os.PathLike | None = None,
  tokenizer: TextLengths | None = None,
  progress: Progress = no_progress,
  sample: int = DEFAULT_SAMPLE,
  seed: int = 0,
) -> dict[str, Any]:
  """Reads records, and returns what the data set holds.

  Corrupt records are counted and named.

  Args:
    spec: one SPEC, or those of a mixture, joined by '::'.
    captions: as for `open_source`.
    sheet_path: where to write a PNG of images from all over the data set.
    tokenizer: measures captions in its tokens, specials included, and counts
      those that it truncates.
    progress: shows how many records were read.
    sample: how many records are read at the most, drawn at random; 0 is all.
    seed: of the sample.
  Returns:
    A summary that can be written as JSON: 'records', 'records_read', 'notices'
    (also whether only a sample was read), 'corrupt', 'captions', 'labels',
    'image_sizes', ... Lengths are {'min', 'median', 'mean', 'p95', 'max'}.
  Raises:
    UsageError: see `open_source`; or the sheet's folder does not exist.
    FailureError: the sheet could not be written.
  """
  if sheet_path is not None:
    sheet_path = typed_path(sheet_path)
    folder = sheet_path.absolute().parent
    if not folder.is_dir():
      raise UsageError(f'no folder {folder} for the contact sheet')
  data = _Mixture(
    [open_source(part, captions=captions) for part in split_mixture(spec)]
  )
  indices = _sample(len(data), sample, seed)
  cells = SHEET_COLUMNS * SHEET_ROWS if sheet_path is not None else 0
  chosen = {indices[i] for i in _evenly(len(indices), cells)}
  counts = RecordCounts(tokenizer)
  languages = _Languages(len(indices))
  drawn: list[tuple[Image.Image | None, str]] = []
  looks = _looks(data, indices, chosen)
  for index, record, look in progress(looks, len(indices), 'records'):
    key = record['id'] if record else data.key(index)
    texts = record['caption'] if record else []
    if record is None:
      counts.add_corrupt(key, look.reason)
    else:
      counts.add(key, look, texts, data.label(index, record))
      languages.add(texts)
    if index in chosen:
      drawn.append((look.thumbnail, texts[0] if texts else key))
  summary = _summarize(spec, data, len(indices), seed)
  summary |= counts.summary(data.label_count()) | languages.summary()
  summary['notices'] += counts.notices() + languages.notices
  if sheet_path is not None:
    with replacing(sheet_path) as temporary:
      contact_sheet(drawn).save(temporary, 'PNG')
    summary['sheet'] = os.fspath(sheet_path)
  return summary


def _summarize(
  spec: str, data: '_Mixture', read: int, seed: int
) -> dict[str, Any]:
  summary: dict[str, Any] = {'data': spec, 'records': len(data)}
  notices = [x for source in data.sources for x in source.notices]
  if len(data.sources) > 1:
    summary['parts'] = {x.spec: len(x) for x in data.sources}
  if read < len(data):
    summary['records_read'] = read
    summary['sample'] = (
      f'all counts below are of {read:,} records, {100 * read / len(data):.3g} '
      f'% of the data, drawn at random (seed {seed})'
    )
    notices.append(
      f'data {spec!r}: {plural(len(data), "record")}, of which a sample of '
      f'{read:,} was read: --sample=N reads more, --sample=0 all.'
    )
  return {**summary, 'notices': notices}


def describe(summary: dict[str, Any]) -> str:
  """Returns a summary as lines for people: a name and its value."""
  lines = []
  for key, value in summary.items():
    # Notices are printed before; a fraction is told with its count.
    if key == 'notices' or key.endswith('_fraction') or value == {}:
      continue
    if isinstance(value, dict):
      value = ', '.join(f'{k} {_number(v)}' for k, v in value.items())
    elif isinstance(value, list):
      value = ''.join(f'\n  {x["id"]}: {x["reason"]}' for x in value) or 'none'
    text = _number(value)
    if f'{key}_fraction' in summary:
      text += f' ({100 * summary[f"{key}_fraction"]:.2f} %)'
    lines.append(f'{key.replace("_", " ")}: {text}')
  return '\n'.join(lines)


class _Mixture:
  """The records of one or more sources, one after the other."""

  def __init__(self, sources: Sequence[Source]):
    self.sources = sources
    self._ends = list(itertools.accumulate(map(len, sources)))

  def __len__(self) -> int:
    return self._ends[-1]

  def _locate(self, index: int) -> tuple[int, int]:
    number = bisect.bisect_right(self._ends, index)
    return number, index - (self._ends[number - 1] if number else 0)

  def __getitem__(self, index: int) -> Record:
    number, own = self._locate(index)
    return self.sources[number][own]

  def key(self, index: int) -> str:
    """Returns the id of a record, which is unique in its source."""
    number, own = self._locate(index)
    return self.sources[number].id(own)

  def label(self, index: int, record: Record) -> tuple[int, int] | None:
    """Returns a record's label, which is another one in another source."""
    label = record.get('label', -1)  # -1 is none, in labelled data
    return None if label < 0 else (self._locate(index)[0], label)

  def label_count(self) -> int | None:
    """Returns the number of labels that have names, or None."""
    return sum(len(x.label_names or ()) for x in self.sources) or None


def _looks(
  data: _Mixture, indices: Sequence[int], chosen: set[int]
) -> Iterator[tuple[int, Record | None, Look]]:
  """Yields each record, in order, with what is seen of its image.

  Threads read and decode, as stores are slow and Pillow lets go of Python's
  lock. A record comes without the bytes of its image; a corrupt one is None.
  """
  waiting: collections.deque[tuple[int, Future[tuple[Record | None, Look]]]]
  waiting = collections.deque()
  with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
    for index in indices:
      look = pool.submit(_look, data, index, index in chosen)
      waiting.append((index, look))
      if len(waiting) > _AHEAD:
        index, look = waiting.popleft()
        yield index, *look.result()
    for index, look in waiting:
      yield index, *look.result()


def _look(
  data: _Mixture, index: int, on_sheet: bool
) -> tuple[Record | None, Look]:
  """Reads a record, and returns what is seen of its image; never its pixels."""
  try:
    record = data[index]
    content = record['image']
    image = decode(content)
  except CorruptImageError as error:
    return None, Look(reason=str(error))
  rest: Record = {**record, 'image': b''}
  return rest, Look(
    image.size,
    f'{image.format} {image.mode}',
    short_digest(content),
    thumbnail=thumbnail(image) if on_sheet else None,
  )


class _Languages:
  """Counts the languages of captions, where py3langid is installed."""

  def __init__(self, records: int):
    self._step = max(1, -(-records // _LANGUAGE_TEXTS))
    self._seen = 0
    self._texts: list[str] = []
    self.notices: list[str] = []

  def add(self, texts: Sequence[str]) -> None:
    """Takes the first caption of each of some records."""
    if self._seen % self._step == 0 and texts and texts[0].strip():
      self._texts.append(texts[0][:1000])
    self._seen += 1

  def summary(self) -> dict[str, Any]:
    """Returns {'languages': code to count}, or nothing."""
    if not self._texts:
      return {}
    from clip_jax.data.curation.cleaning import languages_of

    try:
      codes = collections.Counter(languages_of(self._texts))
    except UsageError as error:  # py3langid is not installed
      self.notices = [str(error)]
      return {}
    return {'languages': dict(codes.most_common(_NAMED_LANGUAGES))}


def _sample(length: int, most: int, seed: int) -> Sequence[int]:
  """Returns the indices to read, in order, without a list of all."""
  if not most or length <= most:
    return range(length)
  return sorted(random.Random(seed).sample(range(length), most))


def _number(value: Any) -> str:
  return f'{value:,}' if isinstance(value, int | float) else str(value)


def _evenly(length: int, wanted: int) -> list[int]:
  """Returns at most `wanted` indices, from all over range(length)."""
  wanted = min(length, wanted)
  return [i * length // wanted for i in range(wanted)]
