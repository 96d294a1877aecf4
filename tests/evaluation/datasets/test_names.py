"""Class names and templates: as many as published, whole, and readable."""

import importlib.resources
import json
import shutil
from typing import Any

import numpy as np
import pytest

from clip_jax.errors import UsageError
from clip_jax.evaluation.datasets import names as names_module
from clip_jax.evaluation.datasets.names import match, match_names, read_names
from clip_jax.evaluation.datasets.table import DATASETS

# Classes and templates of each list (paper, table 9; prompts.md).
COUNTS = {
  'food101': (101, 1), 'cifar10': (10, 18), 'cifar100': (100, 18),
  'birdsnap': (500, 1), 'sun397': (397, 2), 'stanford_cars': (196, 8),
  'fgvc_aircraft': (100, 2), 'voc2007': (20, 1), 'dtd': (47, 8),
  'oxford_pets': (37, 1), 'caltech101': (102, 34), 'flowers102': (102, 1),
  'mnist': (10, 1), 'fer2013': (7, 6), 'stl10': (10, 2), 'eurosat': (10, 3),
  'resisc45': (45, 18), 'gtsrb': (43, 3), 'kitti_distance': (4, 1),
  'country211': (211, 5), 'patch_camelyon': (2, 1), 'ucf101': (101, 48),
  'kinetics700': (700, 28), 'clevr_counts': (8, 1), 'hateful_memes': (2, 1),
  'rendered_sst2': (2, 1), 'imagenet': (1000, 80), 'imagenet_v2': (1000, 80),
  'imagenet_sketch': (1000, 80), 'imagenet_r': (200, 80),
  'imagenet_a': (200, 80), 'objectnet': (113, 80),
  'imagenet_vid_robust': (30, 80), 'ytbb_robust': (23, 80), 'flickr30k': (0, 1),
  'coco_captions': (0, 1), 'fairface_race': (7, 1), 'fairface_gender': (2, 1),
  'fairface_age': (9, 1), 'fairface_race_gender': (14, 1), 'emoji': (0, 1),
  'emoji_skin_tones': (5, 10), 'emoji_skin_tones_grey': (5, 10),
  'emoji_people': (3, 8), 'digits': (10, 5),
}  # fmt: skip

# Published so: of two classes each.
REPEATED = {
  'imagenet': {'missile', 'sunglasses'},
  'imagenet_v2': {'missile', 'sunglasses'},
  'imagenet_sketch': {'missile', 'sunglasses'},
}


def files():
  folder = importlib.resources.files('clip_jax.evaluation.datasets')
  return {
    file.name.removesuffix('.json'): file
    for file in (folder / 'prompts').iterdir()
  }


def test_every_row_of_the_table_has_a_file_and_every_file_a_row():
  assert set(files()) == set(DATASETS) == set(COUNTS)


@pytest.mark.parametrize('name', COUNTS)
def test_the_lists_are_as_long_as_published(name: str):
  names = read_names(name)
  assert (len(names.classes), len(names.templates)) == COUNTS[name]


@pytest.mark.parametrize('name', COUNTS)
def test_names_are_there_once(name: str):
  names = [x for names in read_names(name).classes for x in names]
  assert all(x and x == x.strip() for x in names)
  assert all(read_names(name).classes)
  twice = {x for x in names if names.count(x) > 1}
  assert twice == REPEATED.get(name, set())


@pytest.mark.parametrize('name', COUNTS)
def test_templates_are_there_once_and_have_one_slot(name: str):
  texts = read_names(name).templates
  assert len(set(texts)) == len(texts)
  for text in texts:
    assert text.count('{}') == 1
    assert text.count('{') == text.count('}') == 1


@pytest.mark.parametrize('name', COUNTS)
def test_a_file_holds_what_is_documented(name: str):
  text = files()[name].read_text(encoding='utf-8')

  def once(pairs: list[tuple[str, object]]):
    assert len({key for key, _ in pairs}) == len(pairs)
    return dict(pairs)

  data = json.loads(text, object_pairs_hook=once)
  assert set(data) <= {
    'source', 'classes', 'templates', 'of', 'wordnet_ids', 'aliases',
    'ignored',
  }  # fmt: skip
  source = read_names(name).source
  assert source.endswith('.') and len(source) > 20


def test_lists_are_in_the_order_of_prompts_md():
  # First, some in the middle, last: read in OpenAI's file.
  def at(name: str, *indices: int):
    return [read_names(name).classes[i][0] for i in indices]

  assert at('food101', 16, 17) == ['cheese plate', 'cheesecake']
  assert at('oxford_pets', 0, 11, 12, -1) == [
    'Abyssinian', 'Sphynx', 'american bulldog', 'yorkshire terrier',
  ]  # fmt: skip
  assert at('caltech101', 0, 1, 2, 30) == [
    'background', 'off-center face', 'centered face', 'head of a  crocodile',
  ]  # fmt: skip
  assert at('eurosat', 0, 9) == ['forest', 'highway or road']
  assert at('clevr_counts', 0, 1, 7) == ['10', '3', '9']
  assert at('voc2007', 10, 16, 19) == ['dog', 'diningtable', 'tvmonitor']
  assert at('birdsnap', 0, 270, 499) == [
    'Acadian Flycatcher', 'Long billed Dowitcher', 'Zone tailed Hawk',
  ]  # fmt: skip
  assert at('kinetics700', 0, -1) == ['abseiling', 'zumba']
  assert at('ucf101', 36, -1) == ['Hand Stand Pushups', 'Yo Yo']
  assert at('country211', 0, -1) == ['Andorra', 'Zimbabwe']


