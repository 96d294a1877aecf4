"""Tars of WebDataset as a source, sound and damaged."""

import json
import pathlib
import pickle
import tarfile
import tempfile

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.indexing.build import build_index
from clip_jax.data.inspect import inspect
from clip_jax.data.sources import open_source, parse_spec
from clip_jax.errors import FailureError, UsageError
from tests.data.indexing.archives import (
  archive,
  damaged_archives,
  pairs,
  png,
  special,
  unmarked,
)


def write(folder, **shards):
  """Shards NAME.tar of the bytes or members that are given."""
  for name, content in shards.items():
    data = content if isinstance(content, bytes) else archive(content)
    (folder / f'{name}.tar').write_bytes(data)
  return f'wds:{folder}/*.tar'


def records(spec, **options):
  source = open_source(spec, **options)
  return [source[i] for i in range(len(source))]


def captions(spec, **options):
  return [record['caption'] for record in records(spec, **options)]


def test_records_are_those_of_all_shards_in_order(tmp_path):
  spec = write(tmp_path, b=pairs(2, 2), a=pairs(2))
  assert records(spec) == [
    {
      'id': f'{shard}.tar:{i:04}',
      'image': png(i),
      'caption': [f'caption {i}'],
    }
    for i, shard in enumerate('aabb')
  ]


@pytest.mark.parametrize('is_stored', [False, True])
def test_what_the_webdataset_package_writes(tmp_path, is_stored):
  pattern = str(tmp_path / 'shard-%02d.tar')
  with webdataset.ShardWriter(pattern, maxcount=3, verbose=0) as shards:
    for i in range(8):
      shards.write(
        {
          '__key__': f'folder/sample{i}',
          'png': png(i),
          'txt': f'caption {i}, ünïcode',
          'cls': i % 3,
          'json': {'alt_txt': f'alt {i}', 'size': [8, 8]},
        }
      )
  spec = f'wds:{tmp_path}/shard-{{00..02}}.tar'
  if is_stored:
    build_index(parse_spec(spec))
  source = open_source(spec)
  assert bool(source.notices) != is_stored
  assert [source[i] for i in range(len(source))] == [
    {
      'id': f'shard-{i // 3:02}.tar:folder/sample{i}',
      'image': png(i),
      'caption': [f'caption {i}, ünïcode'],
      'label': i % 3,
    }
    for i in range(8)
  ]
  assert captions(spec, captions=('alt_txt', 'txt'))[4] == [
    'alt 4',
    'caption 4, ünïcode',
  ]


def test_a_source_pickles(tmp_path):
  spec = write(tmp_path, a=pairs(3))
  for _ in range(2):
    source = open_source(spec)
    copy = pickle.loads(pickle.dumps(source))
    assert copy[2] == source[2]
    build_index(parse_spec(spec))


def test_no_file_stays_open_for_the_names_of_records(tmp_path):
  source = open_source(write(tmp_path, a=pairs(2), b=pairs(2, 2)))
  assert [source.id(i) for i in range(4)] == [
    'a.tar:0000',
    'a.tar:0001',
    'b.tar:0002',
    'b.tar:0003',
  ]


def test_names_of_hundreds_of_characters(tmp_path):
  key = 'é' * 120 + '/' + 'x' * 3000
  data = archive(
    {f'{key}.png': png(), f'{key}.txt': b'long'}, format=tarfile.PAX_FORMAT
  )
  source = open_source(write(tmp_path, a=data))
  assert source[0]['caption'] == ['long']
  assert source[0]['id'] == source.id(0) == f'a.tar:{key}'


@pytest.mark.parametrize(
  ('members', 'options', 'expected'),
  [
    ({'a.caption': b' of a file '}, {}, ['of a file']),
    ({'a.text': b'text', 'a.txt': b'txt'}, {}, ['txt']),
    (
      {'a.text': b'1', 'a.txt': b'2'},
      {'captions': ('text', '.txt')},
      ['1', '2'],
    ),
    ({'a.json': b'{"caption": "in json"}'}, {}, ['in json']),
    ({'a.JSON': b'{"x": ["1", "2", ""]}'}, {'captions': ('x',)}, ['1', '2']),
    ({'a.json': b'{"x": null}'}, {'captions': ('x',)}, []),
    ({'a.txt': b'two\nlines'}, {}, ['two\nlines']),
  ],
)
def test_captions(tmp_path, members, options, expected):
  spec = write(tmp_path, a={'a.png': png(), **members})
  assert captions(spec, **options) == [expected]
  assert open_source(spec, **options).captions(0) == expected


def test_the_columns_of_several_captions_are_numbered(tmp_path):
  members = {'a.png': png(), 'a.json': b'{"x": ["1", "", "2"]}', 'a.txt': b'3'}
  spec = write(tmp_path, a=members)
  (record,) = records(spec, captions=('x', 'txt'))
  assert (record['caption'], record['columns']) == (['1', '2', '3'], [0, 0, 1])


