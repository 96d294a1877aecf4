"""Captions that a model writes are right or wrong, whatever their case."""

import numpy as np
import pytest

from clip_jax.errors import UsageError
from clip_jax.evaluation import Options, find_evaluator
from clip_jax.evaluation.dataset import dataset_of
from tests.evaluation.fakes import ListSource, TableEncoder

WRITTEN = {0: 'Black', 100: 'a  grey image ', 200: 'grey', 220: 'white'}
CAPTIONS = [['black'], ['grey', 'a grey image'], ['white'], [], ['x']]


class Captioner:
  """Writes by an image's grey level."""

  logit_scale = 1.0

  def caption(self, images):
    return [WRITTEN[image.getpixel((0, 0))] for image in images]

  def encode_image(self, images):
    raise AssertionError('it has no features that mean anything')

  encode_text = encode_image


def evaluate(encoder, captions):
  source = ListSource([0, 100, 200, 220, None], captions=captions)
  return find_evaluator('captioning')(encoder, dataset_of(source), Options())


def test_a_caption_is_right_if_it_is_one_of_the_images_own():
  evaluation = evaluate(Captioner(), CAPTIONS)
  assert [row['right'] for row in evaluation.records] == [True, True, False]
  assert evaluation.records[2] == {
    'id': 'image/2',
    'captions': ['white'],
    'written': 'grey',
    'right': False,
  }
  metrics = evaluation.metrics
  assert metrics['exact_match'] == pytest.approx(2 / 3)
  assert metrics['examples'] == 3
  # Clopper and Pearson's interval of 2 of 3, from tables of the beta quantiles.
  np.testing.assert_allclose(
    [metrics['exact_match_low'], metrics['exact_match_high']],
    [0.0943, 0.9916],
    atol=1e-4,
  )
  assert list(evaluation.corrupt) == ['image/4']


def test_data_without_captions_and_models_without_a_decoder_are_refused():
  with pytest.raises(UsageError, match='has no captions, which captioning'):
    evaluate(Captioner(), None)
  with pytest.raises(UsageError, match='needs a model that writes captions'):
    evaluate(TableEncoder({}, {}), CAPTIONS)
