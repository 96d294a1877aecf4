"""AdamW as in the paper, and other rules: what decays, and at which rate."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax.errors import UsageError
from clip_jax.models.counting import abstract_variables
from clip_jax.training.config import check_config
from clip_jax.training.optimizer import (
  decay_mask,
  make_optimizer,
  make_schedule,
)
from clip_jax.training.run_summary import describe_raised_total
from clip_jax.training.update_rules import _muon_axes, stochastic_round
from clip_jax.trees import flat, nested, path_name
from tests.tiny import TINY_RESNET, TINY_SIGLIP, tiny_config
from tests.training.test_step import tiny_module_and_params


def test_decay_is_for_weights_only():
  _, params = tiny_module_and_params()
  mask = jax.tree_util.tree_leaves_with_path(decay_mask(params))
  decayed = {path_name(path) for path, yes in mask if yes}
  kept = {path_name(path) for path, yes in mask if not yes}
  assert all(name.endswith(('kernel', 'embedding')) for name in decayed)
  assert 'text/token_embedding/embedding' in decayed
  assert 'image/transformer/blocks/mlp/up/kernel' in decayed
  assert {'logit_scale', 'image/class_embedding'} <= kept
  assert 'image/transformer/blocks/ln_1/scale' in kept
  assert 'image/transformer/blocks/attention/qkv/bias' in kept


@pytest.mark.parametrize('config', [TINY_RESNET, TINY_SIGLIP])
def test_what_other_towers_add_decays_as_it_should(config):
  params = abstract_variables(config)['params']
  mask = jax.tree_util.tree_leaves_with_path(decay_mask(params))
  decays = {path_name(path): yes for path, yes in mask}
  for name, yes in decays.items():
    assert yes == name.endswith(('kernel', 'embedding')), name
  expected = {
    TINY_RESNET: {
      'image/stem/conv1/kernel': True,
      'image/stage1_0/shortcut_conv/kernel': True,
      'image/attention_pool/kernel': True,
      'image/attention_pool/bias': False,
      'image/stage1_0/bn3/scale': False,
      'image/stage1_0/shortcut_bn/bias': False,
      'image_projection/bias': False,
    },
    TINY_SIGLIP: {
      'image/attention_pool/qkv/kernel': True,
      'image/attention_pool/mlp/up/kernel': True,
      'image/attention_pool/probe': False,
      'image/attention_pool/ln/scale': False,
      'image/patch_embedding/bias': False,
      'text_projection/kernel': True,
      'text_projection/bias': False,
      'logit_bias': False,
    },
  }[config]
  assert {name: decays[name] for name in expected} == expected


def test_schedule_warms_up_and_anneals():
  schedule = make_schedule('cosine', 2.0, warmup_steps=10, total_steps=110)
  np.testing.assert_allclose(schedule(0), 0.2, rtol=1e-6)
  np.testing.assert_allclose(schedule(9), 2.0, rtol=1e-6)
  np.testing.assert_allclose(schedule(10), 2.0, rtol=1e-6)
  np.testing.assert_allclose(schedule(60), 1.0, rtol=1e-6)
  np.testing.assert_allclose(schedule(110), 0.0, atol=1e-6)


@pytest.mark.parametrize('name, middle', [('linear', 1.0), ('constant', 2.0)])
def test_other_schedules(name, middle):
  schedule = make_schedule(name, 2.0, warmup_steps=0, total_steps=100)
  np.testing.assert_allclose(schedule(0), 2.0, rtol=1e-6)
  np.testing.assert_allclose(schedule(50), middle, rtol=1e-6)


@pytest.mark.parametrize(
  'name, warmup, message',
  [
    ('exponential', 0, 'choose one of cosine, linear, constant'),
    ('cosine', 100, 'below total_steps=100'),
    ('cosine', -1, 'at least 0'),
  ],
)
def test_impossible_schedules_are_refused(name, warmup, message):
  with pytest.raises(UsageError, match=message):
    make_schedule(name, 1.0, warmup, 100)


def test_first_update_is_adamw_by_hand():
  """With b1, b2 corrected, the first Adam direction is the gradient's sign."""
  config = tiny_config().optimizer
  config.update(learning_rate=0.1, warmup_steps=0, eps=1e-12)
  config.update(weight_decay=0.5, schedule='constant', clip_norm=0.0)
  optimizer, _ = make_optimizer(10, **config)
  params = {
    'mlp': {'kernel': jnp.array([[2.0, -4.0]]), 'bias': jnp.array([2.0])}
  }
  gradients = jax.tree.map(lambda p: 0.3 * jnp.sign(p), params)
  updates, _ = optimizer.update(gradients, optimizer.init(params), params)
  params = optax.apply_updates(params, updates)['mlp']
  np.testing.assert_allclose(
    params['kernel'], [[2 - 0.1 * (1 + 1.0), -4 + 0.1 * (1 + 2.0)]], rtol=1e-5
  )
  np.testing.assert_allclose(params['bias'], [2 - 0.1], rtol=1e-5)


