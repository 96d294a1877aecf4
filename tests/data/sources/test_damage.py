"""Damaged Parquet and Arrow files: each record is read, or named as corrupt."""

from random import Random

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.sources import open_source
from clip_jax.errors import FailureError, UsageError
from tests.data.sources.tables import (
  hugging_face_rows,
  rows,
  write_parquet,
  write_stream,
)
from tests.fuzz.mutations import changed

COUNT = 10


@pytest.fixture(scope='module')
def good(tmp_path_factory):
  """The bytes of a good file of each kind, by the SPEC's scheme and suffix."""
  folder = tmp_path_factory.mktemp('good')
  write_parquet(folder / 'x.parquet', rows(COUNT), group=4)
  table = pa.table(hugging_face_rows(COUNT))
  write_stream(folder / 'x.arrow', table, batch=4)
  with pa.ipc.new_file(
    folder / 'x.lz4', table.schema,
    options=pa.ipc.IpcWriteOptions(compression='lz4'),
  ) as file:  # fmt: skip
    file.write_table(table, max_chunksize=4)
  return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@settings(
  max_examples=60,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(['.parquet', '.arrow', '.lz4']), st.integers(0))
def test_each_record_is_read_or_named(good, tmp_path, suffix, seed):
  path = tmp_path / f'x{suffix}'
  path.write_bytes(changed(good[suffix], Random(seed)))
  scheme = 'parquet' if suffix == '.parquet' else 'hf'
  try:
    source = open_source(f'{scheme}:{path}')
  except (UsageError, FailureError) as error:
    assert str(path) in str(error)
    return
  for index in range(min(len(source), 2 * COUNT)):
    assert source.id(index).startswith(path.name)
    try:
      record = source[index]
    except CorruptImageError as error:
      assert str(error)
    else:
      assert isinstance(record['image'], bytes)
      assert all(isinstance(text, str) for text in record['caption'])
