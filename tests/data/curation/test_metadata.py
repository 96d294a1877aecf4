"""The rows of metadata, in batches that fit in memory."""

import os

import pyarrow as pa
import pyarrow.parquet as pq

from clip_jax.data.curation import metadata
from clip_jax.data.curation.rows import POSITION


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
