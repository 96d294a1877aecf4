"""What settings need of columns is asked for before any work."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax.data.curation import pipeline
from clip_jax.data.curation.settings import Settings
from clip_jax.data.prepare.engine import Engine
from clip_jax.errors import UsageError


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'min_side': 3}, 'need columns of widths and heights'),
    ({'min_score': 0.3}, '--min_score needs a column'),
    ({'ids': ('ids.txt',)}, 'no column of ids'),
    ({'evaluation': ('folder:x',)}, 'add --read_images'),
    ({'copies': 'images'}, '--copies=images needs --read_images'),
    ({'near': 0.9}, 'near copies are found by embeddings'),
    ({'columns': {'text': 'x'}}, '--text_column=x: the columns are url'),
    ({'columns': {'text': 'n'}}, 'holds int64, not texts'),
  ],
)
def test_columns_that_are_missing_are_named(fields, message, tmp_path):
  table = pa.table({'url': ['u'], 'caption': ['c'], 'n': [1]})
  pq.write_table(table, tmp_path / 'x.parquet')
  if 'ids' in fields:
    fields = {'ids': (str(tmp_path / 'x.parquet'),)}
  with pytest.raises(UsageError, match=message):
    pipeline.curate(
      Settings((str(tmp_path),), **fields),
      str(tmp_path / 'out'),
      engine=Engine(workers=1),
    )
  assert not (tmp_path / 'out').exists()
