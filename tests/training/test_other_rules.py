"""Lion and Muon train, the same on one device and on eight."""

import jax
import numpy as np
import pytest

from clip_jax.parallel.mesh import batch_sharding
from tests.training.test_step import ONE, compiled_step, mesh_of, tiny_batch

FIELDS = {
  'lion': {'name': 'lion', 'learning_rate': 3e-4},
  'muon': {'name': 'muon', 'layer_decay': 0.8},
}


def losses(name, sizes, steps):
  """Losses of one batch that is seen again and again."""
  mesh = mesh_of(sizes)
  step, state = compiled_step(mesh, rule=FIELDS[name])
  result = []
  for _ in range(steps):
    batch = jax.device_put(tiny_batch(0), batch_sharding(mesh))
    state, metrics = step(state, batch)
    result.append(float(metrics['loss']))
  return result


@pytest.mark.slow
@pytest.mark.parametrize('name', FIELDS)
def test_the_loss_falls_alike_on_one_device_and_on_eight(name):
  one = losses(name, ONE, 30)
  assert one[-1] < 0.6 * one[0]
  np.testing.assert_allclose(losses(name, (2, 2, 2, 1), 4), one[:4], rtol=2e-3)
