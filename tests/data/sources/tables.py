"""Small Parquet files and Hugging Face directories for tests."""

import io
import json
import pathlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.images import make_image


def image_bytes(seed: int) -> bytes:
  """A PNG of random pixels."""
  encoded = io.BytesIO()
  make_image(seed).save(encoded, 'PNG')
  return encoded.getvalue()


def rows(count: int, **columns: Any) -> dict[str, Any]:
  """Columns `image` and `caption` of so many records, and those given."""
  return {
    'image': [image_bytes(i) for i in range(count)],
    'caption': [f'caption {i}' for i in range(count)],
    **columns,
  }


def write_parquet(
  path: pathlib.Path, content: dict[str, Any] | pa.Table, group: int = 8
) -> str:
  """Writes a Parquet file; returns its SPEC."""
  path.parent.mkdir(parents=True, exist_ok=True)
  table = content if isinstance(content, pa.Table) else pa.table(content)
  pq.write_table(table, path, row_group_size=group)
  return f'parquet:{path}'


def write_stream(
  path: pathlib.Path, content: dict[str, Any] | pa.Table, batch: int = 8
) -> None:
  """Writes an Arrow stream, as Hugging Face's libraries do."""
  table = content if isinstance(content, pa.Table) else pa.table(content)
  with pa.ipc.new_stream(path, table.schema) as stream:
    stream.write_table(table, max_chunksize=batch)


def save_to_disk(
  folder: pathlib.Path,
  content: dict[str, Any],
  features: dict[str, Any] | None = None,
  shards: int = 2,
) -> None:
  """Writes the files of `datasets.Dataset.save_to_disk`, without images."""
  folder.mkdir(parents=True)
  table = pa.table(content)
  size = -(-table.num_rows // shards)
  names = [f'data-{i:05}-of-{shards:05}.arrow' for i in range(shards)]
  for i, name in enumerate(names):
    write_stream(folder / name, table.slice(i * size, size))
  state = {
    '_data_files': [{'filename': name} for name in names],
    '_fingerprint': '0123456789abcdef', '_format_columns': None,
    '_format_kwargs': {}, '_format_type': None, '_output_all_columns': False,
    '_split': 'train',
  }  # fmt: skip
  (folder / 'state.json').write_text(json.dumps(state))
  (folder / 'dataset_info.json').write_text(
    json.dumps({'features': features or {}, 'citation': ''})
  )


def hugging_face_rows(count: int) -> dict[str, Any]:
  """Columns as the library's Image and ClassLabel features make them."""
  content = rows(count)
  content['image'] = [
    {'bytes': data, 'path': f'{i}.png'}
    for i, data in enumerate(content['image'])
  ]
  return content | {'label': [i % 2 for i in range(count)]}


LABEL_FEATURES = {
  'image': {'_type': 'Image'},
  'label': {'names': ['red_cat', 'dog'], '_type': 'ClassLabel'},
  'caption': {'dtype': 'string', '_type': 'Value'},
}
