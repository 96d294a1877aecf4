"""The same drawing in another artist's hand: operations on ink.

Ink is 1 - colour, float32 [S, S, 3]: none on white paper, so that a white
ground stays white whatever is done to the colours. Pure functions with the
amounts as arguments; `augment` draws them.
"""

import math

import numpy as np
from jaxtyping import Float, Float32, UInt8

_LEVELS = np.arange(256, dtype=np.float32) / 255


def to_ink(pixels: UInt8[np.ndarray, 'S S 3']) -> Float32[np.ndarray, 'S S 3']:
  """How much of each colour is missing, 0 to 1."""
  return np.float32(1) - _LEVELS[pixels]


def to_pixels(
  ink: Float32[np.ndarray, 'S S 3'], gamma: float = 1.0
) -> UInt8[np.ndarray, 'S S 3']:
  """Back to colours, to the power of gamma (over 1 is darker)."""
  table = np.rint(255 * (1 - _LEVELS) ** gamma).astype(np.uint8)
  return table[np.rint(np.clip(ink, 0, 1) * 255).astype(np.uint8)]


def mix(
  ink: Float32[np.ndarray, 'S S 3'], matrix: Float[np.ndarray, '3 3']
) -> Float32[np.ndarray, 'S S 3']:
  """Each new colour as a sum of the three old ones (columns are new)."""
  return ink @ matrix.astype(np.float32)


def outline(
  ink: Float32[np.ndarray, 'S S 3'], amount: float
) -> Float32[np.ndarray, 'S S 3']:
  """More ink of all colours where the green ink changes; not at the border."""
  level = ink[..., 1]
  edges = np.abs(level[2:, 1:-1] - level[:-2, 1:-1])
  edges += np.abs(level[1:-1, 2:] - level[1:-1, :-2])
  drawn = ink.copy()
  drawn[1:-1, 1:-1] += np.float32(amount) * edges[..., None]
  return drawn


def sharpen(
  ink: Float32[np.ndarray, 'S S 3'], amount: float
) -> Float32[np.ndarray, 'S S 3']:
  """Away from the mean of 3 x 3 pixels (over 0), or towards it (under 0)."""
  mean = ink[:-2] + ink[1:-1] + ink[2:]
  mean = (mean[:, :-2] + mean[:, 1:-1] + mean[:, 2:]) / np.float32(9)
  drawn = ink.copy()
  inner = ink[1:-1, 1:-1]
  drawn[1:-1, 1:-1] += np.float32(amount) * (inner - mean)
  return drawn


def shade(
  ink: Float32[np.ndarray, 'S S 3'], amount: float, angle: float
) -> Float32[np.ndarray, 'S S 3']:
  """Light from one side: ink times 1 - amount to 1 + amount across it.

  The angle is in radians, 0 for less ink at the top.
  """
  ramp = np.linspace(-amount, amount, len(ink), dtype=np.float32)
  down, across = math.cos(angle), math.sin(angle)
  light = 1 + np.float32(down) * ramp[:, None] + np.float32(across) * ramp
  return ink * light[..., None]
