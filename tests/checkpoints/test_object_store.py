"""Checkpoints in an object store, for which stand-ins of this machine serve."""

import jax
import numpy as np
import pytest
from etils import epath
from orbax.checkpoint._src.path import gcs_utils

import clip_jax
from clip_jax.checkpoints.manager import Checkpoints
from clip_jax.errors import FailureError, MissingModelError
from clip_jax.inference.references import recognise
from tests.object_store import Store, empty_store, serve_to_tensorstore
from tests.tiny_run import write_run


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Writes a run to the disk, and copies it into the store to read it there."""
  folder = tmp_path_factory.mktemp('run')
  write_run(folder)
  with (
    pytest.MonkeyPatch.context() as patch,
    empty_store(patch),
    serve_to_tensorstore(patch),
  ):
    for path in folder.rglob('*'):
      if path.is_file():
        copy = epath.Path('gs://bucket/run') / str(path.relative_to(folder))
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    yield folder


@pytest.mark.parametrize('inner', ['', '/', '/checkpoints/7'])
def test_a_model_is_loaded_from_a_store_as_from_a_disk(run, inner):
  model = clip_jax.load(f'gs://bucket/run{inner}')
  expected = clip_jax.load(run)
  assert model.config == expected.config
  assert jax.tree.all(
    jax.tree.map(np.array_equal, model.params, expected.params)
  )


@pytest.mark.parametrize(
  'url', ['gs://bucket/other', 'gs://bucket/run/config.json', 'https://a.b/c']
)
def test_no_run_at_a_url_is_one_line(run, url):
  with pytest.raises(MissingModelError, match='copy any other model') as caught:
    recognise(url)
  assert f'no model in {url}: ' in str(caught.value)


def test_a_store_that_cannot_be_reached_is_one_line(run, monkeypatch):
  def fail(*_, **__):
    raise OSError('503 try later')

  monkeypatch.setattr(Store, 'isdir', fail)
  with pytest.raises(
    FailureError, match=r'gs://bucket/run cannot be read: 503'
  ):
    recognise('gs://bucket/run')


def test_checkpoints_of_a_url_are_not_written_to_this_disk(
  run, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  # Orbax asks Google about the bucket.
  monkeypatch.setattr(
    gcs_utils, 'is_hierarchical_namespace_enabled', lambda path: False
  )
  checkpoints = Checkpoints('gs://bucket/new', keep=3)
  checkpoints.close()
  assert not list(tmp_path.iterdir())
  assert epath.Path('gs://bucket/new/checkpoints').is_dir()
