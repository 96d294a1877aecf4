"""Views are drawn by their seed, and cut out as a photographer would."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.objectives.views import (
  GLOBAL_AREA,
  LOCAL_AREA,
  crop,
  draw_crops,
  draw_masked_patches,
  masked_patches,
)
from tests.tiny import TINY

IMAGES = np.random.default_rng(0).normal(size=(2, 16, 16, 3))


@pytest.mark.parametrize('area', [GLOBAL_AREA, LOCAL_AREA])
def test_crops_lie_in_the_image_and_cover_what_they_should(area):
  drawn, again, other = (
    np.asarray(draw_crops(jax.random.key(i), (500, 8), area)) for i in (0, 0, 1)
  )
  np.testing.assert_array_equal(drawn, again)
  assert (drawn != other).any()
  top, left, height, width, mirrored = np.moveaxis(drawn, -1, 0)
  assert min(top.min(), left.min()) >= 0
  assert max((top + height).max(), (left + width).max()) <= 1 + 1e-6
  assert height.max() <= 1 and width.max() <= 1
  whole = (height < 1) & (width < 1)  # none of their sides was cut
  covered = (height * width)[whole]
  assert area[0] - 1e-6 <= covered.min() < 1.05 * area[0]
  assert 0.9 * area[1] < covered.max() <= area[1] + 1e-6
  aspects = np.log((width / height)[whole])
  assert np.abs(aspects).max() <= np.log(4 / 3) + 1e-5
  assert abs(aspects.mean()) < 0.02
  assert abs(mirrored.mean() - 0.5) < 0.03
  assert len(np.unique(top)) > 1_000  # each view is drawn for itself


def test_a_crop_of_whole_pixels_is_those_pixels():
  with jax.enable_x64(True):
    crops = np.array([[4, 2, 8, 8, 0], [0, 8, 8, 8, 16]]) / 16
    cut = np.asarray(crop(jnp.asarray(IMAGES), jnp.asarray(crops), 8))
  np.testing.assert_allclose(cut[0], IMAGES[0, 4:12, 2:10], atol=1e-12)
  np.testing.assert_allclose(cut[1], IMAGES[1, :8, 15:7:-1], atol=1e-12)


def test_a_smaller_crop_is_antialiased_and_a_larger_one_interpolated():
  with jax.enable_x64(True):
    crops = jnp.asarray([[0.0, 0.0, 1.0, 1.0, 0.0]] * 2)
    small = np.asarray(crop(jnp.asarray(IMAGES), crops, 8))
    ramp = np.broadcast_to(np.arange(16.0)[None, :, None, None], IMAGES.shape)
    large = np.asarray(crop(jnp.asarray(ramp), crops, 32))
  # A triangle over two new pixels, at 0.25, 0.75, 0.75, 0.25 of its height.
  weights = np.array([1, 3, 3, 1]) / 8
  rows = np.tensordot(weights, IMAGES[0, 5:9], 1)
  expected = np.tensordot(weights, rows[3:7], 1)
  np.testing.assert_allclose(small[0, 3, 2], expected, atol=1e-12)
  np.testing.assert_allclose(large[0, 5, 7], (5 + 0.5) / 2 - 0.5, atol=1e-12)


@pytest.mark.parametrize('fraction, count', [(0.5, 2), (0.2, 1), (0.8, 3)])
def test_masked_patches_are_drawn_without_repetition(fraction, count):
  tower = TINY.image
  assert masked_patches(tower, fraction) == count
  drawn, again = (
    np.asarray(draw_masked_patches(jax.random.key(0), 64, tower, fraction))
    for _ in range(2)
  )
  np.testing.assert_array_equal(drawn, again)
  assert drawn.shape == (64, count)
  assert all(len(set(row)) == count for row in drawn)
  assert set(drawn.ravel()) == set(range(tower.patches))