def test_gradient_is_clipped_by_its_global_norm():
  """Adam hides a constant factor, so the second moment is looked at."""
  config = tiny_config().optimizer
  config.update(clip_norm=1.0, b2=0.0, warmup_steps=0)
  optimizer, _ = make_optimizer(10, **config)
  params = {'kernel': jnp.zeros((2,))}
  state = optimizer.init(params)
  _, state = optimizer.update({'kernel': jnp.array([3.0, 4.0])}, state, params)
  moments = optax.tree.get(state, 'nu')
  np.testing.assert_allclose(moments['kernel'], [0.36, 0.64], rtol=1e-5)


def test_first_moment_may_be_bfloat16():
  config = tiny_config().optimizer
  config.mu_dtype = 'bfloat16'
  optimizer, _ = make_optimizer(1000, **config)
  state = optimizer.init({'kernel': jnp.zeros((2, 2))})
  assert optax.tree.get(state, 'mu')['kernel'].dtype == jnp.bfloat16
  assert optax.tree.get(state, 'nu')['kernel'].dtype == jnp.float32


def test_rounding_by_chance_is_right_on_average():
  x = jnp.full(40_000, 1.0 + 0.3 * 2**-7)  # three tenths between two numbers
  rounded = stochastic_round(x, jax.random.key(0))
  assert rounded.dtype == jnp.bfloat16
  values, counts = np.unique(
    np.asarray(rounded, np.float32), return_counts=True
  )
  np.testing.assert_array_equal(values, [1.0, 1.0 + 2**-7])
  np.testing.assert_allclose(counts[1] / len(x), 0.3, atol=0.02)


@pytest.mark.parametrize('x', [0.0, 1.0, 2.0**-120, 3e38])
def test_what_bfloat16_holds_is_not_rounded(x):
  x = jnp.full(100, x).astype(jnp.bfloat16)
  rounded = stochastic_round(x.astype(jnp.float32), jax.random.key(0))
  np.testing.assert_array_equal(rounded, x)


def second_moment(nu_dtype, gradients):
  """Of one parameter after some updates."""
  options = dict(tiny_config().optimizer, nu_dtype=nu_dtype, b2=0.999)
  optimizer, _ = make_optimizer(100, **options)
  params = {'kernel': jnp.ones(1_000)}
  state = optimizer.init(params)
  update = jax.jit(optimizer.update)
  for gradient in gradients:
    _, state = update({'kernel': jnp.full(1_000, gradient)}, state, params)
  (nu,) = jax.tree.leaves(optax.tree.get(state, 'nu'))
  return nu


def test_a_short_second_moment_follows_the_long_one():
  gradients = np.linspace(0.5, 2.0, 300)
  long = second_moment('float32', gradients)
  short = second_moment('bfloat16', gradients)
  assert short.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.asarray(short, np.float32).mean(), np.mean(long), rtol=0.01
  )


def test_both_moments_in_bfloat16_take_half_the_memory():
  sizes = []
  for dtype in ('float32', 'bfloat16'):
    options = dict(tiny_config().optimizer, mu_dtype=dtype, nu_dtype=dtype)
    optimizer, _ = make_optimizer(100, **options)
    state = jax.eval_shape(optimizer.init, {'kernel': jnp.ones(1_000)})
    sizes.append(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)))
  assert sizes[1] < 0.51 * sizes[0]


@pytest.mark.parametrize(
  ('schedule', 'before', 'total', 'step', 'rates'),
  [
    ('cosine', 10, 20, 10, (0.0, 0.5)),
    ('linear', 10, 20, 5, (0.5, 0.75)),
  ],
)
def test_more_steps_are_said_with_what_they_do_to_the_rate(
  schedule, before, total, step, rates
):
  fields = {'schedule': schedule, 'learning_rate': 1.0, 'warmup_steps': 0}
  said = describe_raised_total(fields, before, total, step)
  assert f'total_steps raised from {before} to {total}' in said
  assert f'at step {step} goes from {rates[0]:.3g} to {rates[1]:.3g}' in said


def test_a_constant_rate_stays():
  fields = {'schedule': 'constant', 'learning_rate': 0.1, 'warmup_steps': 2}
  assert describe_raised_total(fields, 10, 20, 10).endswith('rate stays 0.1.')


# Other rules than Adam.


def first_update(params, gradients, **fields):
  """The updates of a constant rate of 0.1, without a warm-up, and the state."""
  config = tiny_config().optimizer
  config.update(learning_rate=0.1, warmup_steps=0, schedule='constant')
  config.update(fields)
  optimizer, _ = make_optimizer(10, **config)
  return optimizer.update(gradients, optimizer.init(params), params)


