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
