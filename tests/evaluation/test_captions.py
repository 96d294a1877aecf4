"""Models that predict captions choose among classes by their prompts."""

import numpy as np
import pytest
import scipy.special

from clip_jax.errors import UsageError
from clip_jax.evaluation import Options
from clip_jax.evaluation.dataset import dataset_of
from clip_jax.evaluation.tasks.zero_shot import evaluate
from tests.evaluation.fakes import ListSource

NAMES = ['black', 'grey', 'white', 'never']


class CaptionModel:
  """Scores of a text by an image's level, from a table."""

  classifies_by_captions = True
  logit_scale = 50.0

  def __init__(self, scores):
    self._scores = scores

  def caption_scores(self, images, texts):
    rows = [
      [self._scores[image.getpixel((0, 0)), text] for text in texts]
      for image in images
    ]
    return np.array(rows, np.float32)

  def encode_image(self, images):
    raise AssertionError('it has no features that mean anything')

  encode_text = encode_image


def dataset(classes='all'):
  source = ListSource([0, 100, 200, None], labels=[0, 1, 2, 3], names=NAMES)
  return dataset_of(source, classes)


def table(**more):
  scores = {(level, name): -5.0 for level in (0, 100, 200) for name in NAMES}
  scores |= {(0, 'black'): -1.0, (100, 'grey'): -2.0, (200, 'grey'): -3.0}
  return scores | more


def test_the_likeliest_name_is_chosen():
  evaluation = evaluate(CaptionModel(table()), dataset(), Options())
  assert evaluation.metrics['top1'] == pytest.approx(2 / 3)
  assert [row['top'][0][0] for row in evaluation.records] == [
    'black', 'grey', 'grey',
  ]  # fmt: skip
  expected = scipy.special.softmax([-1.0, -5.0, -5.0, -5.0])[0]
  assert evaluation.records[0]['top'][0][1] == pytest.approx(expected, 1e-5)
  assert evaluation.chance['top1'] == pytest.approx(0.25)


def test_the_likelihoods_of_prompts_are_averaged():
  prompts = ('a {}', '{}')
  scores = {
    (level, prompt.replace('{}', name)): -9.0
    for level in (0, 100, 200)
    for prompt in prompts
    for name in NAMES
  }
  # The mean of exp(-1) and exp(-9) is above that of exp(-2) twice.
  scores |= {(0, 'a black'): -1.0, (0, 'a grey'): -2.0, (0, 'grey'): -2.0}
  evaluation = evaluate(
    CaptionModel(scores), dataset(), Options(templates=prompts)
  )
  assert [name for name, _ in evaluation.records[0]['top'][:2]] == [
    'black', 'grey',
  ]  # fmt: skip
  with pytest.raises(UsageError, match='slot'):
    evaluate(CaptionModel(scores), dataset(), Options(templates=('no',)))


def test_classes_that_no_record_has_can_be_left_out():
  evaluation = evaluate(CaptionModel(table()), dataset('present'), Options())
  assert evaluation.chance['top1'] == pytest.approx(1 / 3)
  assert {name for row in evaluation.records for name, _ in row['top']} == {
    'black', 'grey', 'white',
  }  # fmt: skip
