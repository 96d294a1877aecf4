"""Answers made of what TFDS lists for an image, or of its caption."""

import io
import pickle
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import open_source, parse_spec
from clip_jax.data.sources.tfds import TfdsSource
from clip_jax.errors import UsageError
from clip_jax.evaluation.datasets.names import match
from clip_jax.evaluation.datasets.targets import (
  CAPTION_TARGETS,
  TFDS_TARGETS,
  CaptionLabels,
  Greyscale,
  gender,
  skin_tone,
)
from tests.evaluation.datasets import tiny_tfds
from tests.evaluation.fakes import ListSource


@pytest.fixture
def opened(tmp_path, monkeypatch: pytest.MonkeyPatch):
  """Writes records under a name of TFDS's and opens them for a target."""
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))

  def call(name: str, target: str, records: list[dict[str, Any]]) -> TfdsSource:
    tiny_tfds.write(tmp_path, name, {'test': records})
    spec = parse_spec(f'tfds:{name}#test')
    return TfdsSource(spec, ('caption',), TFDS_TARGETS[target])

  return call


def in_order(source: TfdsSource, key: str) -> list[Any]:
  """TFDS shuffles what it writes: by file name, which is in the record."""
  rows: Any = source._records
  names = [rows[i][key].decode() for i in range(len(source))]
  return [source[i] for i in sorted(range(len(names)), key=lambda i: names[i])]


def voc(name: str, *objects: tuple[str, bool]) -> dict[str, Any]:
  return {
    'image/filename': name,
    'objects': [
      {
        'label': label,
        'bbox': tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
        'pose': 'frontal',
        'is_truncated': False,
        'is_difficult': difficult,
      }
      for label, difficult in objects
    ],
    'labels': sorted({label for label, _ in objects}),
    'labels_no_difficult': sorted(
      {x for x, difficult in objects if not difficult}
    ),
  }


def test_a_class_with_only_difficult_objects_is_neither_right_nor_wrong(opened):
  source = opened(
    'voc/2007',
    'object_labels',
    [
      voc('a', ('dog', False), ('cat', True), ('dog', True)),
      voc('b', ('person', True)),
      voc('c', ('cat', False), ('bus', False)),
    ],
  )
  names = source.label_names
  assert names is not None and len(names) == 20
  said = [
    (
      [names[x] for x in record.get('labels', [])],
      [names[x] for x in record.get('difficult', [])],
      record['caption'],
    )
    for record in in_order(source, 'image/filename')
  ]
  assert said == [
    (['dog'], ['cat'], ['dog']),
    ([], ['person'], []),
    (['bus', 'cat'], [], ['bus', 'cat']),
  ]
  assert (match(names, 'voc2007') >= 0).all()
  assert 'label' not in source[0]


def kitti(name: str, *objects: tuple[str, float]) -> dict[str, Any]:
  return {
    'image/file_name': name,
    'objects': [
      {
        'type': kind,
        'truncated': 0.0,
        'occluded': 0,
        'alpha': 0.0,
        'bbox': tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
        'dimensions': [1.0, 1.0, 1.0],
        'location': [50.0, 50.0, ahead],
        'rotation_y': 0.0,
      }
      for kind, ahead in objects
    ],
  }


def test_the_nearest_vehicle_is_near_further_far_or_none(opened):
  source = opened(
    'kitti',
    'nearest_vehicle',
    [
      kitti('a', ('Car', 30.0), ('Van', 7.9), ('Truck', 15.0)),
      kitti('b', ('Car', 8.0)),
      kitti('c', ('Pedestrian', 2.0), ('Truck', 8.1)),
      kitti('d', ('Van', 20.5)),
      kitti('e', ('Cyclist', 3.0), ('Tram', 3.0)),
      kitti('f'),
    ],
  )
  labels = [x.get('label') for x in in_order(source, 'image/file_name')]
  assert labels == [0, 0, 1, 2, 3, 3]
  assert source.label_names is not None
  assert match(source.label_names, 'kitti_distance').tolist() == [0, 1, 2, 3]


def clevr(name: str, count: int) -> dict[str, Any]:
  thing = {
    'color': 'red', 'material': 'metal', 'shape': 'cube', 'size': 'small',
    'rotation': 0.0, '3d_coords': [0.0] * 3, 'pixel_coords': [0.0] * 3,
  }  # fmt: skip
  asked = {'question': 'how many?', 'answer': str(count)}
  return {
    'file_name': name, 'objects': [thing] * count, 'question_answer': [asked],
  }  # fmt: skip


