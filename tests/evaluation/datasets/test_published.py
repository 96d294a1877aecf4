"""The paper's numbers, and which of them are to be shown as uncertain."""

import pytest

from clip_jax.evaluation.datasets.published import Published, published
from clip_jax.evaluation.datasets.table import DATASETS
from clip_jax.models.presets import PRESETS

MODELS = (
  'RN50', 'RN101', 'RN50x4', 'RN50x16', 'RN50x64', 'ViT-B/32', 'ViT-B/16',
  'ViT-L/14', 'ViT-L/14@336',
)  # fmt: skip


def value(model: str, dataset: str, task: str) -> float:
  result = published(model, dataset, task)
  assert result
  return result.value


def test_the_models_are_presets():
  assert set(MODELS) <= set(PRESETS)


@pytest.mark.parametrize('task', ['zero_shot', 'linear_probe'])
def test_nine_models_have_a_number_for_each_of_the_27(task: str):
  paper = [x.name for x in DATASETS.values() if x.group == 'paper']
  for model in MODELS:
    assert all(0 < value(model, name, task) < 100 for name in paper)


def test_the_headline_is_certain():
  assert published('ViT-L/14@336', 'imagenet', 'zero_shot') == Published(
    76.2, uncertain=False, within=None, where='table 11'
  )


def test_imagenet_of_the_nine_models():
  assert [value(x, 'imagenet', 'zero_shot') for x in MODELS] == [
    59.6, 62.2, 65.8, 70.5, 73.6, 63.2, 68.6, 75.3, 76.2,
  ]  # fmt: skip
  assert [value(x, 'imagenet', 'linear_probe') for x in MODELS] == [
    73.3, 75.7, 78.2, 81.5, 83.6, 76.1, 80.2, 83.9, 85.4,
  ]  # fmt: skip
  other = published('RN50', 'imagenet', 'zero_shot')
  assert other and other.uncertain and other.within == 0.2


def test_shifts_and_retrieval_are_of_the_best_model():
  model = 'ViT-L/14@336'
  for dataset, task, number in [
    ('imagenet_v2', 'zero_shot', 70.1),
    ('imagenet_r', 'zero_shot', 88.9),
    ('objectnet', 'zero_shot', 72.3),
    ('imagenet_sketch', 'zero_shot', 60.2),
    ('imagenet_a', 'zero_shot', 77.1),
    ('flickr30k', 'text_retrieval_r1', 88.0),
    ('flickr30k', 'image_retrieval_r1', 68.7),
    ('coco_captions', 'text_retrieval_r1', 58.4),
    ('coco_captions', 'image_retrieval_r1', 37.8),
  ]:
    result = published(model, dataset, task)
    assert result and result.value == number
    assert result.uncertain and result.within == 0.2
  assert published('RN50', 'objectnet', 'zero_shot') is None


def test_a_number_is_certain_if_a_second_source_quotes_it():
  quoted = published('ViT-L/14', 'dtd', 'linear_probe')
  alone = published('ViT-L/14', 'dtd', 'zero_shot')
  assert quoted and (quoted.value, quoted.uncertain) == (82.1, False)
  assert alone and alone.uncertain and alone.within is None


def test_the_papers_spelling_of_a_model_will_do():
  result = published('ViT-L/14@336px', 'food101', 'zero_shot')
  assert result == published('ViT-L/14@336', 'food101', 'zero_shot')
  assert result and result.value == 93.8


def test_unpublished_numbers_are_none():
  assert published('ViT-B-16-SigLIP', 'imagenet', 'zero_shot') is None
  assert published('RN50', 'imagenet', 'few_shot') is None
