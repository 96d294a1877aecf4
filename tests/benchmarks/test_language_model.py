"""The language model of the roofline's check, and its table."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.benchmarks.language_model import (
  LanguageModel,
  loss,
  model_flops,
  shapes,
)
from clip_jax.benchmarks.roofline import HEAD, MAXTEXT, Row
from clip_jax.planning import child, hlo
from clip_jax.planning.costs import operations

TINY = LanguageModel('v5e:2x2', 0.5, 64, 96, depth=3, heads=2, batch=2)
TINY = dataclasses.replace(TINY, length=16)


def attend(q, k, v):
  """Returns causal attention, computed by its formula."""
  logits = jnp.einsum('BNLK,BNMK->BNLM', q, k)
  causal = jnp.tril(jnp.ones(logits.shape[-2:], bool))
  weights = jax.nn.softmax(jnp.where(causal, logits, -jnp.inf))
  return jnp.einsum('BNLM,BNMK->BNLK', weights, v)


def tiny_loss(model, parameters, tokens, attention=attend):
  return loss(model, attention, lambda x, *axes: x, parameters, tokens)


def parameters_of(model):
  random = np.random.default_rng(0)
  return {
    name: jnp.asarray(random.normal(0, 0.02, shape), jnp.float32)
    for name, (shape, _) in shapes(model).items()
  }


@pytest.mark.parametrize('name', MAXTEXT)
def test_the_models_have_as_many_parameters_as_their_names_say(name):
  model = MAXTEXT[name]
  count = sum(math.prod(shape) for shape, _ in shapes(model).values())
  [billions] = [w for w in name.replace(',', '').split() if w.endswith('B')]
  assert count / 1e9 == pytest.approx(int(billions[:-1]), rel=0.02)


def test_an_untrained_model_knows_no_token():
  tokens = jnp.arange(32).reshape(2, 16)
  value = tiny_loss(TINY, parameters_of(TINY), tokens)
  assert value == pytest.approx(math.log(32_000), rel=0.01)


def test_remat_costs_another_forward_pass():
  tokens = jnp.zeros((2, 16), jnp.int32)
  products = {}
  for remat in ('minimal', 'full'):
    model = dataclasses.replace(TINY, remat=remat)
    # Attention passes values on, so that products with weights are all.
    gradient = jax.grad(
      lambda p, m=model: tiny_loss(m, p, tokens, lambda q, k, v: q + k + v)
    )
    compiled = jax.jit(gradient).lower(parameters_of(model)).compile()
    done = operations(hlo.parse(compiled.as_text() or ''))
    products[remat] = sum(one.flops * one.times for one in done)
  layers = [s for n, (s, _) in shapes(TINY).items() if n.startswith('layers/')]
  weights = sum(math.prod(shape) for shape in layers if len(shape) > 2)
  forward = 2 * weights * tokens.size
  # The backward pass does not read the result of a block's last product, which
  # is therefore not computed again.
  last = 2 * math.prod(shapes(TINY)['layers/down'][0]) * tokens.size
  assert products['full'] - products['minimal'] == forward - last
  outside = 2 * 64 * 32_000 * tokens.size
  assert products['minimal'] == pytest.approx(3 * forward + 5 * outside)


def test_flops_of_a_model_by_hand():
  weights = 3 * (4 * 64 * 256 + 3 * 64 * 96 + 2 * 64) + 2 * 32_000 * 64 + 64
  attention = 3 * 6 * 2 * 128 * 16 * 32
  assert model_flops(TINY) == 6 * weights * 32 + attention


def test_a_row_has_the_cells_of_its_head():
  row = str(Row('one', 'v5e:2x2', 0.611, 10.0, 12.0, 9.5))
  assert row.endswith('| 61.1% | 10.00 s | 12.00 s | 1.20 | 9.50 s | 0.95 |')
  assert {line.count('|') for line in (row, *HEAD.splitlines())} == {9}


ESTIMATE = """
import dataclasses, json, sys
from clip_jax.benchmarks.language_model import LanguageModel
from clip_jax.benchmarks.roofline import estimated
model = LanguageModel('v5e:2x2', 0.5, 256, 512, depth=2, heads=1, batch=1)
model = dataclasses.replace(model, length=1024)
print(json.dumps(dataclasses.asdict(estimated(model))))
"""


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='libtpu, of the extra `plan`, is not installed',
)
def test_a_small_model_is_compiled_and_estimated():
  inherited = {k: v for k, v in os.environ.items() if k not in child.UNSET}
  run = subprocess.run(
    [sys.executable, '-c', ESTIMATE],
    env={**inherited, **child.ENVIRONMENT},
    capture_output=True,
    text=True,
    check=False,
  )
  assert run.returncode == 0, run.stderr[-2_000:]
  result = json.loads(run.stdout)
  assert 0 < result['step_seconds_by_shape'] < result['step_seconds'] < 0.1
