"""The loss of held-out pairs is the training's, whatever their number."""

import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UsageError
from clip_jax.evaluation import Options
from clip_jax.evaluation.dataset import dataset_of
from clip_jax.evaluation.tasks import pair_loss
from clip_jax.objectives.contrastive import softmax_loss
from clip_jax.objectives.sigmoid import sigmoid_loss
from tests.evaluation.fakes import ListSource, TableEncoder, unit

LOSSES = {'softmax': softmax_loss, 'sigmoid': sigmoid_loss}


def pairs(count, noise=1.0, seed=0):
  rng = np.random.default_rng(seed)
  images = rng.normal(size=(count, 16))
  texts = images + noise * rng.normal(size=images.shape)
  return [unit(x.tolist()) for x in (images, texts)]


@pytest.mark.parametrize('objective', ['softmax', 'sigmoid'])
def test_of_one_batch_it_is_the_objective(objective):
  images, texts = pairs(24)
  expected = LOSSES[objective](
    jnp.asarray(images), jnp.asarray(texts), jnp.float32(9), jnp.float32(-3)
  )
  result = pair_loss.pair_loss(
    images, texts, logit_scale=9.0, logit_bias=-3.0, objective=objective,
    batch_size=24,
  )  # fmt: skip
  assert result == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize('objective', ['softmax', 'sigmoid'])
@pytest.mark.parametrize('group', [40, 2048])
def test_fewer_pairs_than_a_batch_stand_for_it(monkeypatch, objective, group):
  monkeypatch.setattr(pair_loss, '_GROUP', group)
  images, texts = pairs(4000)

  def loss(count, batch_size):
    return pair_loss.pair_loss(
      images[:count], texts[:count], logit_scale=8.0, logit_bias=-4.0,
      objective=objective, batch_size=batch_size,
    )  # fmt: skip

  whole = loss(4000, 400)  # ten batches
  assert loss(200, 400) == pytest.approx(whole, rel=0.1)
  assert abs(loss(200, 400) - whole) < abs(loss(200, 200) - whole)


@pytest.mark.parametrize('count', [2, 7, 100])
def test_an_untrained_model_has_the_log_of_the_batch_as_loss(count):
  same = np.ones((count, 4), np.float32) / 2
  for batch_size in (3, 64, 32_768):
    result = pair_loss.pair_loss(
      same, same, logit_scale=100.0, batch_size=batch_size
    )
    assert result == pytest.approx(np.log(batch_size))


ENCODER = TableEncoder(
  by_level={0: [1, 0], 50: [0, 1], 100: [1, 1]},
  by_text={'east': [1, 0], 'north': [0, 1], 'also north': [1, 0]},
)


def evaluated(captions, levels=(0, 50, 100)):
  return pair_loss.evaluate_loss(
    ENCODER,
    dataset_of(ListSource(levels, captions=captions)),
    Options(),
    objective='softmax',
    batch_size=2,
  )


def test_the_loss_uses_the_first_caption_of_each_image():
  result = evaluated([['east'], ['north', 'also north'], []]).metrics
  assert result['examples'] == 2
  assert result['loss'] == pytest.approx(np.log1p(np.exp(-10)))


def test_unreadable_images_are_left_out_and_reported():
  result = evaluated([['east'], ['north'], ['east']], (0, 50, None))
  assert result.metrics['examples'] == 2
  assert result.corrupt.keys() == {'image/2'}


def test_fewer_than_two_pairs_have_no_loss():
  with pytest.raises(UsageError, match='has 1 images with captions'):
    evaluated([['east'], [], []])
