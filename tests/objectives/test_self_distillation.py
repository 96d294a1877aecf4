"""Self-distillation against formulas of its own in float64, and on devices."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from scipy.special import erf

from clip_jax.errors import UsageError
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.models.self_distillation import HeadConfig, SelfDistilledEncoder
from clip_jax.objectives.objective import make_objective
from clip_jax.objectives.self_distillation import (
  Prototypes,
  Temperatures,
  check_fields,
  consistency_loss,
  masked_prediction,
  self_distillation,
)
from clip_jax.objectives.views import crop, draw_views
from clip_jax.parallel.mesh import batch_sharding, make_mesh
from clip_jax.training.gradients import (
  micro_batch_gradients,
  whole_batch_gradients,
)
from clip_jax.trees import flat
from configs import base
from tests.objectives.cases import unit_rows
from tests.tiny import TINY, TINY_SIGLIP

PAIRS, VIEWS, LOCAL = 16, 3, 16
WEIGHTS = {'self_distillation': 0.7, 'masked_prediction': 1.3}
HEAD = HeadConfig(hidden=12, features=6, prototypes=20)
FIELDS = types.SimpleNamespace(
  local_views=VIEWS,
  local_size=LOCAL,
  masked=0.5,
  student_temperature=0.1,
  teacher_temperature=0.04,
)
# With a class token and CLIP's first LayerNorm, and with neither of them.
MODELS = {
  name: dataclasses.replace(
    config,
    image=dataclasses.replace(config.image, image_size=32, depth=1),
    text=dataclasses.replace(config.text, depth=1),
  )
  for name, config in (('clip', TINY), ('siglip', TINY_SIGLIP))
}


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@functools.cache
def taught():
  """A teacher's prototypes and centres, of each head."""
  rng = np.random.default_rng(5)
  return {
    name: Prototypes(
      jnp.asarray(rng.normal(size=(HEAD.features, HEAD.prototypes))),
      jnp.asarray(0.1 * rng.normal(size=HEAD.prototypes)),
    )
    for name in ('image_head', 'patch_head')
  }


@functools.cache
def inputs_of(name):
  """Images, what is drawn of them, and a teacher's features."""
  tower, rng = MODELS[name].image, np.random.default_rng(0)
  draws = draw_views(jax.random.key(0), PAIRS, tower, FIELDS, tuple(WEIGHTS))
  patches = draws['masked_patches'].shape[1]
  features = unit_rows(PAIRS * (1 + patches), HEAD.features)[0]
  return {
    'image': jnp.asarray(rng.normal(size=(PAIRS, 32, 32, 3))),
    'tokens': jnp.ones((PAIRS, 8), jnp.int32),
    'teacher_image_head': features[:PAIRS],
    'teacher_patch_head': features[PAIRS:].reshape(PAIRS, patches, -1),
    **draws,
  }


@functools.cache
def module_and_params(name):
  module = SelfDistilledEncoder(MODELS[name], jnp.float64, 'none', HEAD)
  inputs = inputs_of(name)
  variables = jax.jit(module.init)(
    jax.random.key(0), inputs['image'], inputs['tokens']
  )
  rng = np.random.default_rng(1)
  return module, jax.tree.map(
    lambda x: jnp.asarray(x + 0.2 * rng.normal(size=x.shape), jnp.float64),
    variables['params'],
  )


@functools.cache
def gradients(name, devices=1, micro_batch=0):
  """The parts of the loss, and all gradients by name."""
  module, params = module_and_params(name)
  tower, prototypes = MODELS[name].image, taught()
  mesh = make_mesh(devices=jax.devices()[:devices])
  terms = {
    'self_distillation': self_distillation(
      FIELDS, tower, prototypes['image_head'], jnp.float64
    ),
    'masked_prediction': masked_prediction(
      FIELDS, tower, prototypes['patch_head'], jnp.float64
    ),
  }
  objective = make_objective(
    None, {term: (WEIGHTS[term], terms[term]) for term in terms}
  )

  def encode(params, batch_stats, inputs):
    return module.apply(
      {'params': params}, inputs, method=objective.encode
    ), batch_stats

  if micro_batch:
    compute = micro_batch_gradients(encode, objective.loss, mesh, micro_batch)
  else:
    compute = whole_batch_gradients(encode, objective.loss, mesh)
  inputs = jax.device_put(inputs_of(name), batch_sharding(mesh))
  (loss, parts), grads, _ = jax.jit(compute)(params, {}, inputs)
  parts = {'loss': float(loss), **{k: float(v) for k, v in parts.items()}}
  return parts, {k: np.asarray(v) for k, v in flat(grads).items()}


