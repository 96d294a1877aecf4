"""Captioning and bag of words against formulas of their own, in float64."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from scipy.special import erf

from clip_jax.models.config import CLIPConfig
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.objectives.contrastive import softmax_loss
from clip_jax.objectives.objective import make_objective
from clip_jax.objectives.registry import make_loss, make_term
from clip_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh
from clip_jax.training.gradients import (
  micro_batch_gradients,
  whole_batch_gradients,
)
from clip_jax.trees import flat, nested
from tests.tiny import TINY_BAG, TINY_CAPTIONER, TINY_COCA, TINY_PREFIXED

PAIRS, LENGTH, END = 16, 8, 1
ADDED = 0.7  # the weight of captioning beside the contrastive loss


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def inputs_of(config: CLIPConfig):
  """Captions of all lengths, some of whose words come twice."""
  rng = np.random.default_rng(0)
  size = config.image.image_size
  tokens = rng.integers(2, 12, (PAIRS, LENGTH), dtype=np.int32)
  for row, end in zip(tokens, [*range(LENGTH)] * 2, strict=True):
    row[end] = END
    row[end + 1 :] = rng.choice([0, END, 5])  # whatever a tokenizer pads with
  images = rng.normal(size=(PAIRS, size, size, 3))
  return {'image': jnp.asarray(images), 'tokens': jnp.asarray(tokens)}


@functools.cache
def params_of(config: CLIPConfig):
  module, inputs = DualEncoder(config, jnp.float64), inputs_of(config)
  variables = jax.jit(module.init)(
    jax.random.key(0), inputs['image'], inputs['tokens']
  )
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: jnp.asarray(x + 0.1 * rng.normal(size=x.shape), jnp.float64),
    variables['params'],
  )


def objective_of(config, mesh):
  if config is TINY_COCA:
    loss = make_loss('softmax', 'all_gather', mesh, BATCH_AXES, 1)
    term = make_term('captioning', config)
    return make_objective(loss, {'captioning': (ADDED, term)})
  name = 'bag_of_words' if config is TINY_BAG else 'captioning'
  return make_objective(None, {name: (1.0, make_term(name, config))})


@functools.cache
def gradients(config, sizes=(1, 1, 1), micro_batch=0):
  """The loss, and all gradients by name."""
  mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
  objective = objective_of(config, mesh)
  module = DualEncoder(config, jnp.float64)

  def encode(params, batch_stats, inputs):
    return module.apply(
      {'params': params}, inputs, method=objective.encode
    ), batch_stats

  if micro_batch:
    compute = micro_batch_gradients(encode, objective.loss, mesh, micro_batch)
  else:
    compute = whole_batch_gradients(encode, objective.loss, mesh)
  inputs = jax.device_put(inputs_of(config), batch_sharding(mesh))
  (loss, _), grads, _ = jax.jit(compute)(params_of(config), {}, inputs)
  return float(loss), {k: np.asarray(v) for k, v in flat(grads).items()}


# The same in plain numpy, a pair and a token at a time.


def layer_norm(x, params, eps=1e-5):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
  return x * params['scale'] + params['bias']


def mlp(x, params):
  h = x @ params['up']['kernel'] + params['up']['bias']
  h = h * 0.5 * (1 + erf(h / np.sqrt(2)))
  return h @ params['down']['kernel'] + params['down']['bias']


def attend(query, keys, values):
  """One head: what a query [K] reads."""
  return scipy.special.softmax(keys @ query / np.sqrt(len(query))) @ values


def decode(config, params, tokens, image_tokens, text_tokens):
  """The log-probability of each token of one caption."""
  c = config.decoder
  if text_tokens is None:
    text_tokens = params['token_embedding']['embedding'][tokens]
  x = np.concatenate([params['start_embedding'][None], text_tokens[:-1]])
  if c.reads != 'text_tower':
    x = x + params['position_embedding'][: len(x)]
  first = 0
  if c.reads == 'image_prefix':
    first = len(image_tokens)
    x = np.concatenate([mlp(image_tokens, params['projector']), x])
  for i in range(c.depth):
    p = jax.tree.map(lambda leaf, i=i: leaf[i], params['transformer']['blocks'])

    def project(x, part, name, index, head, p=p):
      kernel, bias = p[part][name]['kernel'], p[part][name]['bias']
      return x @ kernel[:, index, head] + bias[index, head]

    def add_attention(x, part, per_head, p=p):
      """`per_head` gives (query, keys, values) of a head for each position."""
      out = p[part]['out']
      for t in range(len(x)):
        heads = [attend(*per_head(head, t)) for head in range(c.heads)]
        yield x[t] + np.einsum('nk,nkd->d', heads, out['kernel']) + out['bias']

    h = layer_norm(x, p['ln_1'])

    def own(head, t, h=h, project=project):
      q, k, v = (project(h, 'attention', 'qkv', j, head) for j in range(3))
      end = max(t + 1, first)  # a prefix sees itself, all of it
      return q[t], k[:end], v[:end]

    x = np.stack(list(add_attention(x, 'attention', own)))
    h = layer_norm(x, p['ln_cross']) if not first else x

    def of_image(head, t, h=h, project=project):
      q = project(h, 'cross_attention', 'q', 0, head)
      k, v = (
        project(image_tokens, 'cross_attention', 'kv', j, head)
        for j in range(2)
      )
      return q[t], k, v

    if not first:
      x = np.stack(list(add_attention(x, 'cross_attention', of_image)))
    x = x + mlp(layer_norm(x, p['ln_2']), p['mlp'])
  x = layer_norm(x, params['ln_final'])[first:]
  logits = x @ params['logits']['kernel']
  return scipy.special.log_softmax(logits, -1)[np.arange(len(x)), tokens]


def expected_loss(config, params):
  """By hand, from what the towers give for these parameters."""
  inputs = inputs_of(config)
  names = frozenset(
    ('image_tokens', 'text_tokens', 'pooled_image', 'image_features',
     'text_features')
  )  # fmt: skip
  towers = jax.tree.map(np.asarray, towers_of(config)(params, inputs, names))
  decoder = jax.tree.map(np.asarray, params['decoder'])
  total, count = 0.0, 0
  for i, row in enumerate(np.asarray(inputs['tokens'])):
    end = list(row).index(END)
    if config is TINY_BAG:
      words = sorted(set(row[:end].tolist()))
      if words:
        logits = towers['pooled_image'][i] @ decoder['logits']['kernel']
        log_p = scipy.special.log_softmax(logits + decoder['logits']['bias'])
        total, count = total - np.mean(log_p[words]), count + 1
    else:
      reads = config.decoder.reads == 'text_tower'
      states = towers['text_tokens'][i] if reads else None
      each = decode(config, decoder, row, towers['image_tokens'][i], states)
      total, count = total - each[: end + 1].sum(), count + end + 1
  if config is not TINY_COCA:
    return total / count
  contrastive = softmax_loss(
    jnp.asarray(towers['image_features']),
    jnp.asarray(towers['text_features']),
    jnp.exp(params['logit_scale']),
  )
  return float(contrastive) + ADDED * total / count


@functools.cache
def towers_of(config):
  module = DualEncoder(config, jnp.float64)

  @functools.partial(jax.jit, static_argnums=2)
  def towers(params, inputs, names):
    return module.apply(
      {'params': params},
      inputs['image'],
      inputs['tokens'],
      names,
      method='outputs',
    )

  return towers


CONFIGS = {
  'coca': TINY_COCA,
  'captioner': TINY_CAPTIONER,
  'prefixed': TINY_PREFIXED,
  'bag': TINY_BAG,
}
each_config = pytest.mark.parametrize('name', CONFIGS)


@each_config
def test_the_loss_is_that_of_the_formula(name):
  config = CONFIGS[name]
  loss, _ = gradients(config)
  assert loss == pytest.approx(expected_loss(config, params_of(config)), 1e-10)


@pytest.mark.slow
@each_config
def test_gradients_are_those_of_the_formula(name):
  """The slope of the formula along a random direction in each parameter."""
  config = CONFIGS[name]
  params, (_, slopes) = flat(params_of(config)), gradients(config)
  rng = np.random.default_rng(3)
  for path, value in params.items():
    direction = rng.normal(size=value.shape)
    step = 1e-6
    low, high = (
      expected_loss(
        config, nested({**params, path: value + sign * step * direction})
      )
      for sign in (-1, 1)
    )
    slope = np.sum(slopes[path] * direction)
    np.testing.assert_allclose(
      slope, (high - low) / (2 * step), rtol=1e-6, atol=1e-8, err_msg=path
    )
  trained = {'image', 'decoder'} | ({'text'} if name == 'coca' else set())
  for part in trained:  # there is something to compare
    of_part = [v for k, v in slopes.items() if k.startswith(f'{part}/')]
    assert max(np.abs(v).max() for v in of_part) > 1e-3
  if name != 'coca':
    assert not any(
      v.any() for k, v in slopes.items() if k.startswith(('text', 'logit'))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
  'name, sizes, micro_batch',
  [
    ('captioner', (2, 2, 2), 0),
    ('captioner', (1, 1, 1), 4),
    ('prefixed', (2, 2, 2), 0),
    ('prefixed', (8, 1, 1), 8),
    ('coca', (2, 2, 2), 8),
    ('bag', (8, 1, 1), 8),
    ('bag', (2, 2, 2), 0),
  ],
)
def test_devices_and_micro_batches_change_nothing(name, sizes, micro_batch):
  config = CONFIGS[name]
  loss, expected = gradients(config)
  other, slopes = gradients(config, sizes, micro_batch)
  np.testing.assert_allclose(other, loss, rtol=1e-10)
  assert set(slopes) == set(expected)
  for path, gradient in expected.items():
    np.testing.assert_allclose(
      slopes[path], gradient, rtol=1e-8, atol=1e-11, err_msg=path
    )
