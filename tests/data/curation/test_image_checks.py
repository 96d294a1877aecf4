"""Images that are looked at: what cannot be read, and what does not answer."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from clip_jax.data import block_cache, remote, storage
from clip_jax.data.curation.pipeline import curate
from clip_jax.data.curation.settings import Settings
from clip_jax.data.prepare.engine import Engine
from clip_jax.errors import FailureError
from tests.data.images import make_image
from tests.data.stores import put_in_memory

ONE = Engine(workers=1)


def test_a_missing_image_is_left_out_and_a_silent_store_ends_the_run(
  monkeypatch, tmp_path
):
  monkeypatch.setenv(block_cache.SIZE_VARIABLE, '0')
  image = io.BytesIO()
  make_image(0).save(image, 'PNG')
  put_in_memory('looked/a.png', image.getvalue())
  path = 'memory://looked/pairs.parquet'
  table = pa.table({'image': ['a.png', 'b.png'], 'caption': ['one', 'two']})
  with storage.writing(path) as temporary:
    pq.write_table(table, temporary)
  settings = Settings((path,), read_images=True)
  result = curate(settings, str(tmp_path / 'out'), engine=ONE)
  assert result['rows_out'] == 1
  assert list(result['corrupt']) == [f'{path}, memory://looked/b.png']

  real = MemoryFileSystem.cat_file

  def cat_file(self, name, *args, **kwargs):
    if name.endswith('.png'):
      raise ConnectionResetError('connection reset by peer')
    return real(self, name, *args, **kwargs)

  monkeypatch.setattr(MemoryFileSystem, 'cat_file', cat_file)
  monkeypatch.setattr(remote, 'RETRIES', remote.Retries(sleep=lambda _: None))
  with pytest.raises(FailureError, match=r'a\.png: connection reset'):
    curate(settings, str(tmp_path / 'other'), engine=ONE)


@pytest.mark.parametrize('folder', ['{}', 'memory://own'])
def test_images_elsewhere_than_the_metadata_are_not_opened(
  monkeypatch, tmp_path, folder
):
  folder = folder.format(tmp_path)
  image = io.BytesIO()
  make_image(0).save(image, 'PNG')
  content = image.getvalue()
  storage.write_bytes(f'{folder}/a.png', content)
  put_in_memory('secret.png', content)
  put_in_memory('secret/a.png', content)
  elsewhere = [
    'memory://secret.png', 'memory://secret/a.png', 'HTTP://10.0.0.1/a.png',
    'https://10.0.0.1/a.png', 'ftp://10.0.0.1/a.png', 'webhdfs://x/a.png',
    'chrome-extension://x/a.png', 's3://other/a.png', 'file:///a.png',
    'memory://own/x/../../secret.png', 'a\0.png',
  ]  # fmt: skip
  own = ['a.png']
  if storage.is_remote(folder):
    (tmp_path / 'local.png').write_bytes(content)
    elsewhere += ['../secret.png', str(tmp_path / 'local.png')]
    own += [f'{folder}/a.png']
  path = f'{folder}/pairs.parquet'
  names = [*own, *elsewhere]
  table = pa.table({'image': names, 'caption': names})
  with storage.writing(path) as temporary:
    pq.write_table(table, temporary)
  opened = []
  monkeypatch.setattr(
    MemoryFileSystem,
    'cat_file',
    _noting(opened, MemoryFileSystem.cat_file),
  )
  settings = Settings((path,), read_images=True)
  result = curate(settings, str(tmp_path / 'out'), engine=ONE)
  assert result['rows_out'] == len(own)
  assert len(result['corrupt']) == len(elsewhere)
  assert not [name for name in opened if 'secret' in name]


def _noting(opened, function):
  def noting(self, name, *args, **kwargs):
    opened.append(name)
    return function(self, name, *args, **kwargs)

  return noting
