"""Micro-batches give the gradients of the whole batch, for every parameter."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UsageError
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.objectives.distillation import (
  distillation_term,
  teacher_arrays,
)
from clip_jax.objectives.objective import make_objective
from clip_jax.objectives.registry import make_loss
from clip_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh
from clip_jax.training.config import check_micro_batch
from clip_jax.training.gradients import (
  for_short_texts,
  micro_batch_gradients,
  text_lengths,
  whole_batch_gradients,
)
from clip_jax.training.patch_dropout import draw_patches
from clip_jax.training.state import variables_of
from clip_jax.trees import flat
from tests.tiny import TINY, TINY_RESNET, TINY_SIGLIP

BATCH = 16


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def encode_with(module, objective):
  def encode(params, batch_stats, inputs):
    outputs, updated = module.apply(
      variables_of(params, batch_stats),
      inputs,
      method=objective.encode,
      mutable='batch_stats',
    )
    return outputs, updated.get('batch_stats', {})

  return encode


def inputs_of(config, patch_dropout=0.0):
  rng = np.random.default_rng(0)
  size = config.image.image_size
  tokens = rng.integers(2, 64, (BATCH, 8), dtype=np.int32)
  tokens[:, -1] = 1
  inputs = {
    'image': jnp.asarray(rng.normal(size=(BATCH, size, size, 3))),
    'tokens': jnp.asarray(tokens),
  }
  if patch_dropout:
    inputs['kept_patches'] = draw_patches(
      jax.random.key(1), inputs['image'], config.image, patch_dropout
    )
  return inputs


def variables_with_noise(config, inputs):
  variables = DualEncoder(config).init(
    jax.random.key(0), inputs['image'][:1], inputs['tokens'][:1]
  )
  rng = np.random.default_rng(2)
  return jax.tree.map(
    lambda x: jnp.asarray(x + 0.05 * rng.normal(size=x.shape), jnp.float64),
    variables['params'],
  ), variables.get('batch_stats', {})


def teacher_features():
  """Returns what two teachers say of the pairs, by its names in a batch."""
  rng, arrays = np.random.default_rng(3), {}
  for teacher, width in enumerate((8, 24)):
    for name in teacher_arrays(teacher):
      rows = rng.normal(size=(BATCH, width))
      rows /= np.linalg.norm(rows, axis=1, keepdims=True)
      arrays[name] = jnp.asarray(rows)
  return arrays


def both_ways(
  config,
  sizes,
  micro_batch,
  form,
  objective='softmax',
  patch_dropout=0.0,
  teacher_scales=(),
):
  """Loss, gradients and statistics of the whole batch and in micro-batches."""
  mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
  inputs, terms = inputs_of(config, patch_dropout), {}
  params, batch_stats = variables_with_noise(config, inputs)
  if teacher_scales:
    inputs |= teacher_features()
    term = distillation_term(teacher_scales, form, mesh, BATCH_AXES, 2)
    terms['distillation'] = 3.0, term
  inputs = jax.device_put(inputs, batch_sharding(mesh))
  loss = make_loss(objective, form, mesh, BATCH_AXES, 2)
  minimized = make_objective(loss, terms)
  encode = encode_with(DualEncoder(config, jnp.float64), minimized)
  return [
    jax.jit(gradients)(params, batch_stats, inputs)
    for gradients in (
      whole_batch_gradients(encode, minimized.loss, mesh),
      micro_batch_gradients(encode, minimized.loss, mesh, micro_batch),
    )
  ]


@pytest.mark.slow
@pytest.mark.parametrize(
  'config, objective, form, sizes, micro_batch, patch_dropout',
  [
    (TINY, 'softmax', 'dense', (1, 1, 1), 4, 0.0),
    (TINY, 'softmax', 'all_gather', (1, 1, 1), 2, 0.5),
    (TINY, 'softmax', 'chunked', (2, 2, 1), 8, 0.5),
    (TINY_SIGLIP, 'sigmoid', 'ring', (2, 1, 2), 4, 0.0),
  ],
)
def test_micro_batches_equal_the_whole_batch(
  config, objective, form, sizes, micro_batch, patch_dropout
):
  whole, split = both_ways(
    config, sizes, micro_batch, form, objective, patch_dropout
  )
  np.testing.assert_allclose(split[0][0], whole[0][0], rtol=1e-10)
  expected, result = flat(whole[1]), flat(split[1])
  assert set(result) == set(expected)
  for name, gradient in expected.items():
    np.testing.assert_allclose(
      result[name], gradient, rtol=1e-8, atol=1e-11, err_msg=name
    )
  learned = ['logit_scale']
  learned += ['logit_bias'] if objective == 'sigmoid' else []
  for name in learned:  # there is something to compare
    assert abs(expected[name]) > 1e-3


@pytest.mark.slow
def test_distillation_is_the_same_in_micro_batches_and_on_any_devices():
  scales = 30.0, 80.0
  results = [
    *both_ways(TINY, (1, 1, 1), 4, 'dense', teacher_scales=scales),
    *both_ways(TINY, (2, 2, 2), 8, 'chunked', teacher_scales=scales),
  ]
  (loss, parts), gradients, _ = results[0]
  assert parts['distillation'] > 0.1
  for (other, _), others, _ in results[1:]:
    np.testing.assert_allclose(other, loss, rtol=1e-10)
    found = flat(others)
    for name, gradient in flat(gradients).items():
      np.testing.assert_allclose(
        found[name], gradient, rtol=1e-8, atol=1e-11, err_msg=name
      )


@pytest.mark.slow
def test_a_resnet_counts_each_micro_batch_once():
  inputs = inputs_of(TINY_RESNET)
  params, batch_stats = variables_with_noise(TINY_RESNET, inputs)
  mesh = make_mesh(devices=jax.devices()[:1])
  objective = make_objective(make_loss('softmax', 'dense', mesh, BATCH_AXES, 1))
  module = DualEncoder(TINY_RESNET, jnp.float64)
  encode = jax.jit(encode_with(module, objective))
  gradients = micro_batch_gradients(encode, objective.loss, mesh, 4)
  _, _, updated = jax.jit(gradients)(params, batch_stats, inputs)
  expected = batch_stats
  for i in range(0, BATCH, 4):
    piece = {name: array[i : i + 4] for name, array in inputs.items()}
    _, expected = encode(params, expected, piece)
  for name, statistic in flat(expected).items():
    np.testing.assert_allclose(
      flat(updated)[name], statistic, rtol=1e-8, atol=1e-12, err_msg=name
    )
  count = updated['image']['stem']['bn1']['count']
  assert count == batch_stats['image']['stem']['bn1']['count'] + 4


def context_of(length):
  text = dataclasses.replace(TINY.text, context_length=length)
  return dataclasses.replace(TINY, text=text)


FEATURES = frozenset({'image_features', 'text_features'})


def lengths_of(length=64, outputs=FEATURES, platform='cpu', **fields):
  text = dataclasses.replace(context_of(length).text, **fields)
  return text_lengths(text, outputs, platform)


def test_steps_are_compiled_for_short_texts_where_their_padding_is_not_seen():
  assert lengths_of(77) == (16, 32, 77)
  assert lengths_of(32) == (16, 32)
  assert lengths_of(31) == (31,)
  assert lengths_of(causal=False) == (64,)
  assert lengths_of(pooling='last') == (64,)
  assert lengths_of(outputs=FEATURES | {'text_tokens'}) == (64,)
  assert lengths_of(outputs=FEATURES | {'pooled_image'}) == (64,)
  assert lengths_of(platform='tpu') == (64,)


@pytest.mark.parametrize('pooling', ['end', 'highest'])
@pytest.mark.parametrize(
  'end, expected', [(0, 16), (15, 16), (16, 32), (31, 32), (32, 64), (63, 64)]
)
def test_the_longest_text_of_the_batch_is_whole(pooling, end, expected):
  text = dataclasses.replace(
    context_of(64).text, pooling=pooling, end_token=99, vocab_size=100
  )

  def length_of(params, batch_stats, inputs):
    return jnp.asarray(inputs['tokens'].shape[1])

  tokens = jnp.zeros((3, 64), jnp.int32).at[1, end].set(99)
  gradients = for_short_texts(length_of, text, (16, 32, 64))
  assert gradients({}, {}, {'tokens': tokens}) == expected


@pytest.mark.slow
@pytest.mark.parametrize('longest', [9, 30, 64])
def test_padding_that_is_left_out_changes_nothing(longest):
  config = context_of(64)
  rng = np.random.default_rng(longest)
  tokens = np.zeros((BATCH, 64), np.int32)
  for row, end in zip(tokens, rng.integers(1, longest, BATCH), strict=True):
    row[:end] = rng.integers(2, 64, end)
    row[end] = 1
  tokens[3, :longest] = [*rng.integers(2, 64, longest - 1), 1]
  tokens[3, longest:] = 0
  inputs = inputs_of(config) | {'tokens': jnp.asarray(tokens)}
  variables = variables_with_noise(config, inputs)
  mesh = make_mesh(2, 2, 2)
  inputs = jax.device_put(inputs, batch_sharding(mesh))
  objective = make_objective(
    make_loss('softmax', 'all_gather', mesh, BATCH_AXES, 2)
  )
  encode = encode_with(DualEncoder(config, jnp.float64), objective)
  whole = micro_batch_gradients(encode, objective.loss, mesh, 8)
  cut = for_short_texts(whole, config.text, lengths_of(64))
  (loss, _), expected, _ = jax.jit(whole)(*variables, inputs)
  (other, _), found, _ = jax.jit(cut)(*variables, inputs)
  np.testing.assert_allclose(other, loss, rtol=1e-12)
  found = flat(found)
  for name, gradient in flat(expected).items():
    np.testing.assert_allclose(
      found[name], gradient, rtol=1e-9, atol=1e-13, err_msg=name
    )


@pytest.mark.parametrize(
  'micro_batch, message',
  [
    (32, 'objective.micro_batch=32 must divide data.batch_size=16'),
    (5, 'split over 4 devices: 4 or 8 would do, or 0 for the whole batch'),
    (2, '4 or 8 would do'),
    (-4, 'objective.micro_batch=-4 must divide'),
  ],
)
def test_impossible_micro_batches_are_refused(micro_batch, message):
  mesh = make_mesh(2, 2, 1, devices=jax.devices()[:4])
  with pytest.raises(UsageError, match=re.escape(message)):
    check_micro_batch(micro_batch, 16, mesh)


@pytest.mark.parametrize('micro_batch', [0, 4, 8, 16])
def test_possible_micro_batches_are_taken(micro_batch):
  mesh = make_mesh(2, 2, 1, devices=jax.devices()[:4])
  check_micro_batch(micro_batch, 16, mesh)
