"""Operations of augmentation on one image: geometry, and a drawing's ink.

`random_warp` is an affine map, perhaps with a bent sheet, as one resampling.
The others draw the same thing in another artist's hand: ink is 1 - colour,
float32 [H, W, 3], none on white paper, so that a white ground stays white
whatever is done to the colours. They are pure functions with the amounts as
arguments; `augment` draws them.
"""

import math

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

_LEVELS = np.arange(256, dtype=np.float32) / 255


def random_warp(
  image: Image.Image,
  rng: np.random.Generator,
  *,
  rotate: float,
  zoom: float,
  stretch: float,
  shear: float,
  shift: float,
  flip: float,
  bend: float,
  fill: str,
) -> Image.Image:
  """Resamples an image once, by strengths as in `Augmentation`."""
  turn, size, ratio, slant, right, down = (2 * rng.random(6) - 1).tolist()
  angle = math.radians(rotate * turn)
  scale = (1 + zoom) ** size
  aspect = math.sqrt((1 + stretch) ** ratio)
  scale_x, scale_y = scale * aspect, scale / aspect
  if flip and rng.random() < flip:
    scale_x = -scale_x
  slope = shear * slant
  cos, sin = math.cos(angle), math.sin(angle)
  # Forward: scale, then shear, then rotate, about the centre, then shift.
  # Pillow asks for the inverse: where each output pixel comes from.
  xx, xy = (cos + slope * sin) / scale_x, (sin - slope * cos) / scale_x
  yx, yy = -sin / scale_y, cos / scale_y
  width, height = image.size
  out_x = width * (0.5 + shift * right)
  out_y = height * (0.5 + shift * down)
  source = (
    *(xx, xy, width / 2 - xx * out_x - xy * out_y),
    *(yx, yy, height / 2 - yx * out_x - yy * out_y),
  )
  if bend:
    jitter = bend * rng.standard_normal((3, 3, 2)) * (width, height)
    kind, source = Image.Transform.MESH, _mesh(source, jitter, width, height)
  else:
    kind = Image.Transform.AFFINE
  return image.transform(
    image.size,
    kind,
    source,
    Image.Resampling.BICUBIC,
    fillcolor=fill,
  )


def _mesh(
  affine: tuple[float, ...],
  jitter: Float[np.ndarray, '3 3 xy'],
  width: int,
  height: int,
) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
  """Returns Pillow's mesh of 2 x 2 cells: an affine map, nine points moved."""
  xx, xy, x0, yx, yy, y0 = affine
  columns, rows = (0, width // 2, width), (0, height // 2, height)
  points = [
    [
      (
        xx * x + xy * y + x0 + float(jitter[i, j, 0]),
        yx * x + yy * y + y0 + float(jitter[i, j, 1]),
      )
      for j, x in enumerate(columns)
    ]
    for i, y in enumerate(rows)
  ]
  return [  # Corners: upper left, lower left, lower right, upper right.
    (
      (columns[j], rows[i], columns[j + 1], rows[i + 1]),
      points[i][j] + points[i + 1][j] + points[i + 1][j + 1] + points[i][j + 1],
    )
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))
  ]


def to_ink(pixels: UInt8[np.ndarray, 'H W 3']) -> Float32[np.ndarray, 'H W 3']:
  """Returns how much of each colour is missing, 0 to 1."""
  return np.float32(1) - _LEVELS[pixels]


def to_pixels(
  ink: Float32[np.ndarray, 'H W 3'], gamma: float = 1.0
) -> UInt8[np.ndarray, 'H W 3']:
  """Turns ink back into colours, to the power of gamma (over 1 is darker)."""
  table = np.rint(255 * (1 - _LEVELS) ** gamma).astype(np.uint8)
  return table[np.rint(np.clip(ink, 0, 1) * 255).astype(np.uint8)]


def mix(
  ink: Float32[np.ndarray, 'H W 3'], matrix: Float[np.ndarray, '3 3']
) -> Float32[np.ndarray, 'H W 3']:
  """Makes each new colour a sum of the three old ones (columns are new)."""
  return ink @ matrix.astype(np.float32)


def outline(
  ink: Float32[np.ndarray, 'H W 3'], amount: float
) -> Float32[np.ndarray, 'H W 3']:
  """Adds ink of all colours where the green ink changes within the border."""
  level = ink[..., 1]
  edges = np.abs(level[2:, 1:-1] - level[:-2, 1:-1])
  edges += np.abs(level[1:-1, 2:] - level[1:-1, :-2])
  drawn = ink.copy()
  drawn[1:-1, 1:-1] += np.float32(amount) * edges[..., None]
  return drawn


def sharpen(
  ink: Float32[np.ndarray, 'H W 3'], amount: float
) -> Float32[np.ndarray, 'H W 3']:
  """Moves away from the mean of 3 x 3 pixels (over 0), or towards it."""
  mean = ink[:-2] + ink[1:-1] + ink[2:]
  mean = (mean[:, :-2] + mean[:, 1:-1] + mean[:, 2:]) / np.float32(9)
  drawn = ink.copy()
  inner = ink[1:-1, 1:-1]
  drawn[1:-1, 1:-1] += np.float32(amount) * (inner - mean)
  return drawn


def shade(
  ink: Float32[np.ndarray, 'H W 3'], amount: float, angle: float
) -> Float32[np.ndarray, 'H W 3']:
  """Lights from one side: ink times 1 - amount to 1 + amount across it.

  The angle is in radians, 0 for less ink at the top.
  """
  rows, columns = (
    np.linspace(-amount, amount, count, dtype=np.float32)
    for count in ink.shape[:2]
  )
  down, across = math.cos(angle), math.sin(angle)
  light = 1 + np.float32(down) * rows[:, None] + np.float32(across) * columns
  return ink * light[..., None]