def test_shards_of_which_nothing_can_be_read_say_why(tmp_path):
  spec = write(tmp_path, a=b'\x1f\x8b\x08' + bytes(600))
  source = open_source(spec)
  assert not source.has_captions()
  assert 'nothing in its shards can be read: a compressed' in source.remedy


def test_a_column_that_no_record_has(tmp_path):
  spec = write(
    tmp_path, a={'a.png': png(), 'a.txt': b'1', 'a.json': b'{"alt": "1"}'}
  )
  with pytest.raises(UsageError, match="no column 'title'; it has alt, json"):
    open_source(spec, captions=('title',))


def test_records_without_a_caption_are_known(tmp_path):
  members = pairs(6)
  del members['0001.txt'], members['0004.txt']
  members['0005.txt'] = b''
  spec = write(tmp_path, a=members)
  source = open_source(spec)
  assert len(source) == 6
  assert list(source.captioned()) == [0, 2, 3]
  notice = source.notices[-1]
  assert "3 of 6 records without txt ('a.tar:0001', 'a.tar:0004'" in notice
  write(tmp_path, a=pairs(6))
  assert open_source(spec).captioned() is None


def test_labels_have_the_names_of_a_file_beside_the_shards(tmp_path):
  (tmp_path / 'classnames.txt').write_text('red apple\npear\n')
  spec = write(
    tmp_path,
    a={'a.png': png(), 'a.cls': b'1', 'b.png': png(), 'b.cls': b'7'},
  )
  source = open_source(spec)
  assert source.label_names == ('red apple', 'pear')
  assert source[0]['label'] == 1
  assert source[0]['caption'] == ['pear']
  with pytest.raises(CorruptImageError, match='its label 7 has no name'):
    source[1]


@pytest.mark.parametrize(
  'members', [{'a.json': b'{"label": -1}'}, {'a.cls': b'-1'}]
)
def test_a_label_of_minus_one_is_none(tmp_path, members):
  spec = write(tmp_path, a={'a.png': png(), 'a.txt': b'a cat', **members})
  (record,) = records(spec)
  assert record['caption'] == ['a cat']
  assert 'label' not in record


DAMAGES = {  # members of one record, and why it is corrupt
  r'no image among its members \(txt\)': {'a.txt': b'1'},
  'its json is not JSON': {'a.png': png(), 'a.json': b'{'},
  'json holds no object': {'a.png': png(), 'a.json': b'[]'},
  'a caption is not UTF-8': {'a.png': png(), 'a.txt': b'\xff'},
  "its label 'x' is no number": {'a.png': png(), 'a.cls': b'x'},
}


@pytest.mark.parametrize('reason', DAMAGES)
def test_a_damaged_record_is_corrupt_and_others_are_not(tmp_path, reason):
  good = {**pairs(1), '0000.json': b'{"x": "1"}', '0000.cls': b'1'}
  spec = write(tmp_path, a={**good, **DAMAGES[reason]})
  source = open_source(spec, captions=('txt', 'x'))
  assert source[0]['caption'] == ['caption 0', '1']
  with pytest.raises(CorruptImageError, match=reason):
    source[1]
  assert source.id(1) == 'a.tar:a'
  assert source.captions(1) in ([], ['1'])


SHARDS = ('a.tar', 'b.tar', 'c.tar', 'd.tar', 'e.tar')


