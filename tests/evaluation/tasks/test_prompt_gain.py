"""What prompts add, on classifiers that can be worked out by hand."""

import dataclasses
import json

import pytest

from clip_jax.errors import UsageError
from clip_jax.evaluation import Options
from clip_jax.evaluation.dataset import Dataset, Split, dataset_of
from clip_jax.evaluation.tasks import prompt_gain, zero_shot
from clip_jax.evaluation.tasks.prompt_gain import PHOTO
from tests.evaluation.fakes import ListSource, TableEncoder

# Level 0 is a crane that flies, 50 one that lifts. The bare names are level
# with each other, so that the first wins; a good prompt tells them apart.
BIRD, MACHINE = [1, 0], [0, 1]
BY_LEVEL = {0: BIRD, 50: MACHINE}
BY_TEXT = {
  'bird': [1, 1],
  'machine': [1, 1],
  'a photo of a bird.': [2, 1],
  'a photo of a machine.': [1, 2],
  'the bird': [1, 3],  # the wrong way round, and surely so
  'the machine': [3, 1],
  'a bird in the sky': [1, 0],
  'a machine in the sky': [1, 0.01],
}
ENCODER = TableEncoder(BY_LEVEL, BY_TEXT)
SOURCE = ListSource(
  [0, 0, 50, 50], labels=[0, 0, 1, 1], names=['bird', 'machine']
)
TEMPLATES = ('the {}', 'a {} in the sky', PHOTO)


def test_each_prompt_has_its_value_and_its_gain():
  data = dataclasses.replace(dataset_of(SOURCE), templates=TEMPLATES)
  result = prompt_gain.evaluate(ENCODER, data, Options())
  rows = {row['prompt']: row['value'] for row in result.tables['prompts']}
  assert rows == {
    '{}': 0.5,
    PHOTO: 1.0,
    'the {}': 0.0,
    'a {} in the sky': 1.0,
    'ensemble': result.metrics['ensemble'],
  }
  gains = {row['prompt']: row['gain'] for row in result.tables['prompts']}
  assert gains['the {}'] == -0.5
  assert result.metrics['bare'] == 0.5
  assert result.metrics['photo'] == 1.0
  assert result.metrics['photo_gain'] == 0.5
  gain = result.metrics['ensemble'] - 0.5
  assert result.metrics['ensemble_gain'] == pytest.approx(gain)
  assert result.metrics['templates'] == 3
  assert result.metrics['examples'] == 4
  json.dumps([result.metrics, result.tables])


@pytest.mark.parametrize('templates', [('{}',), (PHOTO,), TEMPLATES])
def test_the_ensemble_is_zero_shots(templates):
  data = dataset_of(SOURCE)
  options = Options(templates=templates)
  result = prompt_gain.evaluate(ENCODER, data, options).metrics
  expected = zero_shot.evaluate(ENCODER, data, options).metrics['top1']
  assert result['ensemble'] == expected


def test_every_text_goes_through_the_encoder_once():
  encoder = TableEncoder(BY_LEVEL, BY_TEXT)
  data = dataclasses.replace(dataset_of(SOURCE), templates=TEMPLATES)
  prompt_gain.evaluate(encoder, data, Options())
  assert sorted(encoder.texts) == sorted(BY_TEXT)


def test_the_gain_is_in_the_data_sets_own_metric():
  source = ListSource(
    [0, 0, 0, 50], labels=[0, 0, 0, 1], names=['bird', 'machine']
  )
  data = dataclasses.replace(dataset_of(source), metric='mean_per_class')
  result = prompt_gain.evaluate(ENCODER, data, Options()).metrics
  assert result['bare'] == 0.5  # and 3/4 of the images


def test_of_very_many_templates_a_hundred_are_shown_alone():
  many = [f'{{}} {i}' for i in range(120)]
  texts = {
    template.replace('{}', name): direction
    for name, direction in (('bird', BIRD), ('machine', MACHINE))
    for template in ('{}', PHOTO, *many)
  }
  encoder = TableEncoder(BY_LEVEL, texts)
  result = prompt_gain.evaluate(
    encoder, dataset_of(SOURCE), Options(templates=tuple(many))
  )
  assert len(result.tables['prompts']) == 2 + 100 + 1
  assert result.metrics['templates'] == 120
  assert result.metrics['ensemble'] == 1


def test_a_template_without_a_slot_and_data_without_names_are_refused():
  with pytest.raises(UsageError, match="template 'a' has no slot"):
    prompt_gain.evaluate(ENCODER, dataset_of(SOURCE), Options(templates=('a',)))
  nameless = Dataset('n', Split(ListSource([0], labels=[0])))
  with pytest.raises(UsageError, match='no label names, which prompt_gain'):
    prompt_gain.evaluate(ENCODER, nameless, Options())
