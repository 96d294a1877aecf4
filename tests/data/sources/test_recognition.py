"""The scheme of a path that names none."""

import pytest

from clip_jax.data.sources import open_source, with_scheme
from clip_jax.errors import MissingFileError, UsageError
from tests.data.images import captioned_folder
from tests.data.layouts import write_layouts
from tests.data.sources.tables import image_bytes, rows, write_parquet
from tests.data.stores import put_in_memory


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('layouts')
  records = [
    {'id': str(i), 'image': image_bytes(i), 'caption': [f'c {i}']}
    for i in range(6)
  ]
  write_layouts(folder, records)
  return folder


@pytest.mark.parametrize(
  ('path', 'scheme'),
  [
    ('images', 'folder'),
    ('table.csv', 'csv'),
    ('tars', 'wds'),
    ('tars/00000.tar', 'wds'),
    ('tars/{00000..00001}.tar', 'wds'),
    ('parquet', 'parquet'),
    ('parquet/*.parquet', 'parquet'),
    ('records', 'arrayrecord'),
    ('records/00001.array_record', 'arrayrecord'),
    ('hf', 'hf'),
    ('hf/*.arrow', 'hf'),
  ],
)
def test_what_is_there_tells_the_scheme(folder, path, scheme):
  assert with_scheme(f'{folder}/{path}') == f'{scheme}:{folder}/{path}'
  source = open_source(f'{folder}/{path}')
  assert source[0]['caption'] == ['c 0' if '00001.a' not in path else 'c 3']
  assert 'taken for' in source.notices[0]


def test_content_tells_and_no_suffix(tmp_path):
  write_parquet(tmp_path / 'data.bin', rows(2))
  assert with_scheme(f'{tmp_path}/data.bin') == f'parquet:{tmp_path}/data.bin'
  url = put_in_memory('named/x', (tmp_path / 'data.bin').read_bytes())
  assert with_scheme(url) == f'parquet:{url}'
  assert with_scheme('memory://named/*') == 'parquet:memory://named/*'


def test_folders_of_images_beside_tables_stay_folders(tmp_path):
  captioned_folder(tmp_path / '00000', 2)
  write_parquet(tmp_path / '00000.parquet', rows(2))
  assert with_scheme(str(tmp_path)) == f'folder:{tmp_path}'


def test_folders_of_the_hub_and_of_tfds(tmp_path, emoji_folder):
  write_parquet(tmp_path / 'data/train-00000-of-00001.parquet', rows(2))
  assert with_scheme(f'{tmp_path}#train') == f'hf:{tmp_path}#train'
  assert len(open_source(f'{tmp_path}#train')) == 2
  assert with_scheme(str(emoji_folder)) == f'arrayrecord:{emoji_folder}'


@pytest.mark.parametrize('text', ['nothing*here', 's{a,b}', 'emoji'])
def test_what_is_not_there_is_no_spec(text):
  with pytest.raises(UsageError, match='SCHEME:LOCATION'):
    open_source(text)


def test_a_url_that_cannot_be_read_says_why():
  with pytest.raises(MissingFileError, match='memory://none/x: no such file'):
    open_source('memory://none/x')
  with pytest.raises(UsageError, match='nosuch'):
    open_source('nosuch://x')


def test_another_file_is_refused(tmp_path):
  (tmp_path / 'x').write_bytes(b'junk')
  with pytest.raises(UsageError, match='a file, where'):
    open_source(f'{tmp_path}/x')


@pytest.mark.parametrize(
  ('wrong', 'right'),
  [
    ('csv:{}/parquet/0.parquet', 'parquet:{}/parquet/0.parquet'),
    ('parquet:{}/hf', 'hf:{}/hf'),
    ('wds:{}/hf', 'hf:{}/hf'),
    ('folder:{}/tars', 'wds:{}/tars'),
    ('hf:{}/records', 'arrayrecord:{}/records'),
  ],
)
def test_an_error_names_the_scheme_of_what_is_there(folder, wrong, right):
  right = right.format(folder)
  with pytest.raises(UsageError, match=f'what is there is read as {right}$'):
    open_source(wrong.format(folder))


def test_an_error_names_no_scheme_where_it_was_the_right_one(folder, tmp_path):
  for spec in (f'folder:{tmp_path}', f'parquet:{folder}/images'):
    with pytest.raises(UsageError, match=r'^(?!.*what is there)'):
      open_source(spec)
  with pytest.raises(UsageError, match=r'^(?!.*what is there)'):
    open_source(f'parquet:{folder}/parquet', captions=('none',))