def test_objects_are_counted(opened):
  source = opened(
    'clevr', 'object_count', [clevr('a', 3), clevr('b', 10), clevr('c', 4)]
  )
  names = source.label_names
  assert names is not None
  labels = [x['label'] for x in in_order(source, 'file_name')]
  assert [names[x] for x in labels] == ['count_3', 'count_10', 'count_4']
  assert (match(names, 'clevr_counts') >= 0).all()


def test_a_source_with_a_target_pickles(opened):
  source = opened('clevr', 'object_count', [clevr('a', 5)])
  again = pickle.loads(pickle.dumps(source))
  assert again[0] == source[0]
  assert again[0]['label'] == 2
  assert len(pickle.dumps(source)) < 500


def test_a_data_set_without_the_features_is_refused(opened):
  opened('clevr', 'object_count', [clevr('a', 5)])
  spec = parse_spec('tfds:clevr#test')
  with pytest.raises(UsageError, match=r"clevr#test': no column 'labels'"):
    TfdsSource(spec, ('caption',), TFDS_TARGETS['object_labels'])


@pytest.mark.parametrize(
  ('caption', 'tone'),
  [
    ('thumbs up light skin tone', 'light skin tone'),
    ('thumbs up medium-light skin tone', 'medium-light skin tone'),
    ('thumbs up medium skin tone', 'medium skin tone'),
    ('man medium-dark skin tone bald', 'medium-dark skin tone'),
    ('dark skin tone', 'dark skin tone'),
    ('kiss man man dark skin tone dark skin tone', 'dark skin tone'),
    ('handshake light skin tone medium-light skin tone', None),
    ('light bulb', None),
    ('thumbs up', None),
  ],
)
def test_the_tone_of_a_name(caption: str, tone: str | None):
  label = skin_tone(caption)
  names = CAPTION_TARGETS['skin_tone'].label_names
  assert tone == (None if label is None else names[label])


@pytest.mark.parametrize(
  ('caption', 'who'),
  [
    ('man running', 'man'),
    ('deaf woman dark skin tone', 'woman'),
    ('person', 'person'),
    ('kiss woman man', None),
    ('kiss man man', None),
    ('family man boy', None),
    ('woman’s hat', None),
    ('pilot', None),
    ('women wrestling', None),
  ],
)
def test_who_a_name_is_of(caption: str, who: str | None):
  label = gender(caption)
  names = CAPTION_TARGETS['gender'].label_names
  assert who == (None if label is None else names[label])


def test_records_without_a_label_are_left_out_and_none_is_read_for_that():
  captions = [['a hand'], ['hand dark skin tone'], [], ['light skin tone']]
  # Images that cannot be read: choosing must not try.
  unreadable = ListSource([None] * 4, captions=captions)
  assert len(CaptionLabels(unreadable, 'skin_tone', captions)) == 2
  whole = ListSource([1, 2, 3, 4], captions=captions)
  source = CaptionLabels(whole, 'skin_tone', captions)
  assert [source[i].get('label') for i in range(2)] == [4, 0]
  assert [source.id(i) for i in range(2)] == ['image/1', 'image/3']
  assert source.captions(0) == ['hand dark skin tone'] == source[0]['caption']
  assert source[1]['image'] == whole[3]['image']
  assert source.spec != whole.spec  # A cache must not take one for the other.
  assert pickle.loads(pickle.dumps(source))[1] == source[1]


def test_a_record_whose_captions_say_two_things_is_left_out():
  captions = [['dark skin tone', 'light skin tone']]
  source = ListSource([1], captions=captions)
  assert len(CaptionLabels(source, 'skin_tone', captions)) == 0


def test_colours_go_and_brightness_stays(tmp_path):
  (tmp_path / 'red').mkdir()
  Image.new('RGB', (3, 2), (200, 0, 0)).save(tmp_path / 'red' / 'a.png')
  colour = open_source(f'folder:{tmp_path}')
  grey = Greyscale(colour)
  pixels = np.asarray(Image.open(io.BytesIO(grey[0]['image'])))
  assert pixels.shape == (2, 3, 3)
  # ITU-R 601: 0.299 of red.
  np.testing.assert_allclose(pixels, 0.299 * 200, atol=1)
  assert (len(grey), grey.label_names) == (1, ('red',))
  assert {**grey[0], 'image': b''} == {**colour[0], 'image': b''}
  assert (grey.id(0), grey.captions(0)) == (colour.id(0), colour.captions(0))
  assert grey.spec != colour.spec  # A cache must not take one for the other.


def test_an_unreadable_image_stays_one():
  with pytest.raises(CorruptImageError):
    Greyscale(ListSource([None]))[0]
