"""Grey pictures, and all else as it was."""

import io

import numpy as np
import pytest
from PIL import Image

from clip_jax.data.images import CorruptImageError
from clip_jax.data.sources import open_source
from clip_jax.evaluation.datasets.greyscale import Greyscale
from tests.evaluation.fakes import ListSource


def test_colours_go_and_brightness_stays(tmp_path):
  (tmp_path / 'red').mkdir()
  Image.new('RGB', (3, 2), (200, 0, 0)).save(tmp_path / 'red' / 'a.png')
  colour = open_source(f'folder:{tmp_path}')
  grey = Greyscale(colour)
  pixels = np.asarray(Image.open(io.BytesIO(grey[0]['image'])))
  assert pixels.shape == (2, 3, 3)
  # ITU-R 601: 0.299 of red.
  np.testing.assert_allclose(pixels, 0.299 * 200, atol=1)
  assert (len(grey), grey.label_names) == (1, ('red',))
  assert {**grey[0], 'image': b''} == {**colour[0], 'image': b''}
  assert (grey.id(0), grey.captions(0)) == (colour.id(0), colour.captions(0))
  assert grey.spec != colour.spec  # A cache must not take one for the other.


def test_an_unreadable_picture_stays_one():
  with pytest.raises(CorruptImageError):
    Greyscale(ListSource([None]))[0]
