"""Recall against hand-worked cases and a sort of everything."""

import json
import tracemalloc

import numpy as np
import pytest

from clip_jax.errors import FailureError, UsageError
from clip_jax.evaluation import Options
from clip_jax.evaluation.dataset import Dataset, Split, dataset_of
from clip_jax.evaluation.tasks import retrieval
from clip_jax.evaluation.tasks.retrieval import recalls
from tests.evaluation.fakes import ListSource, TableEncoder, unit


def brute_force(images, texts, owners, ranks):
  """Recall by sorting each row of the whole matrix."""
  scores = images @ texts.T
  result = {}
  for k in ranks:
    by_image = [
      any(owners[j] == i for j in np.argsort(-scores[i])[:k])
      for i in range(len(images))
      if i in owners
    ]
    by_text = [
      owners[j] in np.argsort(-scores[:, j])[:k] for j in range(len(texts))
    ]
    result[f'image_to_text_r{k}'] = np.mean(by_image)
    result[f'text_to_image_r{k}'] = np.mean(by_text)
  return result


@pytest.mark.parametrize('tile', [(2048, 8192), (7, 11), (1, 1)])
def test_recalls_equal_those_of_a_full_sort(monkeypatch, tile):
  monkeypatch.setattr(retrieval, '_TILE', tile)
  rng = np.random.default_rng(0)
  owners = np.sort(rng.integers(0, 60, 150))  # some images have no text
  images = unit(rng.normal(size=(60, 6)))
  texts = unit(images[owners] + 0.3 * rng.normal(size=(150, 6)))
  ranks = (1, 5, 10)
  expected = brute_force(images, texts, owners, ranks)
  assert 0.1 < expected['text_to_image_r1'] < 0.9
  actual = recalls(images, texts, owners, ranks)
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    assert actual[name] == pytest.approx(value, abs=1e-9), name


def test_hand_worked_case_with_several_texts_an_image():
  images = np.eye(3, dtype=np.float32)
  # Image 0 owns texts 0 and 1, image 1 text 2, image 2 text 3.
  texts = unit([[0, 1, 0.2], [3, 1, 0.5], [0.5, 1, 2], [0, 0.1, 1]])
  result = recalls(images, texts, np.array([0, 0, 1, 2]), (1, 2, 3))
  # Rows sorted: image 0 has text 1 first; image 1 has 0 first, then 2;
  # image 2 has 3 first.
  assert result['image_to_text_r1'] == pytest.approx(2 / 3)
  assert result['image_to_text_r2'] == pytest.approx(1)
  # Text 0 asks for image 0 and finds it last; 1 first; 2 second; 3 first.
  assert result['text_to_image_r1'] == pytest.approx(2 / 4)
  assert result['text_to_image_r2'] == pytest.approx(3 / 4)
  assert result['text_to_image_r3'] == pytest.approx(1)


def test_a_model_with_one_feature_for_all_has_the_recall_of_chance():
  same = np.full((20, 4), 0.5, np.float32)
  result = recalls(same, same, np.arange(20), (1, 5, 10))
  for way in ('image_to_text', 'text_to_image'):
    assert result[f'{way}_r1'] == pytest.approx(1 / 20)
    assert result[f'{way}_r5'] == pytest.approx(5 / 20)
    assert result[f'{way}_r10'] == pytest.approx(10 / 20)


def test_ranks_beyond_the_number_of_texts_are_always_hits():
  features = np.eye(2, dtype=np.float32)
  result = recalls(features, features[::-1].copy(), np.arange(2), (1, 5))
  assert result == {
    'image_to_text_r1': 0.0,
    'image_to_text_r5': 1.0,
    'text_to_image_r1': 0.0,
    'text_to_image_r5': 1.0,
  }


ENCODER = TableEncoder(
  by_level={0: [1, 0], 50: [0, 1]},
  by_text={'right': [1, 0.1], 'to the right': [0.9, 0.3], 'up': [0, 1]},
)