def test_the_update_of_lion_by_hand():
  """Lion, arXiv 2302.06675, algorithm 2: the momentum is b2's."""
  params = {'kernel': jnp.array([2.0, -4.0]), 'bias': jnp.array([2.0])}
  gradients = {'kernel': jnp.array([0.3, 7.0]), 'bias': jnp.array([-2.0])}
  updates, state = first_update(
    params, gradients, name='lion', weight_decay=0.5, mu_dtype='bfloat16'
  )
  np.testing.assert_allclose(
    updates['kernel'], [-0.1 * (1 + 1.0), -0.1 * (1 - 2.0)], rtol=1e-6
  )
  np.testing.assert_allclose(updates['bias'], [0.1], rtol=1e-6)
  momentum = optax.tree.get(state, 'mu')['kernel']
  assert momentum.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.float32(momentum), [0.02 * 0.3, 0.02 * 7], rtol=0.01
  )


MATRICES = {
  # Path, shape, and how it is a stack of matrices [matrices, in, out].
  'blocks/attention/qkv/kernel': (
    (2, 12, 3, 2, 4),  # L D 3 N K
    lambda x: np.moveaxis(x, 2, 1).reshape(6, 12, 8),
  ),
  'blocks/attention/out/kernel': (
    (2, 2, 4, 12),  # L N K D
    lambda x: x.reshape(2, 8, 12),
  ),
  'blocks/mlp/up/kernel': ((2, 4, 16), lambda x: x),
  'blocks/mlp/down/kernel': ((2, 16, 4), lambda x: x),
  'attention_pool/qkv/kernel': (
    (12, 3, 2, 4),
    lambda x: np.moveaxis(x, 1, 0).reshape(3, 12, 8),
  ),
  'attention_pool/out/kernel': ((2, 4, 12), lambda x: x.reshape(1, 8, 12)),
  'attention_pool/mlp/up/kernel': ((4, 16), lambda x: x[None]),
  'image/stage1_0/conv2/kernel': (
    (3, 3, 4, 8),
    lambda x: x.reshape(1, 36, 8),
  ),
}


@pytest.mark.parametrize('path', MATRICES)
def test_muon_makes_each_matrix_of_a_layer_orthogonal(path):
  shape, matrices = MATRICES[path]
  rng = np.random.default_rng(0)
  gradient = rng.normal(size=shape)
  if path.startswith('blocks'):  # gradients of layers differ by orders
    gradient[0] *= 1e4
  params = nested({path: jnp.ones(shape)})
  updates, state = first_update(
    params,
    nested({path: jnp.asarray(gradient, jnp.float32)}),
    name='muon',
    weight_decay=0.0,
  )
  update = matrices(np.asarray(flat(updates)[path]))
  rows, columns = update.shape[1:]
  scale = 0.1 * 0.2 * np.sqrt(max(rows, columns))
  values = np.linalg.svd(update / scale, compute_uv=False)
  assert values.min() > 0.4 and values.max() < 1.3, values
  # The root mean square is Adam's, 0.2 times the rate, for any shape.
  size = np.sqrt((update**2).mean())
  np.testing.assert_allclose(size, 0.1 * 0.2, rtol=0.25)
  assert not [name for name in flat(state) if '/nu/' in name]


def test_muon_follows_the_polar_factor_of_the_gradient():
  """Each update is close to -U V^T of its own matrix's gradient."""
  shape, matrices = MATRICES['blocks/attention/qkv/kernel']
  gradient = np.random.default_rng(1).normal(size=shape)
  tree = lambda x: {'blocks': {'attention': {'qkv': {'kernel': x}}}}  # noqa: E731
  updates, _ = first_update(
    tree(jnp.zeros(shape)),
    tree(jnp.asarray(gradient, jnp.float32)),
    name='muon',
  )
  (update,) = jax.tree.leaves(updates)
  for own, one in zip(
    matrices(np.asarray(update)), matrices(gradient), strict=True
  ):
    u, _, v = np.linalg.svd(one, full_matrices=False)
    cosine = -(own * (u @ v)).sum() / np.linalg.norm(own) / np.sqrt(8)
    assert cosine > 0.97


def test_muon_leaves_vectors_and_embeddings_to_adam():
  _, params = tiny_module_and_params()
  gradients = jax.tree.map(lambda p: 0.3 * jnp.ones_like(p), params)
  fields = {'weight_decay': 0.0, 'eps': 1e-12, 'nu_dtype': 'bfloat16'}
  updates, state = first_update(params, gradients, name='muon', **fields)
  by_adam, _ = first_update(params, gradients, **fields)
  matrices = []
  for name, update in flat(updates).items():
    if np.allclose(update, flat(by_adam)[name], rtol=1e-3):
      continue
    matrices.append(name.removeprefix('image/').removeprefix('text/'))
  assert sorted(matrices) == sorted(2 * [
    f'transformer/blocks/{name}/kernel'
    for name in ('attention/qkv', 'attention/out', 'mlp/up', 'mlp/down')
  ])  # fmt: skip
  moments = [name for name in flat(state) if '/nu/' in name]
  assert not [name for name in moments if name.endswith('mlp/up/kernel')]
  assert any(name.endswith('token_embedding/embedding') for name in moments)


