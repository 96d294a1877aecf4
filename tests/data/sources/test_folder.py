import pickle

import pytest

from clip_jax.data.images import CorruptImageError
from clip_jax.data.sources import open_source
from clip_jax.errors import UsageError
from tests.data.pictures import captioned_folder, write_pictures


def test_sub_folders_are_classes(tmp_path):
  write_pictures(
    tmp_path, ['green_apple/b.png', 'cat/x.png', 'cat/deep/y.JPG', '.git/z.png']
  )
  (tmp_path / 'cat' / '.hidden.png').write_bytes(b'')
  (tmp_path / 'cat' / 'notes.md').write_text('not a picture')
  (tmp_path / 'empty').mkdir()
  source = open_source(f'folder:{tmp_path}')
  assert source.label_names == ('cat', 'green apple')
  records = [source[i] for i in range(len(source))]
  assert [(x['id'], x['label'], x['caption']) for x in records] == [
    ('cat/deep/y.JPG', 0, ['cat']),
    ('cat/x.png', 0, ['cat']),
    ('green_apple/b.png', 1, ['green apple']),
  ]
  assert records[1]['image'] == (tmp_path / 'cat' / 'x.png').read_bytes()
  assert list(source.texts()) == ['cat', 'cat', 'green apple']


def test_captions_beside_pictures_one_a_line(tmp_path):
  captioned_folder(tmp_path, 2)
  write_pictures(tmp_path, ['more/a.png', 'more/b.png'])
  (tmp_path / 'more' / 'a.txt').write_text('eine Tür\n\n a door \n', 'utf-8')
  source = open_source(f'folder:{tmp_path}')
  assert source.label_names is None
  assert [source.captions(i) for i in range(4)] == [
    ['picture 000'],
    ['picture 001'],
    ['eine Tür', 'a door'],
    [],
  ]
  assert 'label' not in source[0]


def test_pictures_without_texts(tmp_path):
  write_pictures(tmp_path, ['b.png', 'a.png'])
  source = open_source(f'folder:{tmp_path}')
  assert [source[i]['id'] for i in range(2)] == ['a.png', 'b.png']
  assert source[0]['caption'] == []
  assert source.label_names is None


def test_a_split_is_a_sub_folder(tmp_path):
  write_pictures(tmp_path, ['train/cat/a.png', 'test/cat/a.png'])
  assert open_source(f'folder:{tmp_path}#test').label_names == ('cat',)
  with pytest.raises(UsageError, match='no folder'):
    open_source(f'folder:{tmp_path}#val')


def test_a_circle_of_links_ends(tmp_path):
  write_pictures(tmp_path, ['cat/a.png'])
  (tmp_path / 'cat' / 'again').symlink_to(tmp_path)
  assert len(open_source(f'folder:{tmp_path}')) == 1


def test_pickles(tmp_path):
  source = open_source(f'folder:{captioned_folder(tmp_path, 2)}')
  assert pickle.loads(pickle.dumps(source))[1] == source[1]


def test_a_picture_that_went_away(tmp_path):
  source = open_source(f'folder:{captioned_folder(tmp_path, 2)}')
  (tmp_path / '000.png').unlink()
  with pytest.raises(CorruptImageError, match=r'000\.png: no such file'):
    source[0]
  assert source.id(0) == '000.png'


def test_mistakes_are_one_clear_line(tmp_path):
  with pytest.raises(UsageError, match='no folder /nowhere'):
    open_source('folder:/nowhere')
  with pytest.raises(UsageError, match=f'no images in {tmp_path}'):
    open_source(f'folder:{tmp_path}')
  write_pictures(tmp_path, ['a.png'])
  with pytest.raises(UsageError, match='no caption columns'):
    open_source(f'folder:{tmp_path}', captions=('title',))


def test_a_caption_that_is_not_utf8_names_file_and_line(tmp_path):
  captioned_folder(tmp_path, 1)
  (tmp_path / '000.txt').write_bytes(b'a door\neine T\xfcr\n')
  with pytest.raises(UsageError, match=r'000\.txt, line 2: not UTF-8.*0xfc'):
    open_source(f'folder:{tmp_path}')
