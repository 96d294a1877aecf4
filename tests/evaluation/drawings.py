"""Flat drawings from seeds, each family of one pattern, and copies of them."""

import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 160
COLOURS = [
  (200, 30, 30), (30, 60, 190), (20, 140, 60), (240, 180, 20), (20, 20, 20),
  (120, 40, 140), (240, 120, 20), (90, 90, 90),
]  # fmt: skip
LETTERS = list('ABCDEFGHKLMNPRSTUVXYZ0123456789')


def _canvas(ground='white'):
  image = Image.new('RGB', (SIDE, SIDE), ground)
  return image, ImageDraw.Draw(image)


def _colour(rng):
  return COLOURS[rng.integers(len(COLOURS))]


def _write(draw, rng, letters, size, fill, down=0):
  text = ''.join(rng.choice(LETTERS, letters))
  font = ImageFont.load_default(size)
  middle = (SIDE / 2, SIDE / 2 + down)
  draw.text(middle, text, fill=fill, font=font, anchor='mm')


def star(rng):
  image, draw = _canvas()
  points, outer = int(rng.integers(5, 9)), rng.uniform(50, 72)
  inner, turn = outer * rng.uniform(0.35, 0.7), rng.uniform(0, 0.2)
  corners = []
  for i in range(2 * points):
    radius, angle = (outer, inner)[i % 2], turn + math.pi * i / points
    corners.append(
      (SIDE / 2 + radius * math.sin(angle), SIDE / 2 - radius * math.cos(angle))
    )
  if rng.random() < 0.5:
    draw.polygon(corners, fill=_colour(rng))
  else:
    width = int(rng.integers(2, 7))
    draw.polygon(corners, outline=_colour(rng), fill='white', width=width)
  return image


def sign(rng):
  image, draw = _canvas()
  colour = COLOURS[rng.integers(2)]
  round_ = rng.random() < 0.5
  if round_:
    draw.ellipse((10, 10, SIDE - 10, SIDE - 10), fill=colour)
    draw.ellipse((28, 28, SIDE - 28, SIDE - 28), fill='white')
  else:
    draw.polygon([(80, 14), (SIDE - 10, 138), (10, 138)], fill=colour)
    draw.polygon([(80, 40), (SIDE - 34, 124), (34, 124)], fill='white')
  _write(draw, rng, int(rng.integers(1, 3)), 44, 'black', 0 if round_ else 14)
  return image


def lines(rng):
  image, draw = _canvas()
  for _ in range(int(rng.integers(3, 8))):
    corners = rng.uniform(10, SIDE - 10, (int(rng.integers(2, 5)), 2))
    width = int(rng.integers(1, 4))
    draw.line([tuple(x) for x in corners.tolist()], fill='black', width=width)
  return image


def logo(rng):
  image, draw = _canvas()
  for _ in range(int(rng.integers(2, 5))):
    (x, y), (w, h) = rng.uniform(20, 100, 2), rng.uniform(25, 56, 2)
    shape = (draw.rectangle, draw.ellipse)[rng.integers(2)]
    shape((x, y, x + w, y + h), fill=_colour(rng))
  return image


def clock(rng):
  image, draw = _canvas()
  draw.ellipse((14, 14, SIDE - 14, SIDE - 14), outline='black', width=6)
  for length, width in ((34, 7), (52, 4)):
    angle = 2 * math.pi * rng.integers(12) / 12
    end = (80 + length * math.sin(angle), 80 - length * math.cos(angle))
    draw.line((80, 80, *end), fill='black', width=width)
  return image


def plate(rng):
  image, draw = _canvas((235, 235, 235))
  box = (6, 50, SIDE - 6, SIDE - 50)
  draw.rounded_rectangle(box, 8, fill='white', outline='black', width=3)
  _write(draw, rng, 6, 34, 'black')
  return image


FAMILIES = (star, sign, lines, logo, clock, plate)


def drawings(count: int) -> list[Image.Image]:
  """So many of each family."""
  return [
    family(np.random.default_rng([number, seed]))
    for number, family in enumerate(FAMILIES)
    for seed in range(count)
  ]


def jpeg(image, quality):
  file = io.BytesIO()
  image.save(file, 'JPEG', quality=quality)
  return Image.open(file).convert('RGB')


def cropped(image, part):
  across, down = (round(part * side) for side in image.size)
  return image.crop((across, down, image.width - across, image.height - down))


COPIES = {
  'as a bad JPEG': lambda x: jpeg(x, 30),
  'half as large': lambda x: x.resize((x.width // 2, x.height // 2)),
  'stretched': lambda x: x.resize((2 * x.width, x.height)),
  'without 2 % of each side': lambda x: cropped(x, 0.02),
  'darker': lambda x: x.point(lambda v: 0.75 * v),
  'paler': lambda x: x.point(lambda v: 0.8 * v + 40),
  'in grey': lambda x: x.convert('L'),
}
