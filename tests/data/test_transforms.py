import math

import numpy as np
import pytest

from clip_jax.data import transforms

STEP = np.zeros((6, 6, 3), np.float32)  # Ink on the right half.
STEP[:, 3:] = 0.5


def test_ink_and_back():
  pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
  ink = transforms.to_ink(pixels)
  assert ink.dtype == np.float32
  np.testing.assert_allclose(ink, 1 - pixels / 255, atol=1e-6)
  np.testing.assert_array_equal(transforms.to_pixels(ink), pixels)


def test_too_much_ink_is_black_and_gamma_a_power():
  ink = np.full((1, 1, 3), [-0.5, 0.5, 1.5], np.float32)
  assert transforms.to_pixels(ink)[0, 0].tolist() == [255, 127, 0]
  assert transforms.to_pixels(ink, 2.0)[0, 0].tolist() == [255, 63, 0]


def test_mix_has_the_new_colours_in_columns():
  red = np.zeros((2, 2, 3), np.float32)
  red[..., 0] = 1
  result = transforms.mix(red, np.array([[1, 0.5, 0], [0, 1, 0], [0, 0, 1.0]]))
  np.testing.assert_allclose(result[0, 0], [1, 0.5, 0])


def test_outline_adds_ink_on_both_sides_of_a_jump():
  result = transforms.outline(STEP, 0.4)
  wanted = STEP.copy()
  wanted[1:-1, 2:4] += 0.2
  np.testing.assert_allclose(result, wanted, atol=1e-6)


@pytest.mark.parametrize(('amount', 'jump'), [(1.0, 5 / 6), (-1.0, 1 / 6)])
def test_sharpen_goes_both_ways(amount, jump):
  result = transforms.sharpen(STEP, amount)[2, 2:4, 0]
  assert result[1] - result[0] == pytest.approx(jump)
  np.testing.assert_array_equal(transforms.sharpen(STEP, 0.0), STEP)


def test_shade_is_a_ramp():
  flat = np.full((5, 5, 3), 0.5, np.float32)
  down = transforms.shade(flat, 0.2, 0.0)[:, 1, 0]
  np.testing.assert_allclose(down, [0.4, 0.45, 0.5, 0.55, 0.6], atol=1e-6)
  across = transforms.shade(flat, 0.2, math.pi / 2)[1, :, 0]
  np.testing.assert_allclose(across, down, atol=1e-6)
