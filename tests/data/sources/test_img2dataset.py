"""Shards that img2dataset's own writer wrote."""

import json

import pytest

from clip_jax.data.indexing.build import build_index
from clip_jax.data.sources import open_source, parse_spec
from tests.data.indexing.archives import png

pytestmark = pytest.mark.engines

CAPTIONS = ['a cat', 'ünïcode, "quoted"', None, 'two\nlines', 'last']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Two shards of its writer, with what it writes beside them."""
  import pyarrow
  from img2dataset.writer import WebDatasetSampleWriter

  folder = tmp_path_factory.mktemp('img2dataset')
  names = ('url', 'alt', 'key', 'status', 'width')
  types = (pyarrow.string(),) * 4 + (pyarrow.int32(),)
  schema = pyarrow.schema(list(zip(names, types, strict=True)))
  for shard in range(2):
    writer = WebDatasetSampleWriter(shard, str(folder), True, 5, schema, 'png')
    for i, caption in enumerate(CAPTIONS):
      key = f'{shard:05}{i:04}'
      row = {
        'url': f'https://example.com/{i}.png',
        'alt': f'alt {i}',
        'key': key,
        'status': 'success',
        'width': 8,
      }
      image = None if i == 4 and shard else png(i)  # its download failed
      writer.write(image, key, caption, row)
    writer.close()
    stats = {'count': 5, 'successes': 5 - shard}
    (folder / f'{shard:05}_stats.json').write_text(json.dumps(stats))
  return folder


@pytest.mark.parametrize('is_stored', [False, True])
def test_records_and_captions(folder, is_stored):
  spec = f'wds:{folder}/{{00000..00001}}.tar'
  if is_stored:
    build_index(parse_spec(spec))
  source = open_source(spec)
  keys = [f'0000{i // 5}.tar:0000{i // 5}{i % 5:04}' for i in range(9)]
  assert [source.id(i) for i in range(len(source))] == keys
  for i in range(len(source)):
    caption = CAPTIONS[i % 5]
    assert source[i] == {
      'id': keys[i],
      'image': png(i % 5),
      'caption': [caption] if caption else [],
    }
  assert list(source.captioned()) == [0, 1, 3, 4, 5, 6, 8]
  assert any('2 of 9 records without txt' in line for line in source.notices)


def test_fields_of_its_json_are_captions(folder):
  source = open_source(f'wds:{folder}/*.tar', captions=('alt', 'txt'))
  assert source[1]['caption'] == ['alt 1', CAPTIONS[1]]
  assert source[2]['caption'] == ['alt 2']
  assert source.captioned() is None


def test_a_pattern_of_the_whole_folder(folder):
  source = open_source(f'wds:{folder}/0000*')
  assert len(source) == 9
  assert '4 files of other names than .tar left out' in source.notices[0]
