"""Positions for other sizes, as each of the libraries resizes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from clip_jax.errors import UsageError
from clip_jax.models.config import DECODER_READS
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.models.positions import (
  append_or_truncate,
  resize_grid,
  resize_line,
  resize_model,
)
from tests.golden_models import GOLDENS, load_golden
from tests.tiny import TINY_BAG, TINY_CAPTIONER, TINY_COCA, TINY_PREFIXED

TABLES = load_file(
  GOLDENS / 'positional_resize' / 'positional_resize.safetensors'
)

DECODERS = (TINY_COCA, TINY_CAPTIONER, TINY_PREFIXED, TINY_BAG)


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


@pytest.mark.parametrize('length', [1, 5, 8, 13])
@pytest.mark.parametrize('dtype', [np.float32, np.float16])
def test_text_positions_of_another_length_are_the_same_bits(length, dtype):
  table = np.random.default_rng(0).normal(size=(8, 3)).astype(dtype)
  for keep_last in (False, True):
    result = append_or_truncate(table, length, keep_last)
    assert result.shape == (length, 3) and result.dtype == dtype
    kept = min(length, 8) - keep_last
    np.testing.assert_array_equal(result[:kept], table[:kept])
    if length > 8 or keep_last:
      np.testing.assert_array_equal(
        result[kept:], np.repeat(table[-1:], length - kept, axis=0)
      )


@pytest.mark.parametrize('length', [6, 24])
def test_texts_that_fit_keep_their_features(length):
  """Of another context length; interpolating moves them."""
  golden = load_golden('open_clip_vit')
  tokens = np.zeros((2, golden.config.text.context_length), np.int32)
  tokens[:, :4] = [[1, 5, 7, 63], [2, 9, 4, 63]]
  tokens = np.where(tokens == 63, golden.config.text.end_token, tokens)

  def features(**options):
    variables, config = resize_model(
      golden.variables, golden.config, context_length=length, **options
    )
    rows = np.zeros((2, length), np.int32)
    rows[:, :4] = tokens[:, :4]
    return DualEncoder(config).apply(
      variables, jnp.asarray(rows), method='encode_text'
    )

  expected = DualEncoder(golden.config).apply(
    golden.variables, jnp.asarray(tokens), method='encode_text'
  )
  np.testing.assert_allclose(features(), expected, atol=2e-6)
  moved = np.abs(features(text_method='interpolate') - expected).max()
  assert moved > 1e-3


def test_interpolation_is_on_request():
  golden = load_golden('open_clip_vit')
  table = golden.variables['params']['text']['position_embedding']
  variables, _ = resize_model(
    golden.variables,
    golden.config,
    context_length=24,
    text_method='interpolate',
  )
  np.testing.assert_array_equal(
    variables['params']['text']['position_embedding'],
    resize_line(np.asarray(table, np.float32), 24),
  )


def test_another_way_for_texts_is_refused():
  golden = load_golden('open_clip_vit')
  with pytest.raises(UsageError, match="text positions='repeat': choose one"):
    resize_model(golden.variables, golden.config, text_method='repeat')


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


@pytest.mark.parametrize('length', [5, 11])
@pytest.mark.parametrize('reads', DECODER_READS)
def test_a_decoder_reads_other_lengths(reads, length):
  [config] = [x for x in DECODERS if x.decoder.reads == reads]
  variables = _variables(config)
  resized, config = resize_model(variables, config, context_length=length)
  expected = jax.eval_shape(lambda: _variables(config))
  assert jax.tree.map(np.shape, resized) == jax.tree.map(np.shape, expected)


def _variables(config):
  images = jnp.zeros((1, 16, 16, 3))
  tokens = jnp.zeros((1, config.text.context_length), jnp.int32)
  return DualEncoder(config).init(jax.random.key(0), images, tokens)


def test_no_size_changes_nothing():
  golden = load_golden('open_clip_vit')
  variables, config = resize_model(golden.variables, golden.config)
  assert config == golden.config
  table = variables['params']['image']['position_embedding']
  assert table is golden.variables['params']['image']['position_embedding']
