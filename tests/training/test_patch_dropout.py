"""Which patches an image keeps in a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.data.images import Patches
from clip_jax.models.config import VisionTransformerConfig
from clip_jax.training.patch_dropout import draw_patches

TOWER = VisionTransformerConfig(
  image_size=56, patch_size=8, width=24, depth=1, heads=3
)
GRIDS = ((2, 2), (1, 5), (3, 2), (7, 1), (2, 4), (1, 1), (3, 3), (2, 1))


def test_patches_are_drawn_without_repetition_for_each_image():
  images = jnp.zeros((64, 56, 56, 3))
  kept = np.asarray(draw_patches(jax.random.key(0), images, TOWER, 0.5))
  assert kept.shape == (64, 24)
  assert all(len(set(row)) == 24 for row in kept)
  assert kept.min() == 0 and kept.max() == 48
  assert len({tuple(sorted(row)) for row in kept}) == 64


@pytest.mark.parametrize('dropout', [0.3, 0.5, 0.75])
def test_of_native_aspect_each_image_keeps_the_same_fraction(dropout):
  images = Patches(jnp.zeros((8, 9, 8, 8, 3)), jnp.asarray(np.int32(GRIDS)))
  drawn, again, other = (
    np.asarray(draw_patches(jax.random.key(i), images, TOWER, dropout))
    for i in (0, 0, 1)
  )
  np.testing.assert_array_equal(drawn, again)
  assert (drawn != other).any()
  assert drawn.shape == (8, TOWER.kept_patches(dropout, 9))
  for (rows, columns), row in zip(GRIDS, drawn, strict=True):
    own = row[row < rows * columns]
    kept = TOWER.kept_patches(dropout, rows * columns)
    assert len(own) == len(set(own)) == kept
    assert (row[len(own) :] >= rows * columns).all()  # padding comes last
