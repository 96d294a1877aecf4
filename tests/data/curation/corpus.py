"""A small made-up corpus, and a curation of it that tests kill and resume.

python -m tests.data.curation.corpus METADATA QUERIES OUT ENGINE WORKERS
"""

import collections
import pathlib
import sys
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_jax.data.curation import balance_stages, metadata, pipeline
from clip_jax.data.curation.queries import QueryFiles
from clip_jax.data.curation.settings import Settings
from clip_jax.data.prepare.engine import Engine

WORDS = [f'word{i}' for i in range(60)]
PER_QUERY = 40


def write(folder, texts=1200, seed=0):
  """Writes two files of metadata and a list of queries.

  Words occur as Zipf's law has it; some rows are empty, copies, or match none.
  """
  rng = np.random.default_rng(seed)
  weights = 1 / np.arange(1, len(WORDS) + 1)
  rows = rng.choice(len(WORDS), (texts, 6), p=weights / weights.sum())
  captions = [' '.join(WORDS[x] for x in row) for row in rows]
  urls = [f'http://example.org/{i}.jpg' for i in range(texts)]
  for i in range(0, texts, 50):
    captions[i] = None if i % 100 else 'nothing of these'
  for i in range(7, texts, 40):
    captions[i], urls[i] = captions[i // 2 + 1], urls[i // 2 + 1]
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  half = texts // 2
  for name, part in (('a', slice(half)), ('b', slice(half, None))):
    table = pa.table({'url': urls[part], 'caption': captions[part]})
    pq.write_table(table, folder / f'{name}.parquet', row_group_size=150)
  queries = folder / 'queries.txt'
  queries.write_text('\n'.join([*WORDS, 'word0 word1', 'never there']))
  return folder


def curate(folder, out, engine=None, **fields):
  """Curates it in small parts: 8 spans and as many partitions."""
  settings = Settings(
    (str(folder),),
    queries=QueryFiles(lists=(str(folder / 'queries.txt'),)),
    **{'per_query': PER_QUERY, 'shard_rows': 300, **fields},
  )
  with (
    mock.patch.object(metadata, '_SPAN_ROWS', 150),
    mock.patch.object(pipeline, '_PARTITION_ROWS', 150),
    mock.patch.object(balance_stages, '_NUMBERS_AT_ONCE', 500),
  ):
    return pipeline.curate(settings, str(out), engine=engine)


def read(out):
  """All pairs of a collection, as one table."""
  return pa.concat_tables(
    pq.read_table(path) for path in sorted(out.glob('part-*.parquet'))
  )


def contents(out):
  """The files of a collection, with their bytes."""
  return {x.name: x.read_bytes() for x in sorted(out.iterdir()) if x.is_file()}


def counts(table, column):
  """How many pairs each query has in a column of lists."""
  return collections.Counter(
    query for row in table[column].to_pylist() for query in row
  )


if __name__ == '__main__':
  curate(
    pathlib.Path(sys.argv[1]),
    pathlib.Path(sys.argv[2]),
    Engine(sys.argv[3], int(sys.argv[4])),
  )
