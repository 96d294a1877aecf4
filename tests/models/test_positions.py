"""Positions for other sizes, as each of the libraries resizes them."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from clip_jax.errors import UsageError
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.models.positions import resize_grid, resize_line, resize_model
from tests.golden_models import GOLDENS, load_golden

TABLES = load_file(
  GOLDENS / 'positional_resize' / 'positional_resize.safetensors'
)


@pytest.mark.parametrize('rows, columns', [(6, 6), (3, 3), (5, 3)])
def test_image_positions_equal_open_clips(rows, columns):
  resized = resize_grid(
    TABLES['visual.source'],
    (4, 4),
    (rows, columns),
    first=1,
    method='open_clip',
  )
  expected = TABLES[f'visual.to_{rows}x{columns}']
  np.testing.assert_allclose(resized, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('length', [24, 10])
def test_text_positions_equal_open_clips(length):
  resized = resize_line(TABLES['text.source'], length)
  expected = TABLES[f'text.to_{length}']
  np.testing.assert_allclose(resized, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('name, first', [('hf_clip', 1), ('hf_siglip', 0)])
@pytest.mark.parametrize('rows, columns', [(7, 7), (3, 6)])
def test_image_positions_equal_those_of_transformers(
  name, first, rows, columns
):
  resized = resize_grid(
    TABLES[f'{name}.source'],
    (4, 4),
    (rows, columns),
    first=first,
    method='transformers',
  )
  expected = TABLES[f'{name}.to_{rows}x{columns}']
  np.testing.assert_allclose(resized, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('method', ['open_clip', 'transformers'])
def test_a_grid_of_the_same_size_stays(method):
  table = TABLES['visual.source']
  resized = resize_grid(table, (4, 4), (4, 4), first=1, method=method)
  np.testing.assert_allclose(resized, table, atol=1e-6)


def test_the_two_ways_differ():
  ways = [
    resize_grid(TABLES['visual.source'], (4, 4), (6, 6), first=1, method=method)
    for method in ('open_clip', 'transformers')
  ]
  assert np.abs(ways[0] - ways[1]).max() > 1e-3


def test_another_way_is_refused():
  with pytest.raises(UsageError, match="positions='nearest': choose one of"):
    resize_grid(np.zeros((4, 1)), (2, 2), (3, 3), first=0, method='nearest')


@pytest.mark.parametrize(
  'name, size',
  [('open_clip_vit', 96), ('hf_siglip', 48), ('open_clip_resnet', 96)],
)
def test_a_model_reads_other_sizes(name, size):
  golden = load_golden(name)
  variables, config = resize_model(
    golden.variables, golden.config, image_size=size, context_length=9
  )
  assert (config.image.image_size, config.text.context_length) == (size, 9)
  images = jnp.zeros((2, size, size, 3))
  tokens = jnp.full((1, 9), 3, jnp.int32)
  image, text, _, _ = DualEncoder(config).apply(variables, images, tokens)
  assert np.isfinite(image).all()
  assert np.isfinite(text).all()


def test_no_size_changes_nothing():
  golden = load_golden('open_clip_vit')
  variables, config = resize_model(golden.variables, golden.config)
  assert config == golden.config
  table = variables['params']['image']['position_embedding']
  assert table is golden.variables['params']['image']['position_embedding']