def test_every_matrix_of_the_blocks_is_muons():
  for config in (TINY_RESNET, TINY_SIGLIP):
    for name, leaf in flat(abstract_variables(config)['params']).items():
      is_hidden = name.endswith('kernel') and re.search(
        'blocks|attention_pool|stage|stem/conv[23]', name
      )
      assert bool(_muon_axes(name)) == bool(is_hidden), (name, leaf.shape)


@pytest.mark.parametrize(
  'fields, message',
  [
    (
      {'name': 'adam'},
      "optimizer.name='adam': choose one of adamw, lion",
    ),
    ({'name': 'lion', 'nu_dtype': 'bfloat16'}, 'optimizer.nu_dtype='),
    ({'name': 'lion', 'eps': 1e-8}, 'set it to its default, 1e-06'),
    ({'momentum': 0.9}, 'optimizer.momentum=0.9 does nothing'),
    ({'name': 'muon', 'momentum': 1.0}, 'at least 0 and below 1'),
    ({'layer_decay': 0.0}, 'optimizer.layer_decay=0.0 must be above 0'),
    ({'ema_decay': 1.0}, 'optimizer.ema_decay=1.0 must be at least 0'),
  ],
)
def test_what_does_nothing_or_cannot_be_is_refused(fields, message):
  config = tiny_config()
  config.optimizer.update(fields)
  with pytest.raises(UsageError, match=re.escape(message)) as caught:
    check_config(config)
  assert '\n' not in str(caught.value)


def test_the_state_of_adamw_is_as_old_checkpoints_have_it():
  """Orbax compares structures, of states without arrays too."""
  fields = dict(tiny_config().optimizer)
  state = make_optimizer(10, **fields)[0].init({'kernel': jnp.ones(2)})
  clip, adam, decay, rate = state
  assert isinstance(clip, optax.EmptyState)
  assert isinstance(adam, optax.ScaleByAdamState)
  assert decay == optax.MaskedState(optax.EmptyState())
  assert isinstance(rate, optax.ScaleByScheduleState)


# Groups.


def test_rates_and_decays_are_those_of_each_layer():
  _, params = tiny_module_and_params()
  params = jax.tree.map(jnp.ones_like, params)
  rows = (
    ('image/transformer/blocks[0]', 0.0),
    ('image/transformer/blocks', 0.5, 0.0),
    ('text/transformer/blocks[0]', 0.25),
    ('*', 1.0),
  )
  config = dict(tiny_config().optimizer, groups=rows, weight_decay=0.5)
  config.update(learning_rate=0.1, warmup_steps=0, schedule='constant')
  config['eps'] = 1e-12
  optimizer, _ = make_optimizer(10, **config)
  part = optimizer.partition(params).trained(params)
  updates, _ = optimizer.update(part, optimizer.init(params), params)
  updates = flat(updates)
  for name, expected in {
    'image/transformer/blocks/mlp/up/kernel': [0.05],
    'image/transformer/blocks/mlp/up/bias': [0.05],
    'text/transformer/blocks/mlp/up/kernel': [0.0375, 0.15],
    'text/transformer/blocks/mlp/up/bias': [0.025, 0.1],
    'text_projection/kernel': 0.15,
    'logit_scale': 0.1,
  }.items():
    update = np.asarray(updates[name])
    expected = np.reshape(expected, (-1, *(1,) * (update.ndim - 1)))
    np.testing.assert_allclose(
      update,
      np.broadcast_to(-expected, update.shape or (1,)).reshape(update.shape),
      rtol=1e-5,
      err_msg=name,
    )


def test_clipping_counts_the_gradient_of_what_is_trained():
  rows = (('frozen', 0.0), ('*', 1.0))
  config = dict(tiny_config().optimizer, groups=rows, clip_norm=1.0, b2=0.0)
  optimizer, _ = make_optimizer(10, **{**config, 'warmup_steps': 0})
  params = {'frozen': jnp.zeros(3), 'kernel': jnp.zeros(2)}
  gradients = {'kernel': jnp.array([3.0, 4.0])}
  _, state = optimizer.update(gradients, optimizer.init(params), params)
  moments = optax.tree.get(state, 'nu')
  np.testing.assert_allclose(moments['kernel'], [0.36, 0.64], rtol=1e-5)
  assert set(moments) == {'kernel'}
