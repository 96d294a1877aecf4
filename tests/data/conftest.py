"""The emoji data set, built once for all tests of this folder."""

import os

import pytest

from clip_jax.data.built_in import build


@pytest.fixture(scope='session')
def emoji_folder(tmp_path_factory):
  """Where TFDS finds a built emoji data set; the records' own folder."""
  data_dir = tmp_path_factory.mktemp('tfds')
  before = os.environ.get('TFDS_DATA_DIR')
  os.environ['TFDS_DATA_DIR'] = str(data_dir)
  yield build('emoji')
  if before is None:
    del os.environ['TFDS_DATA_DIR']
  else:
    os.environ['TFDS_DATA_DIR'] = before
