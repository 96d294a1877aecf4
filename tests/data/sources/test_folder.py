import os
import pickle

import pytest

from clip_jax.data import image_formats
from clip_jax.data.decoding import CorruptImageError, decode
from clip_jax.data.sources import open_source
from clip_jax.errors import UsageError
from tests.data.images import captioned_folder, make_image, write_images


def test_sub_folders_are_classes(tmp_path):
  write_images(
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


def test_captions_beside_images_one_a_line(tmp_path):
  captioned_folder(tmp_path, 2)
  write_images(tmp_path, ['more/a.png', 'more/b.png'])
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


def test_images_without_texts(tmp_path):
  write_images(tmp_path, ['b.png', 'a.png'])
  source = open_source(f'folder:{tmp_path}')
  assert [source[i]['id'] for i in range(2)] == ['a.png', 'b.png']
  assert source[0]['caption'] == []
  assert source.label_names is None


def test_a_split_is_a_sub_folder(tmp_path):
  write_images(tmp_path, ['train/cat/a.png', 'test/cat/a.png'])
  assert open_source(f'folder:{tmp_path}#test').label_names == ('cat',)
  with pytest.raises(UsageError, match='no folder'):
    open_source(f'folder:{tmp_path}#val')


def test_a_circle_of_links_ends(tmp_path):
  write_images(tmp_path, ['cat/a.png'])
  (tmp_path / 'cat' / 'again').symlink_to(tmp_path)
  assert len(open_source(f'folder:{tmp_path}')) == 1


def test_pickles(tmp_path):
  source = open_source(f'folder:{captioned_folder(tmp_path, 2)}')
  assert pickle.loads(pickle.dumps(source))[1] == source[1]


def test_an_image_that_went_away(tmp_path):
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
  write_images(tmp_path, ['a.png'])
  with pytest.raises(UsageError, match='no caption columns'):
    open_source(f'folder:{tmp_path}', captions=('title',))


def test_a_caption_that_is_not_utf8_names_file_and_line(tmp_path):
  captioned_folder(tmp_path, 1)
  (tmp_path / '000.txt').write_bytes(b'a door\neine T\xfcr\n')
  with pytest.raises(UsageError, match=r'000\.txt, line 2: not UTF-8.*0xfc'):
    open_source(f'folder:{tmp_path}')


def test_all_captions_that_are_not_utf8_are_counted(tmp_path):
  captioned_folder(tmp_path, 4)
  for name in ('001', '002', '003'):
    (tmp_path / f'{name}.txt').write_bytes(b'eine T\xfcr')
  message = (
    r"001\.txt, line 1: .*; so for 2 more files \('002.txt', '003.txt'\)"
  )
  with pytest.raises(UsageError, match=message):
    open_source(f'folder:{tmp_path}')


def heic(path):
  heif = pytest.importorskip('pillow_heif')
  heif.from_pillow(make_image(0, 64, 64)).save(path)


def test_images_are_told_by_content(tmp_path):
  for name, image_format in (
    ('plain', 'PNG'), ('b.jfif', 'JPEG'), ('c.jp2', 'JPEG2000'),
    ('d.unknown', 'GIF'), ('e.JPE', 'JPEG'), ('f.avif', 'AVIF'),
    ('g.tga', 'TGA'), ('h.data.2024', 'WEBP'),
  ):  # fmt: skip
    make_image(1, 32, 32).save(tmp_path / name, image_format)
  heic(tmp_path / 'i.heic')
  source = open_source(f'folder:{tmp_path}')
  assert [source.id(i) for i in range(len(source))] == sorted(
    x.name for x in tmp_path.iterdir()
  )
  for index in range(len(source)):
    assert decode(source[index]['image']).size in ((32, 32), (64, 64))
  assert source.notices == ()


def test_what_is_left_out_is_counted_and_named_once(tmp_path, monkeypatch):
  write_images(tmp_path, ['cat/a.png', 'dog/b.png'])
  for name in ('a.heic', 'b.HEIC'):
    heic(tmp_path / 'cat' / name)
  for name in (
    'x.svg',
    'README',
    'meta.json',
    'v.mp4',
    '.DS_Store',
    'Thumbs.db',
  ):
    (tmp_path / 'dog' / name).write_bytes(b'no image')
  make_image(1).save(tmp_path / 'dog' / 'raw.dng', 'TIFF')  # a thumbnail
  os.mkfifo(tmp_path / 'dog' / 'pipe.png')
  (tmp_path / 'dog' / 'gone.png').symlink_to('/nowhere')
  monkeypatch.setattr(image_formats.importlib.util, 'find_spec', lambda x: None)
  source = open_source(f'folder:{tmp_path}')
  assert len(source) == 2
  (notice,) = source.notices
  assert notice == (
    f"data 'folder:{tmp_path}': left out 9 files: .heic 2, .dng 1, .json 1, "
    '.mp4 1, .svg 1, broken links 1, … (HEIC needs an extra: pip install '
    '".[heif]")'
  )
  for name in ('cat/a.png', 'dog/b.png'):
    (tmp_path / name).unlink()
  with pytest.raises(
    UsageError, match=r'no images in .*left out .*\.heic 2.*heif'
  ):
    open_source(f'folder:{tmp_path}')


def test_captions_without_an_image_are_named(tmp_path):
  captioned_folder(tmp_path, 2)
  (tmp_path / '001.txt').rename(tmp_path / '001.png.TXT')
  for name in ('classes.txt', 'old.txt'):
    (tmp_path / name).write_text('x')
  source = open_source(f'folder:{tmp_path}')
  assert source.captions(1) == ['picture 001']
  (notice,) = source.notices
  assert "2 .txt files have no image beside them ('classes.txt'" in notice


@pytest.mark.parametrize('missing', [[0], [0, 2, 3]])
def test_images_without_captions_are_counted_and_named(tmp_path, missing):
  captioned_folder(tmp_path, 4)
  for index in missing:
    (tmp_path / f'{index:03}.txt').unlink()
  source = open_source(f'folder:{tmp_path}')
  (notice,) = source.notices
  if len(missing) == 1:
    assert "1 of 4 images have no .txt file of captions ('000.png')" in notice
  else:
    assert "beside 1 of 4 images only ('001.txt'): remove" in notice
  kept = source.captioned()
  assert kept == [i for i in range(4) if i not in missing]


@pytest.mark.parametrize(
  'splits', [('train', 'test'), ('Training', 'valid'), ('train2017', 'val2017')]
)
def test_splits_are_no_classes(tmp_path, splits):
  names = [f'{x}/{y}/a.png' for x in splits for y in ('cat', 'dog')]
  write_images(tmp_path, names)
  with pytest.raises(
    UsageError, match=f'name one, as in .*#{splits[0]}, or al'
  ):
    open_source(f'folder:{tmp_path}')
  for spec in (f'folder:{tmp_path}#{splits[0]}', f'{tmp_path}#{splits[1]}'):
    source = open_source(spec)
    assert source.label_names == ('cat', 'dog')
  both = open_source(f'folder:{tmp_path}#{"+".join(splits)}')
  assert both.label_names == ('cat', 'dog')
  assert sorted(both.id(i) for i in range(4)) == sorted(names)
  with pytest.raises(
    UsageError, match=f'no folder .*new; .* has {min(splits)}'
  ):
    open_source(f'folder:{tmp_path}#new')


def test_one_split_of_classes_is_no_class(tmp_path):
  write_images(tmp_path, ['train/cat/a.png', 'train/dog/a.png'])
  with pytest.raises(
    UsageError, match='the splits train, which are no classes'
  ):
    open_source(f'folder:{tmp_path}')


def test_a_class_may_be_called_train(tmp_path):
  write_images(tmp_path, ['train/a.png', 'bus/a.png'])
  assert open_source(f'folder:{tmp_path}').label_names == ('bus', 'train')


def test_a_stray_image_beside_classes_is_named(tmp_path):
  write_images(tmp_path, ['cat/a.png', 'dog/a.png', 'cover.png'])
  source = open_source(f'folder:{tmp_path}')
  assert len(source) == 3 and source.label_names is None
  (notice,) = source.notices
  assert "1 image beside them is in none ('cover.png')" in notice
  assert 'cover.png' in source.hint
  source = open_source(f'folder:{tmp_path}', captions=('path', 'filename'))
  assert [source.captions(i) for i in range(3)] == [
    ['cat', 'a'], ['cover'], ['dog', 'a'],
  ]  # fmt: skip


def test_a_stray_caption_among_classes_is_named(tmp_path):
  write_images(tmp_path, ['cat/a.png', 'cat/b.png', 'dog/a.png'])
  (tmp_path / 'cat' / 'b.txt').write_text('x')
  source = open_source(f'folder:{tmp_path}')
  assert source.label_names is None
  (notice,) = source.notices
  assert "beside 1 of 3 images only ('cat/b.txt')" in notice
  source = open_source(f'folder:{tmp_path}', captions=('path',))
  assert source.label_names == ('cat', 'dog')
  assert list(source.texts()) == ['cat', 'cat', 'dog']


def test_nested_folders_say_what_the_class_is(tmp_path):
  write_images(tmp_path, ['a_b/c-d/x_y.1.png', 'e/f/x.png'])
  source = open_source(f'folder:{tmp_path}')
  assert list(source.texts()) == ['a b', 'e']
  (notice,) = source.notices
  assert "2 images in deeper folders, such as 'a_b/c-d/x_y.1.png'" in notice
  source = open_source(f'folder:{tmp_path}', captions=('path',))
  assert list(source.texts()) == ['a b c d', 'e f']
  assert source.notices == ()
  source = open_source(f'folder:{tmp_path}', captions=('filename',))
  assert list(source.texts()) == ['x y 1', 'x']
  assert source.label_names == ('a b', 'e')


def test_one_class_and_empty_classes_are_said(tmp_path):
  write_images(tmp_path, ['data/cat/a.png', 'data/dog/a.png'])
  (tmp_path / 'none').mkdir()
  one, empty = open_source(f'folder:{tmp_path}').notices
  assert "the sub-folder 'data', the only class" in one
  assert f'those of folder:{tmp_path}/data' in one
  assert "1 sub-folder without images is no class ('none')" in empty


def test_a_link_to_a_folder_that_is_here_is_said(tmp_path):
  write_images(tmp_path, ['cat/a.png', 'dog/a.png'])
  (tmp_path / 'best').symlink_to(tmp_path / 'cat')
  source = open_source(f'folder:{tmp_path}')
  assert source.label_names == ('cat', 'dog')
  (notice,) = source.notices
  assert "1 link to folders that are here already ('best')" in notice


def test_names_that_are_not_utf8_can_be_written(tmp_path):
  write_images(tmp_path, ['x/a.png'])
  (tmp_path / os.fsdecode(b'caf\xe9')).mkdir()
  (tmp_path / 'x' / 'a.png').rename(tmp_path / os.fsdecode(b'caf\xe9/\xe9.png'))
  source = open_source(f'folder:{tmp_path}')
  assert source.label_names == ('caf\\xe9',)
  assert source.id(0) == 'caf\\xe9/\\xe9.png'
  assert source[0]['image']


def test_a_plain_path_is_taken_with_a_word(tmp_path):
  captioned_folder(tmp_path / 'my:pictures', 2)
  source = open_source(f'{tmp_path}/my:pictures')
  assert source.spec == f'folder:{tmp_path}/my:pictures'
  assert len(source) == 2
  (notice,) = source.notices
  assert notice.endswith(f'taken for {source.spec}')
  table = tmp_path / 'pairs.CSV'
  table.write_text('image,caption\nmy:pictures/000.png,x\n')
  assert open_source(str(table)).spec == f'csv:{table}'
  with pytest.raises(UsageError, match='a file, where a folder'):
    open_source(f'folder:{table}')


@pytest.mark.parametrize('scheme', ['', 'folder:'])
def test_one_image_is_told_what_takes_it(tmp_path, scheme):
  image = captioned_folder(tmp_path / 'mine', 1) / '000.png'
  nameless = image.rename(image.with_suffix('')) if scheme else image
  with pytest.raises(UsageError, match='one image, where a data set') as error:
    open_source(f'{scheme}{nameless}')
  assert f'as in folder:{tmp_path}/mine' in str(error.value)
  assert 'classify' in str(error.value)
  assert 'Model.encode_image' in str(error.value)