def test_prompts_md_wins_over_the_lists_that_others_made_of_it():
  assert 'satellite imagery of {}.' in read_names('resisc45').templates
  assert read_names('clevr_counts').templates == ('a photo of {} objects.',)
  assert read_names('patch_camelyon').templates == ('this is a photo of {}',)


def test_a_class_may_have_more_than_one_name():
  assert read_names('fer2013').classes[5] == ('surprised', 'shocked', 'spooked')
  assert read_names('fer2013').classes[0] == ('angry',)


def test_imagenet_names_stand_beside_their_wordnet_ids():
  imagenet = read_names('imagenet')
  ids = imagenet.wordnet_ids
  assert list(ids) == sorted(set(ids))
  name_of = dict(zip(ids, imagenet.classes, strict=True))
  for key, name in {
    'n01440764': 'tench', 'n02012849': 'crane bird', 'n02123045': 'tabby cat',
    'n03126707': 'construction crane', 'n03710721': 'one-piece bathing suit',
    'n15075141': 'toilet paper',
  }.items():  # fmt: skip
    assert name_of[(key,)] == (name,)


@pytest.mark.parametrize('name', ['imagenet_r', 'imagenet_a'])
def test_a_shift_takes_the_names_of_its_ids_from_imagenet(name: str):
  imagenet, names = read_names('imagenet'), read_names(name)
  name_of = dict(zip(imagenet.wordnet_ids, imagenet.classes, strict=True))
  assert len(set(names.wordnet_ids)) == 200
  assert names.classes == tuple(name_of[x] for x in names.wordnet_ids)


def test_an_objectnet_class_may_be_several_of_imagenet():
  names = read_names('objectnet')
  ids = dict(zip(names.classes, names.wordnet_ids, strict=True))
  assert ids[('Alarm clock',)] == ('n02708093', 'n03196217')
  assert ids[('Chair',)] == ('n02791124', 'n03376595', 'n04099969')
  every = [x for own in ids.values() for x in own]
  assert len(every) == len(set(every))
  assert {(x,) for x in every} <= set(read_names('imagenet').wordnet_ids)


def test_two_attributes_of_a_face_are_each_with_each():
  assert {x for (x,) in read_names('fairface_race_gender').classes} == {
    f'{race} {gender}'
    for (race,) in read_names('fairface_race').classes
    for (gender,) in read_names('fairface_gender').classes
  }


def test_an_unknown_data_set_is_refused():
  with pytest.raises(UsageError, match=r"no data set 'mnst': choose .* mnist"):
    read_names('mnst')


def test_every_name_and_template_is_in_the_hash(tmp_path, monkeypatch):
  before = names_module.contents_hash()
  files = names_module._files()
  for file in files:
    shutil.copy(str(file), tmp_path)
  monkeypatch.setattr(names_module, '_files', lambda: list(tmp_path.iterdir()))
  assert names_module.contents_hash() == before
  changed = tmp_path / 'dtd.json'
  changed.write_text(changed.read_text().replace('banded', 'bandee'))
  assert names_module.contents_hash() != before


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
  result = match(label_names(tfds_name), TFDS[tfds_name])
  assert sorted(result[result >= 0]) == list(
    range(len(read_names(TFDS[tfds_name]).classes))
  )
  if TFDS[tfds_name] not in ('imagenet_a', 'imagenet_r'):
    assert (result >= 0).all()


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
  assert (read_names(dataset).classes[index][0] if index >= 0 else None) == name


def test_the_order_of_a_source_is_not_the_order_of_the_classes(
  label_names: Any,
):
  for name in 'food101', 'oxford_iiit_pet', 'caltech101', 'eurosat':
    result = match(label_names(name), TFDS[name])
    assert result.tolist() != list(range(len(result)))


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
  result = match(labels, dataset)
  assert [read_names(dataset).classes[i][0] for i in result] == names


@pytest.mark.parametrize('dataset', DATASETS)
def test_our_own_names_match_themselves(dataset: str):
  classes, ids = read_names(dataset).classes, read_names(dataset).wordnet_ids
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
    result = match(list(aliases.values()), dataset)
    for name, index in zip(aliases, result, strict=True):
      assert name in names.classes[index]


def test_the_other_folders_of_objectnet_are_left_out():
  ignored = read_names('objectnet').ignored
  folders = [x for x in ignored if not x[1:].isdigit()]
  assert len(folders) == 313 - 113
  assert match(['eyeglasses', 'umbrella'], 'objectnet')[0] == -1
  assert (match(folders, 'objectnet') == -1).all()


def test_the_result_is_of_the_source_in_its_order():
  result = match_names(['b', 'A'], [['a'], ['b']])
  np.testing.assert_array_equal(result, np.array([1, 0]))
  assert result.dtype == np.int64


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