def test_every_damage_of_a_shard_is_counted_and_named(tmp_path):
  whole = archive(pairs(1, 8))
  spec = write(
    tmp_path,
    a=unmarked(archive({**pairs(2), '../../evil.png': png()}))
    + special('link.png', tarfile.SYMTYPE, linkname='/etc/passwd')
    + b'junk'.ljust(512, b'\1')
    + special('huge.png', tarfile.REGTYPE, size=2**32)
    + archive(pairs(1, 2)),
    b=unmarked(archive({'x.png': b'<html>', 'x.txt': b'1'}))
    + unmarked(archive(pairs(1, 3)))
    + unmarked(archive(pairs(1, 3))),
    c=whole[: len(png(8)) // 2 + 512],
    d=b'\x1f\x8b\x08' + bytes(600),
    e=b'',
  )
  summary = inspect(spec)
  reasons = {x['id']: x['reason'] for x in summary['corrupt_records']}
  offset = (tmp_path / 'a.tar').read_bytes().index(b'link.png')
  assert reasons[f'a.tar:link.png@{offset}'].startswith('a link')
  assert reasons['b.tar:x'] == 'not an image in a known format'
  starts = [(x, y.partition(':')[0]) for x, y in reasons.items()]
  assert starts == [
    ('a.tar:../../evil.png@4096', 'a name that leads out of the folder'),
    (f'a.tar:link.png@{offset}', 'a link, which no record can be'),
    (f'a.tar@{offset + 512}', 'not a tar header'),
    (f'a.tar:huge.png@{offset + 1024}', 'the archive is cut off here'),
    ('b.tar:x', 'not an image in a known format'),
    ('b.tar:0003.png@4096', 'a second member of this name in its record'),
    ('b.tar:0003.txt@5120', 'a second member of this name in its record'),
    ('b.tar@6144', 'the archive is cut off here'),
    ('c.tar:0008.png@0', 'the archive is cut off here'),
    ('d.tar@0', 'a compressed archive, which cannot be read from the middle'),
    ('e.tar@0', 'the archive is cut off here'),
  ]
  assert summary['corrupt'] == 11
  assert summary['records'] - summary['corrupt'] == 4
  assert any('8' in x or 'damaged members' in x for x in summary['notices'])
  assert sorted(x.name for x in tmp_path.iterdir()) == list(SHARDS)
  with pytest.raises(FailureError, match='10 damaged members, over --max_corr'):
    build_index(parse_spec(spec), max_corrupt=9)
  build_index(parse_spec(spec), max_corrupt=10)
  stored = inspect(spec)
  assert stored['corrupt_records'] == summary['corrupt_records']


@settings(max_examples=50)
@given(damaged_archives(), st.booleans())
def test_any_shard_is_read_to_its_end(data, is_stored):
  """Each record is sound or corrupt, with its own id; a good one stays."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    spec = write(folder, a={'good.png': png(), 'good.txt': b'good'}, b=data)
    if is_stored:
      build_index(parse_spec(spec), max_corrupt=1000)
    source = open_source(spec, captions=('txt',))
    ids = [source.id(i) for i in range(len(source))]
    assert len(set(ids)) == len(ids)
    assert source[0]['caption'] == source.captions(0) == ['good']
    for i in range(1, len(source)):
      source.captions(i)
      try:
        assert source[i]['id'] == ids[i]
      except CorruptImageError as error:
        assert str(error)
    assert {x.name for x in folder.iterdir()} <= {
      'a.tar',
      'b.tar',
      'clip_jax_index',
    }


def test_an_image_is_told_by_its_content_and_then_by_its_name(tmp_path):
  spec = write(
    tmp_path,
    a={
      'a.mask.png': png(1),
      'a.jpg': png(2),
      'b.raw': png(3),
      'b.txt': b'1',
      'c.jpg': b'<html>',
      'c.seg.png': png(4),
    },
  )
  assert [x['image'] for x in records(spec)] == [png(2), png(3), b'<html>']


def test_a_split_is_a_folder_with_the_names_of_labels_above(tmp_path):
  (tmp_path / 'test').mkdir()
  (tmp_path / 'classnames.txt').write_text('cat\ndog')
  write(tmp_path / 'test', a={'0.png': png(), '0.cls': b'1'})
  source = open_source(f'wds:{tmp_path}#test')
  assert (source.label_names, source[0]['caption']) == (('cat', 'dog'), ['dog'])
  build_index(parse_spec(f'wds:{tmp_path}#test'))
  assert not open_source(f'wds:{tmp_path}#test').notices


def test_records_of_images_alone_say_what_captions_would_be(tmp_path):
  source = open_source(write(tmp_path, a={'0.png': png(), '1.jpg': png()}))
  assert source.remedy.endswith('images only: add KEY.txt to each')
  source = open_source(write(tmp_path, b={'0.png': png(), '0.alt': b'x'}))
  assert source.remedy == 'name columns of captions, of alt'


def test_bad_specs(tmp_path):
  for spec, message in (
    (f'wds:{tmp_path}/none*.tar', 'matches no file'),
    (f'wds:{tmp_path}/{{0..2}}.tar', 'matches no file'),
    (f'wds:{tmp_path}#train', 'matches no file; #train names a sub-folder'),
    (write(tmp_path, empty={}), 'no records'),
  ):
    with pytest.raises(UsageError, match=message):
      open_source(spec)


def test_other_files_that_a_pattern_matches(tmp_path):
  write(tmp_path, a=pairs(1))
  (tmp_path / 'a_stats.json').write_text('{}')
  source = open_source(f'wds:{tmp_path}/a*')
  assert len(source) == 1
  assert '1 file of other names than .tar left out' in source.notices[0]
  assert len(open_source(f'wds:{tmp_path}')) == 1
  assert len(open_source(str(tmp_path / 'a.tar'))) == 1


def test_a_field_of_another_type_than_text(tmp_path):
  members = {'a.png': png(), 'a.json': json.dumps({'caption': 1}).encode()}
  source = open_source(write(tmp_path, a=members))
  with pytest.raises(CorruptImageError, match="field 'caption' holds no texts"):
    source[0]
