"""The emoji data set, built once; remote files without a wait or a trace."""

import os

import pytest

from clip_jax.data import block_cache, remote
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


@pytest.fixture
def block_cache_folder(tmp_path, monkeypatch):
  """The folder of a test's own cache of remote files."""
  folder = tmp_path / 'cache'
  monkeypatch.setenv(block_cache.FOLDER_VARIABLE, str(folder))
  return folder


@pytest.fixture
def pauses(monkeypatch):
  """The pauses between attempts, which are not waited for."""
  made = []
  retries = remote.Retries(sleep=made.append, jitter=lambda: 1.0)
  monkeypatch.setattr(remote, 'RETRIES', retries)
  return made
