"""The rows of metadata, in batches that fit in memory."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax.data import storage
from clip_jax.data.curation import metadata
from clip_jax.data.curation.rows import POSITION
from clip_jax.errors import MissingFileError
from tests.data.stores import put_in_memory


def test_rows_with_images_come_a_few_at_a_time(tmp_path, monkeypatch):
  images = [os.urandom(1000) for _ in range(100)]
  table = pa.table({'image': images, 'text': [str(i) for i in range(100)]})
  path = tmp_path / 'pairs.parquet'
  pq.write_table(table, path, row_group_size=60)
  monkeypatch.setattr(metadata, '_BATCH_BYTES', 10_000)
  opened = metadata.open_metadata([str(path)], {}, 0)
  batches = [
    batch
    for span in opened.spans
    for batch in metadata.read_span(span, opened.schema, {}, 0)
  ]
  assert max(batch.num_rows for batch in batches) <= 10
  rows = pa.Table.from_batches(batches)
  assert rows['image'].to_pylist() == images
  assert rows[POSITION].to_pylist() == list(range(100))


@pytest.mark.usefixtures('block_cache_folder')
def test_a_remote_file_that_goes_is_no_damage(tmp_path):
  path = tmp_path / 'pairs.parquet'
  pq.write_table(pa.table({'text': ['a', 'b']}), path)
  url = put_in_memory('metadata/pairs.parquet', path.read_bytes())
  opened = metadata.open_metadata([url], {}, 0)
  storage.remove(url)
  corrupt: dict[str, str] = {}
  with pytest.raises(MissingFileError, match='no such file'):
    list(metadata.read_span(opened.spans[0], opened.schema, corrupt, 9))
  assert not corrupt
