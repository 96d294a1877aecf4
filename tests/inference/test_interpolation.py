"""Weights of models of one description, averaged."""

import dataclasses
import errno
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax.checkpoints.manager import Checkpoints
from clip_jax.errors import FailureError, UsageError
from clip_jax.inference.interpolation import (
  average,
  check_alike,
  greedy_soup,
  write_model,
)
from clip_jax.inference.loading import Loaded, read_model
from clip_jax.models.description import Description
from clip_jax.models.dual_encoder import DualEncoder
from tests.tiny import TINY_RESNET
from tests.tiny_run import tiny_description, tiny_params


def noisy(variables, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: np.asarray(x + rng.normal(size=x.shape), np.float32), variables
  )


def loaded(description, origin):
  return Loaded(description, {}, None, origin, 'open_clip')


def with_model(**changes):
  description = tiny_description()
  model = dataclasses.replace(description.model, **changes)
  return dataclasses.replace(description, model=model)


def test_every_array_is_the_weighted_sum_of_all():
  a = {'params': tiny_params()}
  b, c = noisy(a, 1), noisy(a, 2)
  mean = average([a, b, c], [0.2, 0.5, 0.3])

  def check(x, y, z, actual):
    expected = 0.2 * np.float64(x) + 0.5 * np.float64(y) + 0.3 * np.float64(z)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-7)

  jax.tree.map(check, a, b, c, mean)
  scales = [tree['params']['logit_scale'] for tree in (a, b, c)]
  np.testing.assert_allclose(
    np.exp(mean['params']['logit_scale']),
    np.prod(np.exp(np.float64(scales)) ** [0.2, 0.5, 0.3]),
    rtol=1e-6,
  )


def test_a_model_of_weight_one_is_itself_bit_by_bit():
  a = {'params': tiny_params()}
  b = noisy(a, 1)
  jax.tree.map(np.testing.assert_array_equal, average([a, b], [1.0, 0.0]), a)
  jax.tree.map(np.testing.assert_array_equal, average([a, b], [0.0, 1.0]), b)
  jax.tree.map(np.testing.assert_array_equal, average([a, a], [0.3, 0.7]), a)


def test_counted_batches_stay_whole_numbers():
  a, b = ({'count': np.array(x, np.int32)} for x in (3, 10))
  mean = average([a, b], [0.5, 0.5])['count']
  assert mean.dtype == np.int32
  assert mean in (6, 7)


def test_a_greedy_soup_takes_what_it_gains_by():
  models = [{'x': np.array(x)} for x in (3.0, 0.0, -1.0, 0.9)]
  soup = greedy_soup(models, lambda own: -abs(float(own['x']) - 0.4))
  # 0 alone is off by 0.4; with 0.9, by 0.05; with -1 or 3 as well, by more.
  assert soup.weights == (0.0, 0.5, 0.0, 0.5)
  assert soup.variables['x'] == 0.45
  np.testing.assert_allclose(soup.score, -0.05)
  np.testing.assert_allclose(soup.scores, [-2.6, -0.4, -1.4, -0.5])


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'initial_logit_bias': -10.0}, 'initial_logit_bias is not there in a'),
    ({'embed_dim': 8}, 'model.embed_dim is 16 in a, and 8 in b'),
    (
      {'image': dataclasses.replace(tiny_description().model.image, depth=3)},
      'model.image.depth is 2 in a, and 3 in b',
    ),
    ({'image': TINY_RESNET.image}, 'model.image.'),
  ],
)
def test_models_of_other_shapes_are_refused_by_name(changes, message):
  models = [loaded(tiny_description(), 'a'), loaded(with_model(**changes), 'b')]
  with pytest.raises(UsageError) as caught:
    check_alike(models)
  assert message in str(caught.value)


def test_other_pixels_and_other_words_are_refused():
  own = tiny_description()
  pixels = dataclasses.replace(own.preprocessing, interpolation='nearest')
  other = dataclasses.replace(own, preprocessing=pixels)
  with pytest.raises(UsageError, match='interpolation is bicubic in a, and ne'):
    check_alike([loaded(own, 'a'), loaded(other, 'b')])
  other = dataclasses.replace(own, tokenizer=None)
  with pytest.raises(UsageError, match='vocabulary of the tokenizer is of kin'):
    check_alike([loaded(own, 'a'), loaded(other, 'b')])


def test_where_the_temperature_began_is_no_difference():
  own = tiny_description()
  began = with_model(initial_logit_scale=50.0)
  assert check_alike([loaded(own, 'a'), loaded(began, 'b')]) == own


def test_a_resnet_is_written_and_read_without_loss(tmp_path):
  description = Description(
    dataclasses.replace(TINY_RESNET, text=tiny_description().model.text),
    tiny_description().tokenizer,
    dataclasses.replace(tiny_description().preprocessing, image_size=32),
  )
  init = jax.jit(DualEncoder(description.model).init)
  images, tokens = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 16), jnp.int32)
  variables = jax.tree.map(
    np.asarray, dict(init(jax.random.key(0), images, tokens))
  )
  out = tmp_path / 'out'
  write_model(out, description, variables, {'models': ['a', 'b']})
  read = read_model(out)
  assert read.description == description
  jax.tree.map(np.testing.assert_array_equal, read.variables, variables)
  assert 'batch_stats' in read.variables
  assert json.loads((out / 'interpolation.json').read_text()) == {
    'models': ['a', 'b'],
    'clip_jax': clip_jax.__version__,
  }


def test_a_model_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
  def fail(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(Checkpoints, 'save', fail)
  with pytest.raises(FailureError, match='no space left'):
    write_model(
      tmp_path / 'out', tiny_description(), {'params': tiny_params()}, {}
    )
  assert os.listdir(tmp_path) == []
