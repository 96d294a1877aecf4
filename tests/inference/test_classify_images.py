"""Images of many places are labelled in their order, and bad ones named."""

import numpy as np
import pytest

from clip_jax.data.decoding import CorruptImageError
from clip_jax.inference import classify_images
from clip_jax.inference.classify_images import ImageSet, NamedImage
from clip_jax.inference.zero_shot import ZeroShotModel
from tests.evaluation.fakes import ListSource

LABELS = ['cat', 'dog']


class LengthModel(ZeroShotModel):
  """The longer the bytes of an image, the more it is a cat; 'bad' is none."""

  tokenizer = logit_scale = logit_bias = _encoder = None

  def __init__(self):
    self.calls = []

  def classify(self, images, labels, templates, *, independent, on_error):
    assert (labels, templates, independent) == (LABELS, ['{}'], False)
    self.calls.append(len(images))
    rows = []
    for i, content in enumerate(images):
      if content == 'bad':
        on_error(i, CorruptImageError(f'image {i}: damaged image'))
      else:
        rows.append([len(content) / 10, 1 - len(content) / 10])
    return np.array(rows).reshape(-1, 2)


def classify(model, images, errors):
  return classify_images.classify_images(
    model, images, LABELS, ['{}'], independent=False, on_error=errors.append
  )


@pytest.mark.parametrize('chunk', [1, 2, 512])
def test_bad_images_are_named_and_others_labelled(monkeypatch, chunk):
  monkeypatch.setattr(classify_images, '_CHUNK', chunk)
  images = [
    NamedImage('a', 'xx'),
    NamedImage('b', 'bad'),
    NamedImage('c', CorruptImageError('c: no such file')),
    NamedImage('d', 'xxxx'),
  ]
  model, errors = LengthModel(), []
  results = list(classify(model, images, errors))
  assert [x.name for x in results] == ['a', 'd']
  assert results[1].probabilities == {'cat': 0.4, 'dog': 0.6}
  # What has no name of its own in the model's error gets the one it has here.
  assert errors == ['b: damaged image', 'c: no such file']
  assert max(model.calls) <= chunk


def test_images_are_read_as_they_are_needed(monkeypatch):
  monkeypatch.setattr(classify_images, '_CHUNK', 2)
  taken = []

  def images():
    for i in range(6):
      taken.append(i)
      yield NamedImage(str(i), 'x')

  results = classify(LengthModel(), images(), [])
  next(results)
  assert taken == [0, 1]


def test_images_of_sets_have_their_path_or_their_id_as_name():
  source = ListSource([0, None])
  items = [
    'a.png',
    ImageSet(source, ''),
    ImageSet(source, 'photos'),
    's3://b/c',
  ]
  images = list(classify_images.read_images(items))
  assert len(images) == classify_images.count_images(items) == 6
  assert [x.name for x in images] == [
    'a.png', source.id(0), source.id(1), f'photos/{source.id(0)}',
    f'photos/{source.id(1)}', 's3://b/c',
  ]  # fmt: skip
  assert images[0].content == 'a.png'
  assert isinstance(images[1].content, bytes)
  assert isinstance(images[2].content, CorruptImageError)
  assert 'is a URL' in str(images[5].content)
