"""The modified ResNet: its maps, and its statistics in training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.errors import UsageError
from clip_jax.models.config import ResNetConfig
from clip_jax.models.image_tokens import image_tokens
from clip_jax.models.resnet import BatchNorm, ResNet
from clip_jax.parallel.mesh import BATCH_AXES, make_mesh
from tests.golden_models import load_golden

SMALL = ResNetConfig(image_size=64, layers=(1, 2, 1, 1), width=8, heads=4)


@functools.cache
def initialised():
  tower = ResNet(SMALL)
  images = jax.random.normal(jax.random.key(3), (4, 64, 64, 3))
  return tower, jax.jit(tower.init)(jax.random.key(0), images), images


def test_maps_equal_open_clips():
  golden = load_golden('open_clip_resnet')
  image = {kind: tree['image'] for kind, tree in golden.variables.items()}
  stages = functools.partial(ResNet(golden.config.image).apply, method='stages')
  maps = jax.jit(stages)(image, golden.images)
  assert len(maps) == 5
  for i, stage in enumerate(maps):
    golden.check(f'image_stage_{i}', stage.transpose(0, 3, 1, 2))


def test_tokens_are_the_maps_row_by_row():
  tower, variables, images = initialised()
  maps = tower.apply(variables, images, method='stages')
  layers = tuple(range(SMALL.depth))
  tokens = image_tokens(tower.bind(variables), images, layers)
  for layer, expected in zip(layers, maps[1:], strict=True):
    np.testing.assert_array_equal(
      tokens[layer], expected.reshape(4, -1, expected.shape[-1])
    )


def test_training_normalises_by_the_batch_and_keeps_running_statistics():
  norm = BatchNorm()
  x = 3 + 2 * jax.random.normal(jax.random.key(0), (8, 4, 4, 5))
  variables = norm.init(jax.random.key(1), x, True)
  assert variables['batch_stats']['count'] == 0
  out, updated = norm.apply(variables, x, True, mutable='batch_stats')
  np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-4)
  stats = updated['batch_stats']
  pixels = np.asarray(x, np.float64).reshape(-1, 5)
  # As torch: a tenth of the way, with the unbiased variance.
  np.testing.assert_allclose(stats['mean'], 0.1 * pixels.mean(0), rtol=1e-5)
  np.testing.assert_allclose(
    stats['var'], 0.9 + 0.1 * pixels.var(0, ddof=1), rtol=1e-5
  )
  assert stats['count'] == 1


def test_statistics_are_those_of_the_global_batch():
  norm = BatchNorm()
  x = jax.random.normal(jax.random.key(0), (8, 4, 4, 5))
  x = x + jnp.arange(8.0)[:, None, None, None]  # each device sees another mean
  variables = norm.init(jax.random.key(1), x, True)
  mesh = make_mesh()
  spread = jax.device_put(x, NamedSharding(mesh, P(BATCH_AXES)))

  @jax.jit
  def run(x):
    return norm.apply(variables, x, True, mutable='batch_stats')

  for one, eight in zip(
    jax.tree.leaves(run(x)), jax.tree.leaves(run(spread)), strict=True
  ):
    np.testing.assert_allclose(one, eight, atol=1e-5)


def test_a_block_starts_as_its_shortcut():
  _, variables, _ = initialised()
  assert not variables['params']['stage2_1']['bn3']['scale'].any()


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(layers=(1, 2, 1)), 'blocks of four stages'),
    (dict(image_size=100), 'not a multiple of 32'),
    (dict(heads=3), 'does not split over model.image.heads=3'),
  ],
)
def test_shapes_that_cannot_be_are_refused(fields, message):
  known = dict(image_size=64, layers=(1, 2, 1, 1), width=8, heads=4)
  with pytest.raises(UsageError, match=message):
    ResNetConfig(**{**known, **fields})
