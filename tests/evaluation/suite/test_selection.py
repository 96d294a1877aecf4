"""Which evaluations a call selects, and the suite that is made of them."""

import json

import numpy as np
import pytest
from PIL import Image

from clip_jax.data.sources.base import DEFAULT_CAPTIONS
from clip_jax.errors import UsageError
from clip_jax.evaluation import Options
from clip_jax.evaluation.suite.plan import Pair
from clip_jax.evaluation.suite.selection import (
  make_suite,
  select_evaluations,
  training_data,
)
from tests.tiny_run import tiny_model


@pytest.fixture(scope='module')
def pets(tmp_path_factory):
  """A folder of two classes of one image each, and a file that is none."""
  folder = tmp_path_factory.mktemp('pets')
  for name in ('cat', 'dog'):
    (folder / name).mkdir()
    Image.new('RGB', (20, 20), 'red').save(folder / name / 'a.png')
  np.save(folder / 'cat' / 'notes.npy', np.zeros(3))
  return folder


def select(tmp_path, *datasets, tasks=(), training=''):
  return select_evaluations(
    datasets, tasks, root=tmp_path, captions=DEFAULT_CAPTIONS, training=training
  )


def test_own_data_and_data_of_the_table_are_selected(tmp_path, pets):
  selection = select(tmp_path, f'mine=folder:{pets}', 'cifar10')
  assert selection.plan.pairs == (
    Pair('mine', 'zero_shot'),
    Pair('mine', 'prompt_gain'),
  )
  assert set(selection.plan.absent) == {'cifar10'}
  assert selection.own == {'mine'} and selection.selected
  dataset = selection.open('mine')
  assert dataset.name == 'mine'
  assert dataset.first_names == ('cat', 'dog')


def test_without_names_all_data_sets_that_are_here_are_selected(tmp_path):
  selection = select(tmp_path, tasks=['zero_shot'])
  assert not selection.selected
  assert Pair('digits', 'zero_shot') in selection.plan.pairs
  assert 'birdsnap' in selection.plan.absent


def test_overlap_needs_to_know_the_training_data(tmp_path, pets):
  mine = f'mine=folder:{pets}'
  overlap = Pair('mine', 'overlap')
  assert overlap not in select(tmp_path, mine).plan.pairs
  assert overlap in select(tmp_path, mine, training='tfds:emoji').plan.pairs
  with pytest.raises(UsageError, match='no data set'):
    select(tmp_path, 'nosuch')


def test_the_suite_keeps_features_and_says_each_notice_once(
  tmp_path, pets, capsys
):
  selection = select(tmp_path, f'mine=folder:{pets}', training='tfds:emoji')
  suite = make_suite(
    selection,
    tiny_model(),
    dtype='float32',
    options=Options(seed=3),
    folder=tmp_path / 'out',
  )
  assert suite.options.seed == 3
  assert suite.options.overlap.train == 'tfds:emoji'
  assert suite.options.cache.folder == tmp_path / 'out' / 'features'
  assert 'origin' not in suite.depends['model']
  notices = suite.open('mine').notices
  assert notices
  assert capsys.readouterr().err.count(notices[0]) == 1
  suite.open('mine')
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
  ('train', 'expected'),
  [
    ('folder:photos', 'folder:photos'),
    ('folder:a::folder:b', ''),
    (None, ''),
    (7, ''),
  ],
)
def test_the_training_data_of_a_run(tmp_path, train, expected):
  config = {'data': {'train': train}}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  assert training_data(tmp_path) == expected
  assert training_data(tmp_path / 'checkpoints' / '30') == expected


def test_what_is_no_run_has_no_training_data(tmp_path):
  assert training_data(tmp_path / 'ViT-B-32.pt') == ''
  (tmp_path / 'config.json').write_text('[]')
  assert training_data(tmp_path) == ''
