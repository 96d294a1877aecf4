"""Draws images in rows with their captions below, as one image."""

import os
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.images import as_displayed

# Its images, their size in pixels, the lines below each.
SHEET_COLUMNS = 8
SHEET_ROWS = 6
CELL = 128
CAPTION_LINES = 3
FONT_SIZE = 12


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
    image = thumbnail(image)
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


def thumbnail(image: Image.Image | None) -> Image.Image | None:
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
