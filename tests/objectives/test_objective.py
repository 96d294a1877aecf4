"""An objective sums its terms, and runs no tower that nothing reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.objectives.contrastive import softmax_loss
from clip_jax.objectives.objective import Term, make_objective
from tests.tiny import TINY

PAIRS = 4


@pytest.fixture(scope='module')
def model():
  module = DualEncoder(TINY)
  rng = np.random.default_rng(0)
  inputs = {
    'image': jnp.asarray(rng.normal(size=(PAIRS, 16, 16, 3)), jnp.float32),
    'tokens': jnp.asarray(rng.integers(2, 64, (PAIRS, 8)), jnp.int32),
    'target': jnp.arange(PAIRS, dtype=jnp.float32),
  }
  variables = module.init(jax.random.key(0), inputs['image'], inputs['tokens'])
  return module, variables, inputs


# The square of how far a feature's first number is from a target.
SQUARE = Term(
  pairs=lambda model, towers, inputs: {
    'difference': towers['image_features'][:, 0] - inputs['target']
  },
  loss=lambda pairs, shared, inputs: jnp.mean(pairs['difference'] ** 2),
  outputs=frozenset({'image_features'}),
)


def value(model, objective):
  module, variables, inputs = model
  pairs, shared = module.apply(variables, inputs, method=objective.encode)
  return objective.loss(pairs, shared, inputs)


def test_a_contrastive_loss_alone_is_itself_and_has_no_parts(model):
  module, variables, inputs = model
  loss, parts = value(model, make_objective(softmax_loss))
  expected = softmax_loss(
    *module.apply(variables, inputs['image'], inputs['tokens'])
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert parts == {}


def test_terms_are_weighted_and_named(model):
  objective = make_objective(softmax_loss, {'square': (0.25, SQUARE)}, 0.5)
  loss, parts = value(model, objective)
  assert set(parts) == {'contrastive', 'square'}
  np.testing.assert_allclose(
    loss, 0.5 * parts['contrastive'] + 0.25 * parts['square'], rtol=1e-6
  )
  assert parts['square'] > 0.1


def test_a_tower_that_nothing_reads_is_not_run(model):
  module, variables, inputs = model
  without_text = {
    key: value for key, value in variables['params'].items() if key != 'text'
  }
  objective = make_objective(None, {'square': (1.0, SQUARE)})
  loss, parts = value((module, {'params': without_text}, inputs), objective)
  assert loss > 0.1
  assert parts == {}