def test_retrieval_of_a_source():
  source = ListSource([0, 50], captions=[['right', 'to the right'], ['up']])
  result = retrieval.evaluate(ENCODER, dataset_of(source), Options())
  assert set(result.metrics) == {
    'image_to_text_r1', 'image_to_text_r5', 'image_to_text_r10',
    'text_to_image_r1', 'text_to_image_r5', 'text_to_image_r10',
    'examples', 'texts',
  }  # fmt: skip
  assert result.metrics['image_to_text_r1'] == 1
  assert result.metrics['text_to_image_r1'] == 1
  assert result.metrics['examples'] == 2
  assert result.metrics['texts'] == 3
  first = result.records[0]
  assert first['id'] == 'image/0'
  assert first['captions'] == ['right', 'to the right']
  assert [text for text, _ in first['top']] == ['right', 'to the right', 'up']
  json.dumps(result.records)


def test_a_text_that_images_share_is_encoded_once_and_ties():
  encoder = TableEncoder(
    by_level={0: [1, 0], 50: [1, 0.1]}, by_text={'it': [1, 0]}
  )
  source = ListSource([0, 50], captions=[['it'], ['it']])
  result = retrieval.evaluate(encoder, dataset_of(source), Options())
  assert encoder.texts == ['it']
  # Each image's own copy is one of two equals; the nearer image wins.
  assert result.metrics['image_to_text_r1'] == pytest.approx(1 / 2)
  assert result.metrics['text_to_image_r1'] == pytest.approx(1 / 2)


def test_captions_of_unreadable_images_are_left_out():
  source = ListSource([None, 50], captions=[['right'], ['up']])
  result = retrieval.evaluate(ENCODER, dataset_of(source), Options())
  assert result.metrics['examples'] == result.metrics['texts'] == 1
  assert result.corrupt == {'image/0': 'damaged'}
  with pytest.raises(FailureError, match='over max_corrupt_records=0'):
    retrieval.evaluate(
      ENCODER, dataset_of(source), Options(max_corrupt_records=0)
    )


def test_a_source_without_captions_is_refused():
  with pytest.raises(UsageError, match="'list:' has no captions"):
    retrieval.evaluate(ENCODER, dataset_of(ListSource([0, 50])), Options())


@pytest.mark.parametrize('name, texts', [('coco_captions', 6), ('mine', 8)])
def test_each_image_of_coco_has_its_first_five_captions(name, texts):
  several = [f'right {i}' for i in range(7)]
  encoder = TableEncoder(
    by_level={0: [1, 0], 50: [0, 1]},
    by_text={**{text: [1, 0.1] for text in several}, 'up': [0, 1]},
  )
  source = ListSource([0, 50], captions=[several, ['up']])
  result = retrieval.evaluate(encoder, Dataset(name, Split(source)), Options())
  assert result.metrics['texts'] == texts
  assert result.records[0]['captions'] == several[: texts - 1]
  assert len(encoder.texts) == texts


def test_templates_go_around_the_captions():
  encoder = TableEncoder(
    by_level={0: [1, 0], 50: [0, 1]},
    by_text={
      'a photo of it': [1, 0],
      'a drawing of it': [0, 1],
      'a photo of him': [0, 1],
      'a drawing of him': [0.2, 1],
    },
  )
  source = ListSource([0, 50], captions=[['it'], ['him']])
  data = Dataset('flickr30k', Split(source), templates=('a photo of {}',))
  result = retrieval.evaluate(encoder, data, Options())
  assert encoder.texts == ['a photo of it', 'a photo of him']
  assert result.metrics['text_to_image_r1'] == 1
  assert result.records[0]['top'][0] == ['it', pytest.approx(1)]
  both = ('a photo of {}', 'a drawing of {}')
  result = retrieval.evaluate(encoder, data, Options(templates=both))
  assert dict(result.records[0]['top'])['it'] == pytest.approx(0.5**0.5)
  with pytest.raises(UsageError, match="template 'a' has no slot"):
    retrieval.evaluate(encoder, data, Options(templates=('a',)))


def test_a_large_retrieval_holds_no_matrix_of_all_similarities(monkeypatch):
  images = unit(np.random.default_rng(0).normal(size=(3000, 4)))
  owners = np.repeat(np.arange(3000), 2)
  monkeypatch.setattr(retrieval, '_TILE', (256, 256))
  tracemalloc.start()
  recalls(images, images[owners], owners)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 4 * 3000 * 6000 / 10
