"""Summarizes a data set: counts, lengths, sizes, corrupt records, a sheet."""

import collections
import os
import textwrap
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32
from PIL import Image, ImageDraw, ImageFont

from clip_jax.data.decoding import CorruptImageError, decode
from clip_jax.data.images import as_displayed
from clip_jax.data.sources import Source, open_source
from clip_jax.errors import UsageError
from clip_jax.files import replacing, typed_path
from clip_jax.progress import Progress, no_progress

# The contact sheet: its images, their size in pixels, the lines below each.
SHEET_COLUMNS = 8
SHEET_ROWS = 6
CELL = 128
CAPTION_LINES = 3
FONT_SIZE = 12

# Corrupt records that the summary names; all are counted.
NAMED_CORRUPT = 20


@runtime_checkable
class TextLengths(Protocol):
  """The part of a tokenizer that is used here."""

  context_length: int

  def text_lengths(self, texts: list[str]) -> Int32[np.ndarray, ' N']:
    """Returns each text's number of tokens, specials too, not truncated."""
    ...


def inspect(
  spec: str,
  captions: Sequence[str] = ('caption',),
  sheet_path: str | os.PathLike | None = None,
  tokenizer: TextLengths | None = None,
  progress: Progress = no_progress,
) -> dict[str, Any]:
  """Reads every record once, and returns what the data set holds.

  Corrupt records are counted and named.

  Args:
    spec, captions: as for `open_source`.
    sheet_path: where to write a PNG of images from all over the data set.
    tokenizer: measures captions in its tokens, specials included, and counts
      those that it truncates.
    progress: shows how many records were read.
  Returns:
    A summary that can be written as JSON: 'records', 'notices' (the source's),
    'corrupt', 'captions', 'labels', 'image_sizes', ... Lengths are
    {'min', 'median', 'mean', 'p95', 'max'}.
  Raises:
    UsageError: see `open_source`; or the sheet's folder does not exist.
    FailureError: the sheet could not be written.
  """
  if sheet_path is not None:
    sheet_path = typed_path(sheet_path)
    folder = sheet_path.absolute().parent
    if not folder.is_dir():
      raise UsageError(f'no folder {folder} for the contact sheet')
  source = open_source(spec, captions=captions)
  count = _Count(tokenizer)
  chosen = set(_evenly(len(source), SHEET_COLUMNS * SHEET_ROWS))
  cells: list[tuple[Image.Image | None, str]] = []
  for index in progress(range(len(source)), len(source), 'records'):
    image, caption = count.add(source, index)
    if sheet_path is not None and index in chosen:
      cells.append((_thumbnail(image), caption))
  summary = {
    'data': spec,
    'records': len(source),
    'notices': list(source.notices),
    **count.summary(source),
  }
  if sheet_path is not None:
    with replacing(sheet_path) as temporary:
      contact_sheet(cells).save(temporary, 'PNG')
    summary['sheet'] = os.fspath(sheet_path)
  return summary


def describe(summary: dict[str, Any]) -> str:
  """Returns a summary as lines for people: a name and its value."""
  lines = []
  for key, value in summary.items():
    if key == 'notices':  # which are no counts, and printed before
      continue
    if isinstance(value, dict):
      value = ', '.join(f'{k} {_number(v)}' for k, v in value.items())
    elif isinstance(value, list):
      value = ''.join(f'\n  {x["id"]}: {x["reason"]}' for x in value) or 'none'
    lines.append(f'{key.replace("_", " ")}: {_number(value)}')
  return '\n'.join(lines)


