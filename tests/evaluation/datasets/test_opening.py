"""A name or a SPEC becomes a data set; what is not asked for stays shut."""

import importlib.resources
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_jax.errors import UsageError
from clip_jax.evaluation.dataset import OUTSIDE, Split
from clip_jax.evaluation.datasets.names import read_names
from clip_jax.evaluation.datasets.opening import open_dataset
from clip_jax.evaluation.datasets.table import DATASETS
from tests.evaluation.datasets import tiny_fairface, tiny_tfds
from tests.evaluation.fakes import ListSource


@pytest.fixture
def prepared(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Path:
  """Where TFDS finds its data sets."""
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
  return tmp_path / 'tfds'


@pytest.fixture(scope='module')
def built(tmp_path_factory: pytest.TempPathFactory):
  """The same for those that build themselves, kept between tests."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('TFDS_DATA_DIR', str(tmp_path_factory.mktemp('tfds')))
    yield


def draw(folder: Path, *classes: str) -> Path:
  """An image in a folder for each class."""
  for name in classes:
    (folder / name).mkdir(parents=True)
    Image.new('RGB', (4, 4)).save(folder / name / 'a.png')
  return folder


def labels_of(split: Split) -> list[int]:
  source = split.source
  labels = [source[i].get('label', -1) for i in range(len(source))]
  return split.classes(np.array(labels)).tolist()


def test_labels_find_their_classes_by_name(prepared: Path):
  names = ('cheesecake', 'cheese_plate', 'apple_pie')
  records = [{'label': name} for name in names]
  tiny_tfds.write(
    prepared, 'food101', {'validation': records, 'train': records}
  )
  dataset = open_dataset('food101')
  source = dataset.test.source
  for i in range(3):
    label = source[i]['label']
    (result,) = dataset.test.classes(np.array([label])).tolist()
    # prompts.md has these two in another order than TFDS.
    assert source.label_names is not None
    assert dataset.first_names[result] == source.label_names[label].replace(
      '_', ' '
    )
  assert dataset.class_names == read_names('food101').classes
  assert dataset.templates == read_names('food101').templates
  assert (dataset.name, dataset.title) == ('food101', 'Food-101')
  assert dataset.metric == 'accuracy'
  assert open_dataset('food101').require_train('a probe').source.spec == (
    'tfds:food101#train'
  )


def test_a_missing_training_split_is_refused_when_it_is_asked_for(
  prepared: Path,
):
  tiny_tfds.write(prepared, 'mnist', {'test': [{'label': '3'}]})
  dataset = open_dataset('mnist')
  assert labels_of(dataset.test) == [3]
  train = dataset.require_train('a probe')
  with pytest.raises(UsageError, match="no split 'train'; it has test"):
    print(train.source)


def test_a_source_is_opened_once():
  opened: list[str] = []

  def open_it() -> ListSource:
    opened.append('!')
    return ListSource([1, 2], labels=[0, 1], names=('a', 'b'))

  split = Split(open_it, lambda source: np.array([1, 0]))
  assert not opened
  assert labels_of(split) == [1, 0] == labels_of(split)
  assert len(opened) == 1


def test_a_folder_below_the_root_is_a_row(tmp_path):
  draw(tmp_path / 'rendered_sst2' / 'test', 'negative', 'positive')
  draw(tmp_path / 'rendered_sst2' / 'train', 'positive')
  dataset = open_dataset('rendered_sst2', root=tmp_path)
  assert labels_of(dataset.test) == [0, 1]
  train = dataset.require_train('a probe')
  assert labels_of(train) == [1]  # Its only label, and not the first class.
  assert dataset.validation is not None
  with pytest.raises(UsageError, match=r'no folder .*/rendered_sst2/valid'):
    print(dataset.validation.source)


def test_another_training_split_goes_without_the_rows_validation(tmp_path):
  draw(tmp_path / 'rendered_sst2' / 'test', 'negative', 'positive')
  mine = draw(tmp_path / 'mine', 'Positive', 'negative')
  dataset = open_dataset('rendered_sst2', root=tmp_path, train=f'folder:{mine}')
  assert labels_of(dataset.require_train('a probe')) == [1, 0]
  assert dataset.validation is None
  dataset = open_dataset(
    'rendered_sst2', root=tmp_path, validation=f'folder:{mine}'
  )
  assert dataset.validation is not None
  assert labels_of(dataset.validation) == [1, 0]


def test_classes_that_are_not_evaluated_are_outside(prepared: Path):
  records = [{'label': x, 'file_name': x} for x in ('n01443537', 'n01440764')]
  tiny_tfds.write(prepared, 'imagenet_r', {'test': records})
  dataset = open_dataset('imagenet_r')
  assert len(dataset.class_names) == 200
  assert sorted(labels_of(dataset.test)) == [OUTSIDE, 0]
  assert dataset.train is None
  lines = [f'name {i}' for i in range(1_000)]
  renamed = open_dataset('imagenet_r', class_names=lines)
  # The second id of ImageNet is the first of ImageNet-R.
  assert (len(renamed.class_names), renamed.first_names[0]) == (200, 'name 1')
  assert sorted(labels_of(renamed.test)) == [OUTSIDE, 0]


def test_multi_label_data_have_several_classes(prepared: Path):
  record: dict[str, Any] = {
    'image/filename': 'a',
    'objects': [],
    'labels': ['pottedplant', 'dog'],
    'labels_no_difficult': ['pottedplant'],
  }
  tiny_tfds.write(prepared, 'voc/2007', {'test': [record]})
  dataset = open_dataset('voc2007')
  result = dataset.test.source[0].get('labels')
  assert result is not None
  (index,) = dataset.test.classes(np.array(result)).tolist()
  assert dataset.first_names[index] == 'pottedplant'
  assert dataset.metric == 'map_11_point'


@pytest.mark.parametrize(
  ('name', 'answers', 'classes'),
  [
    ('race', ['East Asian', 'Latino Hispanic', 'East Asian'], 7),
    ('gender', ['Female', 'Male', 'Male'], 2),
    ('age', ['3-9', 'more than 70', '20-29'], 9),
    (
      'race_gender',
      ['East Asian Female', 'Latino Hispanic Male', 'East Asian Male'],
      14,
    ),
  ],
)
def test_an_attribute_of_a_face_is_its_class(
  tmp_path, name: str, answers: list[str], classes: int
):
  tiny_fairface.write(tmp_path)
  dataset = open_dataset(f'fairface_{name}', root=tmp_path)
  for split in (dataset.test, dataset.require_train('a probe')):
    result = [dataset.first_names[c] for c in labels_of(split)]
    assert result == answers
  assert len(dataset.class_names) == classes
  source = dataset.test.source
  assert [source.captions(i) for i in range(3)] == [[x] for x in answers]
  assert source.id(0) == 'val/1.jpg'


def test_published_columns_of_faces_may_be_captions(tmp_path):
  tiny_fairface.write(tmp_path)
  source = open_dataset(
    'fairface_age', root=tmp_path, captions=('race', 'gender')
  ).test.source
  assert source.captions(1) == ['Latino_Hispanic', 'Male']


def test_another_value_of_an_attribute_is_refused(tmp_path):
  tiny_fairface.write(tmp_path, [('70+', 'Male', 'Black')])
  with pytest.raises(UsageError, match=r"'70\+' is no class of fairface_age"):
    open_dataset('fairface_age', root=tmp_path)


def test_a_retrieval_set_has_captions_and_no_classes(tmp_path):
  folder = tmp_path / 'flickr30k' / 'test'
  folder.mkdir(parents=True)
  Image.new('RGB', (4, 4)).save(folder / 'a.png')
  (folder / 'a.txt').write_text('a dog\na hound\n')
  dataset = open_dataset('flickr30k', root=tmp_path)
  assert dataset.test.source.captions(0) == ['a dog', 'a hound']
  assert dataset.class_names == ()
  assert dataset.templates == ('a photo of {}',)


@pytest.mark.slow  # reads every caption of the emoji three times
@pytest.mark.parametrize(
  ('name', 'test', 'train', 'classes'),
  [
    ('emoji', 443, 3_501, 3_944),
    ('emoji_skin_tones', 355, 1_295, 5),
    ('emoji_skin_tones_grey', 355, 1_295, 5),
    ('emoji_people', 239, 1_080, 3),
    ('digits', 359, 1_438, 10),
  ],
)
def test_local_data_sets_can_be_evaluated_on_every_machine(
  built: None, name: str, test: int, train: int, classes: int
):
  dataset = open_dataset(name)
  source = dataset.test.source
  other = dataset.require_train('a probe')
  assert (len(other.source), len(source)) == (train, test)
  assert (train, test) == DATASETS[name].sizes
  assert len(dataset.class_names) == classes
  for i in range(0, test, 60):
    record = source[i]
    (index,) = dataset.test.classes(np.array([record.get('label')])).tolist()
    said = record['caption'][0]
    assert dataset.first_names[index] in said
    label = other.source[i].get('label')
    assert 0 <= other.classes(np.array([label]))[0] < classes


@pytest.mark.slow  # builds the emoji
def test_other_captions_leave_the_labels(built: None):
  dataset = open_dataset('emoji_skin_tones', captions=('caption_de',))
  assert len(dataset.test.source) == 355
  assert 'hautfarbe' in dataset.test.source.captions(0)[0]


def test_a_users_folder_is_a_data_set(tmp_path):
  draw(tmp_path / 'test', 'cat', 'dog')
  draw(tmp_path / 'train', 'dog', 'cat')
  spec = f'folder:{tmp_path}#test'
  dataset = open_dataset(spec, train=f'folder:{tmp_path}#train')
  assert (dataset.name, dataset.first_names) == (spec, ('cat', 'dog'))
  assert labels_of(dataset.require_train('a probe')) == [0, 1]
  assert open_dataset(spec).train is None
  only = draw(tmp_path / 'only', 'dog')
  train = open_dataset(spec, train=f'folder:{only}').require_train('a probe')
  assert labels_of(train) == [1]


def test_a_users_names_are_in_the_order_of_the_labels(tmp_path):
  draw(tmp_path, 'n1', 'n2')
  dataset = open_dataset(
    f'folder:{tmp_path}', class_names=['a cat | kitten', 'a dog']
  )
  assert dataset.class_names == (('a cat', 'kitten'), ('a dog',))
  assert labels_of(dataset.test) == [0, 1]


def test_names_for_numbers_bound_the_labels(tmp_path):
  Image.new('RGB', (4, 4)).save(tmp_path / 'a.png')
  (tmp_path / 'a.csv').write_text('image,label\na.png,1\n')
  spec = f'csv:{tmp_path}/a.csv'
  assert labels_of(open_dataset(spec, class_names=['a', 'b']).test) == [1]
  with pytest.raises(UsageError, match='1 of 1 labels are not 0 to 0, such as'):
    labels_of(open_dataset(spec, class_names=['a']).test)


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('cifr10', {}, "no data set 'cifr10': the nearest is 'cifar10'"),
    ('mongo:x', {}, 'SCHEME one of tfds, folder, csv'),
    ('gtsrb', {}, r'gtsrb#test: no such folder \(--root, CLIP_JAX_DATA or'),
    ('mnist', {}, r'tfds:mnist#test: not prepared \(tfds build mnist --file'),
    ('rendered_sst2', {}, "label 'neutral' is no class of rendered_sst2"),
    (
      'folder:{root}/rendered_sst2#test',
      {'class_names': ['a', 'b', 'c']},
      '--class_names has 3 names, and data .* has 1 classes: .* neutral',
    ),
    (
      'folder:{root}/rendered_sst2#test',
      {'class_names': [' | ']},
      '--class_names: line 1 has no name',
    ),
  ],
)
def test_mistakes_are_one_clear_line(
  tmp_path, prepared: Path, name: str, options: Any, message: str
):
  draw(tmp_path / 'rendered_sst2' / 'test', 'neutral')
  name = name.replace('{root}', str(tmp_path))
  with pytest.raises(UsageError, match=message) as caught:
    open_dataset(name, root=tmp_path, **options)
  assert '\n' not in str(caught.value)


def test_training_data_with_other_labels_are_refused(tmp_path):
  draw(tmp_path / 'test', 'cat')
  draw(tmp_path / 'train', 'cow')
  dataset = open_dataset(
    f'folder:{tmp_path}#test', train=f'folder:{tmp_path}#train'
  )
  with pytest.raises(UsageError, match="has a label 'cow', unlike"):
    print(dataset.require_train('a probe').class_of_label)


def test_the_readmes_lines_write_the_table_of_imagenet_vid(
  tmp_path, monkeypatch
):
  folder = tmp_path / 'imagenet_vid_robust'
  anchors = {'val/a/0.JPEG': [8, 9], 'val/a/7.JPEG': [9], 'val/b/1.JPEG': [0]}
  names = {0: 'airplane', 8: 'dog', 9: 'domestic_cat'}
  for path in anchors:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (8, 8)).save(folder / path)
  for path, value in {
    'misc/imagenet_vid_class_index.json': {
      str(n): [f'n{n}', name] for n, name in names.items()
    },
    'metadata/labels.json': anchors,
    'metadata/pmsets.json': {anchor: [] for anchor in anchors},
  }.items():
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_text(json.dumps(value))
  package = importlib.resources.files('clip_jax.evaluation.datasets')
  text = (package / 'README.md').read_text()
  monkeypatch.chdir(folder)
  exec(text.split('```python\n')[1].split('```')[0], {})
  dataset = open_dataset('imagenet_vid_robust', root=tmp_path)
  labels = np.array([x.get('label') for x in dataset.test.source])
  result = [dataset.first_names[c] for c in dataset.test.classes(labels)]
  assert result == ['dog', 'domestic cat', 'airplane']
