import collections
import hashlib
import io
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clip_jax.data.built_in import build
from clip_jax.data.emoji import emoji_dataset_builder
from clip_jax.data.sources import open_source
from clip_jax.errors import FailureError

TONES = (
  'light skin tone',
  'medium-light skin tone',
  'medium skin tone',
  'medium-dark skin tone',
  'dark skin tone',
)


@pytest.fixture(scope='module')
def splits(emoji_folder):
  """{'train': names, 'test': names}, each in the order of the records."""
  return {
    split: list(open_source(f'tfds:emoji#{split}').texts())
    for split in ('train', 'test')
  }


def person(name: str) -> str:
  """A name without its tones: who, not in which colour."""
  for tone in sorted(TONES, key=len, reverse=True):
    name = name.replace(tone, '')
  return ' '.join(name.split())


def test_counts(splits):
  assert len(splits['train']) == 3_501
  assert len(splits['test']) == 443
  assert len({*splits['train'], *splits['test']}) == 3_944


def test_held_out_names_are_those_that_the_hash_picks(splits):
  for split, names in splits.items():
    for name in names:
      number = int(hashlib.sha256(name.encode('utf-8')).hexdigest()[:8], 16)
      assert ('skin tone' in name and number % 5 == 0) == (split == 'test')


def test_every_person_and_every_tone_of_test_is_in_train(splits):
  train = set(map(person, splits['train']))
  assert not [x for x in splits['test'] if person(x) not in train]
  for tone in TONES:
    assert sum(tone in name for name in splits['train']) > 100
    assert sum(tone in name for name in splits['test']) > 20


def test_records(emoji_folder):
  source = open_source('tfds:emoji', captions=('caption', 'caption_de'))
  names = source.label_names
  assert names is not None
  assert list(names) == sorted(names)
  assert len(names) == 3_944
  ids = set()
  for index in range(0, len(source), 50):
    record = source[index]
    ids.add(record['id'])
    assert names[record['label']] == record['caption'][0]
    image = Image.open(io.BytesIO(record['image']))
    assert (image.format, image.mode) == ('PNG', 'RGB')
    assert image.size == (72, 72)
  assert len(ids) == len(range(0, len(source), 50))


def test_a_known_emoji(emoji_folder):
  codes = (
    'caption',
    *(f'caption_{x}' for x in emoji_dataset_builder.LANGUAGES),
  )
  source = open_source('tfds:emoji', captions=codes)
  records = {source.id(i): i for i in range(len(source))}
  assert len(records) == len(source)  # Unique ids.
  record = source[records['1f34e']]
  assert record['caption'][0] == 'red apple'
  assert 'roter apfel' in record['caption']
  assert len(record['caption']) == 14
  pixels = np.asarray(Image.open(io.BytesIO(record['image'])))
  assert (pixels[0, 0] == 255).all()  # White ground,
  red, green, blue = pixels[36, 20].tolist()
  assert red > 150 > green + blue  # and a red apple.


def test_images_are_composited_on_white(tmp_path):
  Image.new('RGBA', (2, 2), (255, 0, 0, 128)).save(tmp_path / 'a.png')
  data = emoji_dataset_builder.on_white(tmp_path / 'a.png')
  pixels = np.asarray(Image.open(io.BytesIO(data)))
  np.testing.assert_allclose(pixels[0, 0], [255, 127, 127], atol=1)


def test_building_again_does_nothing(emoji_folder, capsys):
  def state():
    return {
      x: os.stat(x).st_mtime_ns for x in pathlib.Path(emoji_folder).iterdir()
    }

  before = state()
  assert build('emoji') == emoji_folder
  assert state() == before
  assert capsys.readouterr() == ('', '')


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(
    FailureError, match='cannot build the data set emoji'
  ) as e:
    build('emoji', tmp_path / 'file')
  assert '\n' not in str(e.value)


@pytest.mark.slow
def test_two_processes_may_build_at_once(tmp_path):
  """And say one line each on stderr, none on stdout, without TensorFlow."""
  code = (
    'import sys; from clip_jax.data.sources import open_source; '
    "x = open_source('tfds:emoji#test'); assert len(x) == 443; x[0]; "
    "assert 'tensorflow' not in sys.modules"
  )
  environment = os.environ | {'TFDS_DATA_DIR': str(tmp_path)}
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', code],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for _ in range(2)
  ]
  for process in processes:
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert out == ''
    assert len(error.splitlines()) <= 1, error
  assert [x.name for x in (tmp_path / 'emoji').iterdir()] == ['1.0.0']


def test_every_emoji_once():
  images = emoji_dataset_builder.images()
  assert len(images) == 3_944
  keys = collections.Counter(map(emoji_dataset_builder.code_points, images))
  assert set(keys.values()) == {1}
