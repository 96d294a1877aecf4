"""Averages of models are written, and measured on each data set."""

import jax
import numpy as np
import pytest

from clip_jax.data.sources import open_source
from clip_jax.errors import UsageError
from clip_jax.evaluation import Options, find_evaluator
from clip_jax.evaluation.averages import (
  AccuracyMeasure,
  write_line,
  write_soup,
)
from clip_jax.evaluation.dataset import dataset_of
from clip_jax.inference.loading import load, read_model
from tests.data.images import make_image
from tests.evaluation.tasks.test_zero_shot import SeveralLabels
from tests.tiny_run import tiny_description, tiny_model, tiny_params


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  """Eight images of two classes."""
  folder = tmp_path_factory.mktemp('classes')
  for seed in range(8):
    path = folder / ('red square', 'cat face')[seed % 2] / f'{seed}.png'
    path.parent.mkdir(exist_ok=True)
    make_image(seed).save(path)
  return dataset_of(open_source(f'folder:{folder}'))


def measure_on(*datasets):
  return AccuracyMeasure(tiny_description(), datasets, Options(), 'float32', 8)


def two_models():
  """The tiny model, and one whose parameters are all twice as large."""
  params = tiny_params()
  twice = jax.tree.map(lambda x: np.asarray(2 * x), params)
  return [{'params': params}, {'params': twice}]


def test_accuracy_is_that_of_the_zero_shot_task(dataset):
  accuracy = measure_on(dataset)({'params': tiny_params()})
  evaluate = find_evaluator('zero_shot')
  metrics = evaluate(tiny_model(), dataset, Options()).metrics
  assert accuracy == {
    dataset.name: {
      'top1': metrics['top1'],
      'low': metrics['top1_low'],
      'high': metrics['top1_high'],
    }
  }


def test_data_with_several_labels_an_image_are_refused():
  source = SeveralLabels([0, 9], [[0, 1], [1]], ['cat', 'dog'])
  with pytest.raises(UsageError, match='has several labels an image'):
    measure_on(dataset_of(source))({'params': tiny_params()})


def test_each_model_of_a_line_is_written_before_the_next_is_made(tmp_path):
  names, folder = ['a', 'b'], tmp_path / 'line'
  rows = write_line(names, two_models(), [0.5, 1.0], measure_on(), folder)
  first = folder / 'alpha_0.5'
  assert next(rows) == {'alpha': 0.5, 'out': str(first)}
  assert [path.name for path in folder.iterdir()] == [first.name]
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, 1.5 * y, atol=1e-6),
    load(first).params,
    tiny_params(),
  )
  assert next(rows) == {'alpha': 1, 'out': str(folder / 'alpha_1')}


def test_a_soup_is_greedy_where_there_are_data(tmp_path, dataset):
  names, models = ['a', 'b'], two_models()
  soup = write_soup(names, models, measure_on(), tmp_path / 'uniform')
  assert soup == {
    'models': names,
    'soup': 'uniform',
    'weights': (0.5, 0.5),
    'out': str(tmp_path / 'uniform'),
  }
  soup = write_soup(names, models, measure_on(dataset), tmp_path / 'greedy')
  assert (soup['soup'], soup['data']) == ('greedy', dataset.name)
  assert soup['top1'] >= max(soup['top1_of_each'])
  written = read_model(tmp_path / 'greedy').variables
  assert measure_on(dataset)(written)[dataset.name]['top1'] == soup['top1']
