"""Labels find their classes by name, whoever spelt and ordered them."""

from typing import Any

import numpy as np
import pytest

from clip_jax.errors import UsageError
from clip_jax.evaluation.datasets import (
  DATASETS,
  class_names,
  match,
  match_names,
  wordnet_ids,
)
from clip_jax.evaluation.datasets.names import read_names

# TFDS: the names of its labels, known without its data.
TFDS = {
  'food101': 'food101', 'cifar10': 'cifar10', 'cifar100': 'cifar100',
  'sun397/standard-part1-120k': 'sun397', 'cars196': 'stanford_cars',
  'voc/2007': 'voc2007', 'dtd': 'dtd', 'oxford_iiit_pet': 'oxford_pets',
  'caltech101': 'caltech101', 'oxford_flowers102': 'flowers102',
  'mnist': 'mnist', 'stl10': 'stl10', 'eurosat': 'eurosat',
  'resisc45': 'resisc45', 'patch_camelyon': 'patch_camelyon',
  'imagenet2012': 'imagenet', 'imagenet_v2': 'imagenet_v2',
  'imagenet_a': 'imagenet_a', 'imagenet_r': 'imagenet_r',
  'imagenet_sketch': 'imagenet_sketch',
}  # fmt: skip


@pytest.fixture(scope='module')
def label_names(tmp_path_factory: pytest.TempPathFactory):
  import tensorflow_datasets as tfds

  folder = tmp_path_factory.mktemp('tfds')

  def read(name: str) -> list[str]:
    features: Any = tfds.builder(name, data_dir=folder).info.features
    return features['labels' if name == 'voc/2007' else 'label'].names

  return read


@pytest.mark.parametrize('tfds_name', TFDS)
def test_the_labels_of_tfds_are_each_a_class(label_names: Any, tfds_name: str):
  found = match(label_names(tfds_name), TFDS[tfds_name])
  assert sorted(found[found >= 0]) == list(
    range(len(class_names(TFDS[tfds_name])))
  )
  if TFDS[tfds_name] not in ('imagenet_a', 'imagenet_r'):
    assert (found >= 0).all()


def test_a_row_of_the_table_names_the_tfds_data_set_that_was_matched():
  named = {
    row.test.removeprefix('tfds:').partition('#')[0]: row.name
    for row in DATASETS.values()
    if row.test and row.test.startswith('tfds:') and row.group != 'local'
  }
  ours = {name.replace('imagenet_v2', 'imagenet_v2/matched-frequency'): x
          for name, x in TFDS.items()}  # fmt: skip
  # Of two more the labels are computed from the objects.
  assert named == {**ours, 'kitti': 'kitti_distance', 'clevr': 'clevr_counts'}


@pytest.mark.parametrize(
  ('tfds_name', 'label', 'name'),
  [
    ('food101', 'cheesecake', 'cheesecake'),
    ('oxford_iiit_pet', 'american_bulldog', 'american bulldog'),
    ('oxford_iiit_pet', 'British_Shorthair', 'British Shorthair'),
    ('caltech101', 'faces', 'off-center face'),
    ('caltech101', 'faces_easy', 'centered face'),
    ('caltech101', 'background_google', 'background'),
    ('eurosat', 'HerbaceousVegetation', 'brushland or shrubland'),
    ('eurosat', 'SeaLake', 'lake or sea'),
    ('sun397/standard-part1-120k', '/t/temple/east_asia', 'temple east asia'),
    ('oxford_flowers102', 'ball moss', 'air plant'),
    ('imagenet2012', 'n02123045', 'tabby cat'),
    ('imagenet_r', 'n01440764', None),
    ('imagenet_r', 'n01443537', 'goldfish'),
    ('cifar10', '1', 'automobile'),
    ('stl10', '1', 'bird'),
    ('stl10', '2', 'car'),
    ('patch_camelyon', '1', 'lymph node containing metastatic tumor tissue'),
  ],
)
def test_a_label_of_tfds_is_the_class_that_it_should_be(
  label_names: Any, tfds_name: str, label: str, name: str | None
):
  labels, dataset = label_names(tfds_name), TFDS[tfds_name]
  index = match(labels, dataset)[labels.index(label)]
  assert (class_names(dataset)[index][0] if index >= 0 else None) == name


def test_the_order_of_a_source_is_not_the_order_of_the_classes(
  label_names: Any,
):
  for name in 'food101', 'oxford_iiit_pet', 'caltech101', 'eurosat':
    found = match(label_names(name), TFDS[name])
    assert found.tolist() != list(range(len(found)))


