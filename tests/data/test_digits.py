"""scikit-learn's digits as a TFDS data set."""

import collections
import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from clip_jax.data.built_in import build
from clip_jax.data.digits.digits_dataset_builder import NAMES, held_out
from clip_jax.data.sources import open_source


@pytest.fixture(scope='module')
def splits(tmp_path_factory: pytest.TempPathFactory):
  folder = tmp_path_factory.mktemp('tfds')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('TFDS_DATA_DIR', str(folder))
    opened = {x: open_source(f'tfds:digits#{x}') for x in ('train', 'test')}
    yield {
      split: [source[i] for i in range(len(source))]
      for split, source in opened.items()
    }


def test_every_digit_is_in_one_split(splits):
  ids = [int(x['id']) for records in splits.values() for x in records]
  assert sorted(ids) == list(range(1_797))


def test_a_fifth_of_each_class_is_held_out(splits):
  count = {
    split: collections.Counter(x['label'] for x in records)
    for split, records in splits.items()
  }
  for label in range(10):
    tests, trains = count['test'][label], count['train'][label]
    assert tests == round((tests + trains) / 5)
  assert (len(splits['train']), len(splits['test'])) == (1_438, 359)


def test_the_split_does_not_follow_the_order():
  labels = np.zeros(1_000, np.int64)
  rows = np.flatnonzero(held_out(labels))
  assert len(rows) == 200
  assert 80 < (rows < 500).sum() < 120
  # An index is hashed by itself: the same ones, whatever else there is.
  assert set(np.flatnonzero(held_out(labels[:500]))) & set(rows.tolist())


def test_images_and_labels_are_those_of_scikit_learn(splits):
  digits = load_digits()
  for record in splits['test'][::20]:
    index = int(record['id'])
    assert record['label'] == digits.target[index]
    assert record['caption'] == [NAMES[record['label']]]
    image = Image.open(io.BytesIO(record['image']))
    assert (image.format, image.mode, image.size) == (
      'PNG', 'RGB', (32, 32),
    )  # fmt: skip
    pixels = np.asarray(image)[::4, ::4, 0]
    np.testing.assert_allclose(pixels, digits.images[index] * 255 / 16, atol=1)


def test_building_again_does_nothing(tmp_path, capsys):
  path = build('digits', tmp_path)
  assert 'building the data set digits' in capsys.readouterr().err
  assert build('digits', tmp_path) == path
  assert capsys.readouterr() == ('', '')