# The same once more: heads and losses in numpy, a view or a patch at a time,
# and the tower in other ways.


def head_of(params, name, x):
  """Unit features of rows, and the prototypes of unit length."""
  own = jax.tree.map(np.asarray, params['self_distillation'][name])
  for layer in ('up', 'middle'):
    x = x @ own[layer]['kernel'] + own[layer]['bias']
    x = x * 0.5 * (1 + erf(x / np.sqrt(2)))
  x = x @ own['down']['kernel'] + own['down']['bias']
  columns = own['prototypes'] / np.linalg.norm(own['prototypes'], axis=0)
  return x / np.linalg.norm(x, axis=-1, keepdims=True), columns


def cross_entropy(ours, columns, theirs, prototypes):
  """Of one view: -sum of p_teacher * log p_student."""
  other = np.asarray(prototypes.columns)
  other = other / np.linalg.norm(other, axis=0)
  target = scipy.special.softmax(
    (theirs @ other - np.asarray(prototypes.centre)) / 0.04
  )
  return -np.sum(target * scipy.special.log_softmax(ours @ columns / 0.1))


@functools.cache
def local_tower(name):
  """The tower as one for small images: the pooled vector of views."""
  config = MODELS[name]
  small = dataclasses.replace(config.image, image_size=LOCAL)
  module = DualEncoder(dataclasses.replace(config, image=small), jnp.float64)

  @jax.jit
  def pooled(params, images):
    table = params['image']['position_embedding']
    first = len(table) - 16
    grid = table[first:].reshape(4, 4, -1)
    resized = jax.image.resize(grid, (2, 2, grid.shape[-1]), 'linear')
    table = jnp.concatenate([table[:first], resized.reshape(4, -1)])
    image = {**params['image'], 'position_embedding': table}
    outputs = module.apply(
      {'params': {**params, 'image': image}},
      images,
      jnp.zeros((0, 0), jnp.int32),
      frozenset({'pooled_image'}),
      method='outputs',
    )
    return outputs['pooled_image']

  return pooled


@functools.cache
def masked_tower(name):
  """The tokens of images of whose patches some are the mask token."""
  config = MODELS[name]
  tower = config.image
  module = DualEncoder(config, jnp.float64)

  def from_embedding(model, x):
    if tower.pre_norm:
      x = model.image.ln_pre(x)
    return model.image.ln_post(model.image.transformer(x))

  @jax.jit
  def tokens(params, images, hidden):
    own = params['image']
    patches = images.reshape(-1, 4, 8, 4, 8, 3).swapaxes(2, 3)
    x = jnp.einsum(
      'bijhwc,hwcd->bijd', patches, own['patch_embedding']['kernel']
    ).reshape(-1, 16, tower.width)
    if tower.patch_bias:
      x = x + own['patch_embedding']['bias']
    token = params['self_distillation']['mask_embedding']
    x = jnp.where(hidden[..., None], token, x)
    if tower.class_token:
      first = jnp.broadcast_to(own['class_embedding'], (len(x), 1, tower.width))
      x = jnp.concatenate([first, x], axis=1)
    x = x + own['position_embedding']
    return module.apply({'params': params}, x, method=from_embedding)

  return tokens


