"""Geometry: an affine map, perhaps with a bent sheet, as one resampling."""

import math

import numpy as np
from jaxtyping import Float
from PIL import Image


def random_warp(
  picture: Image.Image,
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
  """One resampling with all of it; strengths as in `Augmentation`."""
  turn, size, ratio, slant, right, down = (2 * rng.random(6) - 1).tolist()
  angle = math.radians(rotate * turn)
  scale = (1 + zoom) ** size
  aspect = math.sqrt((1 + stretch) ** ratio)
  wide, tall = scale * aspect, scale / aspect
  if flip and rng.random() < flip:
    wide = -wide
  slope = shear * slant
  cos, sin = math.cos(angle), math.sin(angle)
  # Forward: scale, then shear, then rotate, about the centre, then shift.
  # Pillow asks for the inverse: where each output pixel comes from.
  xx, xy = (cos + slope * sin) / wide, (sin - slope * cos) / wide
  yx, yy = -sin / tall, cos / tall
  width, height = picture.size
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
  return picture.transform(
    picture.size,
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
  """Pillow's mesh of 2 x 2 cells: an affine map, its nine points moved."""
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
