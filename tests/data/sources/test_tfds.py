import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import pytest

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import open_source
from clip_jax.errors import FailureError, UsageError

CODE = """
import sys
from clip_jax.data.sources import open_source
source = open_source('tfds:emoji#train')
assert source[7]['caption']
assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules
"""


def test_reading_needs_no_tensorflow(emoji_folder):
  done = subprocess.run(
    [sys.executable, '-c', CODE],
    capture_output=True,
    text=True,
    env=os.environ | {'PYTHONWARNINGS': 'error::ImportWarning'},
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_train_is_the_default_and_slices_are_splits(emoji_folder):
  whole = open_source('tfds:emoji')
  tenth = open_source('tfds:emoji#train[:10%]')
  assert len(whole) == len(open_source('tfds:emoji#train')) == 3_501
  assert len(tenth) == 350
  assert tenth[3] == whole[3]


def test_pickles_by_opening_again(emoji_folder):
  source = open_source('tfds:emoji#test', captions=('caption_fr',))
  assert len(pickle.dumps(source)) < 300
  assert pickle.loads(pickle.dumps(source))[5] == source[5]


@pytest.mark.parametrize(
  ('spec', 'captions', 'message'),
  [
    ('tfds:emoji#val', ('caption',), "no split 'val'; it has train, test"),
    ('tfds:nowhere', ('caption',), 'nowhere is not prepared in .*emoji'),
    ('tfds:emoji', ('caption_xx',), "no column 'caption_xx'; .*caption_de"),
    ('tfds:', ('caption',), 'nothing after tfds:'),
    ('mongo:db', ('caption',), 'SCHEME one of tfds, folder, csv'),
    ('emoji', ('caption',), 'SCHEME one of tfds, folder, csv'),
  ],
)
def test_mistakes_are_one_clear_line(emoji_folder, spec, captions, message):
  with pytest.raises(UsageError, match=message) as caught:
    open_source(spec, captions=captions)
  assert '\n' not in str(caught.value)


def test_a_damaged_file_is_corrupt_records(emoji_folder, tmp_path, monkeypatch):
  shutil.copytree(pathlib.Path(emoji_folder).parent, tmp_path / 'emoji')
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  (records,) = tmp_path.glob('emoji/*/emoji-test*')
  with records.open('r+b') as file:
    file.seek(200_000)
    file.write(b'\xff' * 100_000)
  source = open_source('tfds:emoji#test')
  corrupt = []
  for index in range(len(source)):
    try:
      assert source[index]['image']
    except CorruptImageError as error:
      corrupt.append(source.id(index))
      assert 'damaged record' in str(error)
  assert 0 < len(corrupt) < len(source)
  assert len(set(corrupt)) == len(corrupt)


def test_a_pipe_among_its_files_is_not_waited_for(
  emoji_folder, tmp_path, monkeypatch
):
  shutil.copytree(pathlib.Path(emoji_folder).parent, tmp_path / 'emoji')
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  (info,) = tmp_path.glob('emoji/*/dataset_info.json')
  info.unlink()
  os.mkfifo(info)
  with pytest.raises(FailureError, match=r'dataset_info\.json: a pipe'):
    open_source('tfds:emoji#test')