def expected_loss(name, params):
  """By hand, pair by pair."""
  inputs, prototypes = inputs_of(name), taught()
  losses = {'self_distillation': [], 'masked_prediction': []}
  for v in range(VIEWS):
    views = crop(inputs['image'], inputs['local_crops'][:, v], LOCAL)
    pooled = np.asarray(local_tower(name)(params, views))
    features, columns = head_of(params, 'image_head', pooled)
    for ours, theirs in zip(
      features, np.asarray(inputs['teacher_image_head']), strict=True
    ):
      losses['self_distillation'].append(
        cross_entropy(ours, columns, theirs, prototypes['image_head'])
      )
  at = np.asarray(inputs['masked_patches'])
  hidden = np.zeros((PAIRS, 16), bool)
  np.put_along_axis(hidden, at, True, axis=1)
  views = crop(inputs['image'], inputs['global_crop'], 32)
  tokens = np.asarray(masked_tower(name)(params, views, jnp.asarray(hidden)))
  tokens = tokens[:, -16:]
  for i, row in enumerate(at):
    features, columns = head_of(params, 'patch_head', tokens[i, row])
    for ours, theirs in zip(
      features, np.asarray(inputs['teacher_patch_head'][i]), strict=True
    ):
      losses['masked_prediction'].append(
        cross_entropy(ours, columns, theirs, prototypes['patch_head'])
      )
  parts = {term: float(np.mean(each)) for term, each in losses.items()}
  return {'loss': sum(WEIGHTS[k] * v for k, v in parts.items()), **parts}


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('devices', [1, 8])
def test_the_loss_is_the_formula(name, devices):
  parts, _ = gradients(name, devices)
  expected = expected_loss(name, module_and_params(name)[1])
  assert parts.keys() == expected.keys()
  for part, value in expected.items():
    np.testing.assert_allclose(parts[part], value, rtol=1e-9, err_msg=part)


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('devices', [1, 8])
def test_the_gradient_is_the_slope_of_the_formula(name, devices):
  _, params = module_and_params(name)
  _, found = gradients(name, devices)
  trained = {k for k in flat(params) if k.startswith(('image/', 'self_'))}
  assert trained == {k for k, grad in found.items() if np.abs(grad).max() > 0}
  rng = np.random.default_rng(2)
  step = 1e-6
  for _ in range(2):
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    slope = sum(
      np.sum(found[k] * moved) for k, moved in flat(direction).items()
    )
    high, low = (
      expected_loss(
        name,
        jax.tree.map(lambda x, d, s=sign: x + s * step * d, params, direction),
      )['loss']
      for sign in (1, -1)
    )
    np.testing.assert_allclose(slope, (high - low) / (2 * step), rtol=1e-6)


@pytest.mark.parametrize('devices, micro_batch', [(1, 4), (8, 8)])
def test_micro_batches_are_exact(devices, micro_batch):
  whole, parts = (
    gradients('siglip', 1),
    gradients('siglip', devices, micro_batch),
  )
  for ours, theirs in zip(parts, whole, strict=True):
    for key, value in theirs.items():
      np.testing.assert_allclose(ours[key], value, rtol=1e-9, atol=1e-11)


def test_a_student_that_is_sure_of_the_teachers_answer_has_least_loss():
  """The cross-entropy is the teacher's entropy where both agree."""
  features = unit_rows(4, HEAD.features)[0][:, None]
  columns = taught()['image_head'].columns
  same = Prototypes(columns, jnp.zeros(HEAD.prototypes))
  alike = consistency_loss(
    features, columns, features, same, Temperatures(0.1, 0.1), jnp.float64
  )
  directions = np.asarray(columns) / np.linalg.norm(columns, axis=0)
  p = scipy.special.softmax(np.asarray(features[:, 0]) @ directions / 0.1, -1)
  entropy = scipy.special.entr(p).sum(-1)
  np.testing.assert_allclose(alike, entropy, rtol=1e-12)
  other = consistency_loss(
    -features, columns, features, same, Temperatures(0.1, 0.1), jnp.float64
  )
  assert (np.asarray(other) > entropy + 0.1).all()


def test_what_is_hidden_is_not_seen():
  module, params = module_and_params('siglip')
  inputs = inputs_of('siglip')
  images, at = inputs['image'], inputs['masked_patches']

  def features(images, masked):
    return module.apply(
      {'params': params}, images, ('patch_head',), at, masked,
      method='view_features',
    )['patch_head']  # fmt: skip

  row, column = divmod(int(at[0, 0]), 4)
  pixels = images.at[0, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
  changed = pixels.set(9.0)
  np.testing.assert_array_equal(features(images, True), features(changed, True))
  assert (features(images, False) != features(changed, False)).any()


@pytest.mark.parametrize(
  'field, value, words',
  [
    ('begin', 1.0, 'at least 0 and below 1'),
    ('masked', 0.0, 'above 0 and below 1'),
    ('teacher_decay', 1.0, 'at least 0 and below 1'),
    ('centre_decay', -0.1, 'at least 0 and below 1'),
    ('student_temperature', 0.0, 'above 0'),
    ('local_views', 0, 'at least 1'),
    ('prototypes', 1, 'at least 2'),
  ],
)
def test_impossible_fields_are_refused_by_name(field, value, words):
  fields = base.get_config().objective.self_distillation
  check_fields(fields)
  fields[field] = value
  message = f'objective.self_distillation.{field}={value} must be {words}.'
  with pytest.raises(UsageError) as caught:
    check_fields(fields)
  assert str(caught.value) == message
