"""Class names and templates: as many as published, whole, and readable."""

import importlib.resources
import json
import shutil

import pytest

from clip_jax.errors import UsageError
from clip_jax.evaluation.datasets import (
  DATASETS,
  class_names,
  source,
  templates,
  wordnet_ids,
)
from clip_jax.evaluation.datasets import names as names_module

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
  assert (len(class_names(name)), len(templates(name))) == COUNTS[name]


@pytest.mark.parametrize('name', COUNTS)
def test_names_are_there_once(name: str):
  names = [x for several in class_names(name) for x in several]
  assert all(x and x == x.strip() for x in names)
  assert all(several for several in class_names(name))
  twice = {x for x in names if names.count(x) > 1}
  assert twice == REPEATED.get(name, set())


@pytest.mark.parametrize('name', COUNTS)
def test_templates_are_there_once_and_have_one_slot(name: str):
  texts = templates(name)
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
  assert source(name).endswith('.') and len(source(name)) > 20


def test_lists_are_in_the_order_of_prompts_md():
  # First, some in the middle, last: read in OpenAI's file.
  def at(name: str, *indices: int):
    return [class_names(name)[i][0] for i in indices]

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
  assert 'satellite imagery of {}.' in templates('resisc45')
  assert templates('clevr_counts') == ('a photo of {} objects.',)
  assert templates('patch_camelyon') == ('this is a photo of {}',)


def test_a_class_may_have_several_names():
  assert class_names('fer2013')[5] == ('surprised', 'shocked', 'spooked')
  assert class_names('fer2013')[0] == ('angry',)


def test_imagenet_names_stand_beside_their_wordnet_ids():
  ids, names = wordnet_ids('imagenet'), class_names('imagenet')
  assert list(ids) == sorted(set(ids))
  name_of = dict(zip(ids, names, strict=True))
  for key, name in {
    'n01440764': 'tench', 'n02012849': 'crane bird', 'n02123045': 'tabby cat',
    'n03126707': 'construction crane', 'n03710721': 'one-piece bathing suit',
    'n15075141': 'toilet paper',
  }.items():  # fmt: skip
    assert name_of[(key,)] == (name,)


@pytest.mark.parametrize('name', ['imagenet_r', 'imagenet_a'])
def test_a_shift_takes_the_names_of_its_ids_from_imagenet(name: str):
  name_of = dict(
    zip(wordnet_ids('imagenet'), class_names('imagenet'), strict=True)
  )
  assert len(set(wordnet_ids(name))) == 200
  assert class_names(name) == tuple(name_of[x] for x in wordnet_ids(name))


def test_an_objectnet_class_may_be_several_of_imagenet():
  ids = dict(
    zip(class_names('objectnet'), wordnet_ids('objectnet'), strict=True)
  )
  assert ids[('Alarm clock',)] == ('n02708093', 'n03196217')
  assert ids[('Chair',)] == ('n02791124', 'n03376595', 'n04099969')
  every = [x for several in ids.values() for x in several]
  assert len(every) == len(set(every))
  assert {(x,) for x in every} <= set(wordnet_ids('imagenet'))


def test_two_attributes_of_a_face_are_each_with_each():
  assert {x for (x,) in class_names('fairface_race_gender')} == {
    f'{race} {gender}'
    for (race,) in class_names('fairface_race')
    for (gender,) in class_names('fairface_gender')
  }


def test_an_unknown_data_set_is_refused():
  with pytest.raises(UsageError, match=r"no data set 'mnst': choose .* mnist"):
    class_names('mnst')


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