class _Count:
  """Running counts of records; memory stays small on large data sets."""

  def __init__(self, tokenizer: TextLengths | None):
    self._tokenizer = tokenizer
    self._truncated = 0
    self._per_record: collections.Counter[int] = collections.Counter()
    self._characters: collections.Counter[int] = collections.Counter()
    self._tokens: collections.Counter[int] = collections.Counter()
    self._sizes: collections.Counter[tuple[int, int]] = collections.Counter()
    self._formats: collections.Counter[str] = collections.Counter()
    self._labels: collections.Counter[int] = collections.Counter()
    self._corrupt: list[dict[str, str]] = []
    self._corrupt_count = 0

  def add(self, source: Source, index: int) -> tuple[Image.Image | None, str]:
    """Counts a record; returns its image (None if corrupt) and a caption."""
    try:
      record = source[index]
      image = decode(record['image'])
    except CorruptImageError as error:
      self._corrupt_count += 1
      key = source.id(index)
      if len(self._corrupt) < NAMED_CORRUPT:
        self._corrupt.append({'id': key, 'reason': str(error)})
      return None, key
    self._sizes[image.size] += 1
    self._formats[f'{image.format} {image.mode}'] += 1
    captions = record['caption']
    self._per_record[len(captions)] += 1
    self._characters.update(map(len, captions))
    if self._tokenizer and captions:
      lengths = self._tokenizer.text_lengths(captions).tolist()
      self._tokens.update(lengths)
      self._truncated += sum(
        x > self._tokenizer.context_length for x in lengths
      )
    if 'label' in record:
      self._labels[record['label']] += 1
    return image, captions[0] if captions else record['id']

  def summary(self, source: Source) -> dict[str, Any]:
    """Returns all counts, as JSON has them."""
    summary: dict[str, Any] = {
      'corrupt': self._corrupt_count,
      'corrupt_records': self._corrupt,
      'captions': self._characters.total(),
      'records_without_caption': self._per_record[0],
      'captions_per_record': _spread(self._per_record),
      'caption_characters': _spread(self._characters),
    }
    if self._tokenizer:
      summary['caption_tokens'] = _spread(self._tokens)
      summary['captions_truncated'] = self._truncated
    if self._labels:
      summary['labels'] = len(source.label_names or self._labels)
      summary['records_per_label'] = _spread(
        collections.Counter(self._labels.values())
      )
    widths: collections.Counter[int] = collections.Counter()
    heights: collections.Counter[int] = collections.Counter()
    for (width, height), times in self._sizes.items():
      widths[width] += times
      heights[height] += times
    summary['image_width'] = _spread(widths)
    summary['image_height'] = _spread(heights)
    summary['image_sizes'] = {
      f'{width}x{height}': times
      for (width, height), times in self._sizes.most_common(10)
    }
    summary['image_formats'] = dict(self._formats.most_common())
    return summary


def _spread(counter: collections.Counter[int]) -> dict[str, int | float]:
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


def _number(value: Any) -> str:
  return f'{value:,}' if isinstance(value, int | float) else str(value)


def _evenly(length: int, wanted: int) -> list[int]:
  """Returns at most `wanted` indices, from all over range(length)."""
  wanted = min(length, wanted)
  return [i * length // wanted for i in range(wanted)]


# ------------------------------------------------------------- contact sheet


def contact_sheet(
  cells: Sequence[tuple[Image.Image | None, str]],
) -> Image.Image:
  """Draws images in rows with their captions below; None is a crossed cell.

  Captions are truncated to CAPTION_LINES lines; images keep their aspect.
  """
  line = FONT_SIZE + 3
  margin = 8
  across = CELL + margin
  down = CELL + margin + CAPTION_LINES * line
  columns = min(SHEET_COLUMNS, max(1, len(cells)))
  rows = -(-len(cells) // columns)
  sheet = Image.new(
    'RGB', (columns * across + margin, rows * down + margin), 'white'
  )
  draw = ImageDraw.Draw(sheet)
  font = _font()
  for position, (image, caption) in enumerate(cells):
    row, column = divmod(position, columns)
    left, top = margin + column * across, margin + row * down
    box = (left, top, left + CELL - 1, top + CELL - 1)
    image = _thumbnail(image)
    if image is None:
      draw.rectangle(box, outline='#c00000')
      draw.line(box, fill='#c00000')
    else:
      offset = (CELL - image.width) // 2, (CELL - image.height) // 2
      sheet.paste(image, (left + offset[0], top + offset[1]))
    for number, words in enumerate(_wrap(caption, font)):
      draw.text(
        (left, top + CELL + 2 + number * line), words, 'black', font=font
      )
  return sheet


def _thumbnail(image: Image.Image | None) -> Image.Image | None:
  """Returns an image turned and shrunk to a cell; None if it is unreadable."""
  try:
    image = as_displayed(image) if image is not None else None
  except CorruptImageError:
    image = None
  if image is None:
    return None
  ratio = CELL / max(image.size)
  size = (
    max(1, round(image.width * ratio)),
    max(1, round(image.height * ratio)),
  )
  return image.resize(size, Image.Resampling.BICUBIC)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
  """Returns Matplotlib's DejaVu, which has more alphabets than Pillow's own."""
  try:
    import matplotlib

    folder = os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf')
    return ImageFont.truetype(os.path.join(folder, 'DejaVuSans.ttf'), FONT_SIZE)
  except (ImportError, OSError):
    return ImageFont.load_default(FONT_SIZE)


def _wrap(
  caption: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont
) -> list[str]:
  """Returns at most CAPTION_LINES lines that fit under a cell."""
  # No letter is under a pixel wide, and one more says that there are more.
  longest = CELL * CAPTION_LINES + 1
  caption = ' '.join(caption[: 10 * longest].split())[:longest]
  for width in range(min(len(caption), CELL), 0, -1):
    lines = textwrap.wrap(
      caption, width, max_lines=CAPTION_LINES, placeholder='…'
    )
    if all(font.getlength(x) <= CELL for x in lines):
      return lines
  return []