@pytest.mark.parametrize(
  ('dataset', 'labels', 'names'),
  [
    ('gtsrb', ['00014', '17'],
     ['stop', 'red circle with white horizonal stripe no entry']),
    ('country211', ['US', 'GB', 'NA'],
     ['United States', 'United Kingdom', 'Namibia']),
    ('fer2013', ['3', 'Disgust', 'surprise'],
     ['happy', 'disgusted', 'surprised']),
    ('fer2013', ['smiling'], ['happy']),
    ('kitti_distance', ['above_20', 'below_8'],
     ['a photo i took with a car in the distance.',
      'a photo i took of a car on my left or right side.']),
    ('clevr_counts', ['count_10', '3'], ['10', '3']),
    ('ucf101', ['HandstandPushups', 'YoYo'], ['Hand Stand Pushups', 'Yo Yo']),
    ('fgvc_aircraft', ['F-16A_B', '707-320'], ['F-16A/B', '707-320']),
    ('hateful_memes', ['1', '0'], ['hatespeech meme', 'meme']),
    ('objectnet', ['t-shirt', 'hand_towel_or_rag', 'full_sized_towel'],
     ['T-shirt', 'Dishrag or hand towel', 'Bath towel']),
    ('imagenet', ['Tabby_Cat'], ['tabby cat']),
    ('cifar100', ['aquarium_fish'], ['aquarium fish']),
  ],
)  # fmt: skip
def test_a_folder_of_the_usual_spelling_is_a_class(
  dataset: str, labels: list[str], names: list[str]
):
  found = match(labels, dataset)
  assert [class_names(dataset)[i][0] for i in found] == names


@pytest.mark.parametrize('dataset', DATASETS)
def test_our_own_names_match_themselves(dataset: str):
  classes, ids = class_names(dataset), wordnet_ids(dataset)
  # ImageNet's repeated names are no labels; its ids are.
  own = [
    (known or names)[0]  # a wide class may hold none of ImageNet's
    for known, names in zip(ids or classes, classes, strict=True)
  ]
  assert match(own, dataset).tolist() == list(range(len(classes)))


@pytest.mark.parametrize('dataset', DATASETS)
def test_every_alias_leads_to_a_class(dataset: str):
  names = read_names(dataset)
  rounds: list[dict[str, str]] = []  # name -> alias: one of a class at a time
  for alias, name in names.aliases.items():
    free = [x for x in rounds if name not in x]
    if not free:
      rounds.append({})
      free = rounds[-1:]
    free[0][name] = alias
  for aliases in rounds:
    found = match(list(aliases.values()), dataset)
    for name, index in zip(aliases, found, strict=True):
      assert name in names.classes[index]


def test_the_other_folders_of_objectnet_are_left_out():
  ignored = read_names('objectnet').ignored
  folders = [x for x in ignored if not x[1:].isdigit()]
  assert len(folders) == 313 - 113
  assert match(['eyeglasses', 'umbrella'], 'objectnet')[0] == -1
  assert (match(folders, 'objectnet') == -1).all()


def test_the_result_is_of_the_source_in_its_order():
  found = match_names(['b', 'A'], [['a'], ['b']])
  np.testing.assert_array_equal(found, np.array([1, 0]))
  assert found.dtype == np.int64


def test_an_alias_goes_before_a_name():
  assert match_names(['1'], [['1'], ['2']], aliases={'1': '2'}).tolist() == [1]


def test_accents_do_not_count():
  assert match(['Côte d’Ivoire'], 'country211') == match(['CI'], 'country211')


def test_an_unknown_label_is_refused_with_the_nearest_class():
  with pytest.raises(
    UsageError,
    match="'aeroplan' is no class of cifar10: the nearest is 'airplane'",
  ):
    match(['dog', 'aeroplan'], 'cifar10')


def test_two_labels_of_one_class_are_refused():
  with pytest.raises(
    UsageError,
    match="'0' and 'Airplane' are the same class of cifar10, 'airplane'",
  ):
    match(['0', 'Airplane'], 'cifar10')


def test_a_name_of_two_classes_is_refused():
  with pytest.raises(UsageError, match="'missile' may be any of 2 classes"):
    match(['missile'], 'imagenet')


def test_an_alias_of_no_class_is_refused():
  with pytest.raises(
    UsageError, match=r"alias 'x': 'catt' .* nearest is 'cat'"
  ):
    match_names(['x'], [['cat'], ['dog']], aliases={'x': 'catt'})
