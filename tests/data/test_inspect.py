import json
import pathlib
import shutil
import time

import numpy as np
import pytest
from PIL import ExifTags, Image

from clip_jax.data.contact_sheet import CELL, contact_sheet
from clip_jax.data.inspect import _sample, describe, inspect
from clip_jax.errors import UsageError
from tests.data.images import captioned_folder, make_image, write_images
from tests.data.indexing.archives import archive
from tests.data.sources import tables
from tests.data.sources.test_arrayrecord import example, write


class Words:
  """A token a word, and two specials."""

  context_length = 5

  def text_lengths(self, texts):
    return np.array([len(x.split()) + 2 for x in texts], np.int32)


@pytest.fixture
def folder(tmp_path):
  """Eight records: two corrupt, one without a caption, one with two."""
  captioned_folder(tmp_path / 'data', 8)
  data = tmp_path / 'data'
  (data / '001.png').write_bytes((data / '001.png').read_bytes()[:60])
  (data / '004.png').write_bytes(b'')
  (data / '005.txt').unlink()
  (data / '006.txt').write_text('x\na caption of five words\n')
  make_image(0, 40, 12).save(data / '007.png')
  return data


def test_counts(folder):
  result = inspect(f'folder:{folder}', tokenizer=Words())
  assert result['records'] == 8
  assert result['corrupt'] == 2
  assert [x['id'] for x in result['corrupt_records']] == ['001.png', '004.png']
  assert 'not an image' in result['corrupt_records'][1]['reason']
  assert result['captions'] == 6
  assert result['records_without_caption'] == 1
  assert result['captions_per_record'] == {
    'min': 0, 'median': 1, 'mean': 1.0, 'p95': 2, 'max': 2,
  }  # fmt: skip
  assert result['caption_characters']['min'] == 1
  assert result['caption_characters']['max'] == len('a caption of five words')
  assert result['caption_tokens']['max'] == 7
  assert result['captions_truncated'] == 1
  assert result['image_sizes'] == {'24x24': 5, '40x12': 1}
  assert result['image_width']['max'] == 40
  assert result['image_height']['min'] == 12
  assert result['image_formats'] == {'PNG RGB': 6}
  assert 'labels' not in result
  assert json.loads(json.dumps(result)) == result


def test_labels(tmp_path):
  write_images(tmp_path, ['cat/a.png', 'cat/b.png', 'dog/a.png'])
  result = inspect(f'folder:{tmp_path}')
  assert result['labels'] == 2
  assert result['records_per_label']['max'] == 2
  assert 'caption_tokens' not in result


def test_records_without_a_label_have_none_of_their_own(tmp_path):
  content = tables.rows(4, label=[0, 1, None, 1])
  summary = inspect(tables.write_parquet(tmp_path / 'a.parquet', content))
  assert summary['labels'] == 2
  assert summary['records_per_label']['max'] == 2


def test_reasons_are_counted_without_the_paths_in_them(tmp_path):
  write_images(tmp_path, ['a.png'])
  images = ['none.png', 'dr. no/none 2.png', 'https://example.org/x.png']
  lines = [f'{image},x' for image in ('a.png', *images)]
  table = tmp_path / 'pairs.csv'
  table.write_text('\n'.join(['image,caption', *lines]))
  assert inspect(f'csv:{table}')['corrupt_reasons'] == {
    'no such file': 2, 'a URL, not a file': 1,
  }  # fmt: skip


def test_describe_says_it_all_to_people(folder):
  lines = describe(inspect(f'folder:{folder}')).splitlines()
  assert 'records: 8' in lines
  assert '  004.png: not an image in a known format' in lines
  assert 'image sizes: 24x24 5, 40x12 1' in lines


def test_nothing_readable_is_still_a_summary(tmp_path):
  (tmp_path / 'a.png').write_bytes(b'')
  result = inspect(f'folder:{tmp_path}', sheet_path=tmp_path / 'sheet.png')
  assert result['corrupt'] == result['records'] == 1
  assert result['image_width'] == {}
  describe(result)


def test_writes_a_sheet_with_every_image(folder, tmp_path):
  sheet = tmp_path / 'sheet.png'
  result = inspect(f'folder:{folder}', sheet_path=sheet)
  assert result['sheet'] == str(sheet)
  assert [x.name for x in tmp_path.iterdir() if x.is_file()] == ['sheet.png']
  image = Image.open(sheet)
  assert image.mode == 'RGB'
  assert image.width > 8 * CELL
  with pytest.raises(UsageError, match=r'no folder .*nowhere'):
    inspect(f'folder:{folder}', sheet_path='/nowhere/sheet.png')


def test_the_sheet_has_images_captions_and_crosses():
  red = Image.new('RGBA', (10, 20), 'red')
  sheet = np.asarray(
    contact_sheet([(red, 'a red thing'), (None, 'broken.png'), (red, '')])
  )
  cell = sheet[8 : 8 + CELL, 8 : 8 + CELL]
  assert (cell[CELL // 2, CELL // 2] == [255, 0, 0]).all()
  assert (cell[CELL // 2, 2] == 255).all()  # Its aspect is kept.
  below = sheet[8 + CELL :]
  assert below[:, 8 : 8 + CELL].min() < 100  # Words,
  third = below[:, 8 + 2 * (CELL + 8) :]
  assert third.min() == 255  # and none where there is no caption.
  cross = sheet[8 : 8 + CELL, 8 + CELL + 8 : 8 + 2 * CELL + 8]
  assert (cross == [192, 0, 0]).all(-1).sum() > CELL


def test_long_captions_are_cut_and_other_alphabets_drawn():
  sheet = contact_sheet(
    [(make_image(0), 'слово ' * 99), (make_image(1), 'ü' * 400)]
  )
  assert sheet.width == 2 * (CELL + 8) + 8


@pytest.mark.parametrize('text', ['word ', 'x', '\u0301', '鯨', '"', '\0'])
def test_a_caption_of_a_megabyte_is_cut_at_once(tmp_path, text):
  captioned_folder(tmp_path, 1)
  (tmp_path / '000.txt').write_text(text * (2**20 // len(text)))
  started = time.process_time()  # others may keep the machine busy
  inspect(f'folder:{tmp_path}', sheet_path=tmp_path / 'sheet.png')
  assert time.process_time() - started < 20


def test_notices_are_part_of_the_summary(tmp_path):
  captioned_folder(tmp_path, 1)
  (tmp_path / 'a.svg').write_text('<svg/>')
  summary = inspect(f'folder:{tmp_path}')
  assert summary['notices'] == [
    f"data 'folder:{tmp_path}': left out 1 file: .svg 1"
  ]
  assert 'svg' not in describe(summary)


def test_the_sheet_shows_what_a_viewer_shows(tmp_path):
  grey = np.tile(np.arange(32, dtype=np.uint16) * 2048, (32, 1))
  deep = Image.fromarray(grey)
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  deep.save(tmp_path / 'a.png')
  deep.save(tmp_path / 'b.png', exif=exif)
  inspect(f'folder:{tmp_path}', sheet_path=tmp_path / 'sheet.png')
  sheet = np.asarray(Image.open(tmp_path / 'sheet.png').convert('L'))
  cells = [sheet[8 : 8 + CELL, x : x + CELL] for x in (8, 16 + CELL)]
  assert 115 < cells[0][:, CELL // 2].mean() < 141  # a ramp, not white
  np.testing.assert_allclose(np.rot90(cells[0], -1), cells[1], atol=2)


def _csv(folder: pathlib.Path) -> str:
  lines = [f'{i:03}.png,caption {i}' for i in range(20)]
  path = captioned_folder(folder, 20) / 'pairs.csv'
  path.write_text('\n'.join(['image,caption', *lines]))
  return f'csv:{path}'


def _tar(folder: pathlib.Path) -> str:
  members = {}
  for i in range(20):
    members[f'{i:03}.png'] = tables.image_bytes(i)
    members[f'{i:03}.txt'] = f'caption {i}'.encode()
  (folder / 'a.tar').write_bytes(archive(members))
  return f'wds:{folder}/a.tar'


def _array_record(folder: pathlib.Path) -> str:
  write(folder / 'a.array_record', [example(i) for i in range(20)])
  return f'arrayrecord:{folder}/a.array_record'


def _five(folder: pathlib.Path) -> pathlib.Path:
  return captioned_folder(folder / 'five', 5)


def _hugging_face(folder: pathlib.Path) -> str:
  tables.save_to_disk(folder / 'hf', tables.hugging_face_rows(20))
  return f'hf:{folder}/hf'


@pytest.mark.parametrize(
  'make',
  [
    lambda folder: f'folder:{captioned_folder(folder, 20)}', _csv, _tar,
    lambda folder: tables.write_parquet(folder / 'a.parquet', tables.rows(20)),
    _array_record, _hugging_face,
    lambda folder: f'{_tar(folder)}::folder:{_five(folder)}',
  ],
)  # fmt: skip
def test_all_sources_and_mixtures(tmp_path, make):
  spec = make(tmp_path)
  count = 25 if '::' in spec else 20
  summary = inspect(spec, tokenizer=Words(), sheet_path=tmp_path / 'sheet.png')
  assert summary['records'] == summary['captions'] == count
  assert summary['image_sizes'] == {'24x24': count}
  assert summary['caption_tokens']['max'] == 4
  assert summary['corrupt'] == 0
  assert sum(summary['languages'].values()) == count
  assert (tmp_path / 'sheet.png').exists()
  if count == 25:
    assert list(summary['parts'].values()) == [20, 5]
    assert summary['copied_images'] == 5  # of the same seeds


def test_large_data_are_sampled_and_the_summary_says_so(tmp_path):
  captioned_folder(tmp_path, 40)
  spec = f'folder:{tmp_path}'
  summary = inspect(spec, sample=10)
  assert (summary['records'], summary['records_read']) == (40, 10)
  assert summary['captions'] == 10
  assert summary['sample'] == (
    'all counts below are of 10 records, 25 % of the data, drawn at random '
    '(seed 0)'
  )
  assert summary['notices'] == [
    f'data {spec!r}: 40 records, of which a sample of 10 was read: --sample=N '
    'reads more, --sample=0 all.'
  ]
  assert 'drawn at random' in describe(summary)
  assert inspect(spec, sample=10) == summary
  for whole in (0, 40, 41):
    assert 'sample' not in inspect(spec, sample=whole)


def test_a_sample_of_ten_to_the_nine_records_takes_no_list_of_them():
  indices = _sample(10**9, 1000, seed=3)
  assert len(set(indices)) == 1000
  assert indices == sorted(indices)
  assert indices != _sample(10**9, 1000, seed=4)
  assert min(indices) < 10**7
  assert max(indices) > 99 * 10**7


def test_copies_and_the_worst_records_are_named(tmp_path):
  captioned_folder(tmp_path, 6)
  shutil.copy(tmp_path / '000.png', tmp_path / '003.png')
  shutil.copy(tmp_path / '000.png', tmp_path / '004.png')
  (tmp_path / '001.txt').write_text('picture 000')
  (tmp_path / '002.txt').unlink()
  make_image(9, 400, 40).save(tmp_path / '005.png')
  (tmp_path / '006.png').write_bytes(b'')
  (tmp_path / '007.png').write_bytes((tmp_path / '001.png').read_bytes()[:60])
  summary = inspect(f'folder:{tmp_path}')
  assert summary['copied_images'] == 2
  assert summary['copied_image_ids'] == {'000.png': 3}
  assert summary['repeated_captions'] == 1
  assert summary['most_frequent_captions'] == {'picture 000': 2}
  assert summary['corrupt_reasons'] == {
    'not an image in a known format': 1, 'damaged image': 1,
  }  # fmt: skip
  assert summary['elongated_images'] == 1
  assert summary['tiny_images'] == 5
  worst = summary['worst_records']
  assert worst[0] == {
    'id': '005.png', 'reason': 'elongated, 10.0 to 1: 400 x 40 pixels',
  }  # fmt: skip
  assert worst[1] == {'id': '000.png', 'reason': 'tiny: 24 x 24 pixels'}
  assert worst[-1] == {'id': '002.png', 'reason': 'no caption'}


def test_truncated_captions_are_a_fraction_of_all(tmp_path):
  captioned_folder(tmp_path, 4)
  (tmp_path / '001.txt').write_text('a caption of five words')
  summary = inspect(f'folder:{tmp_path}', tokenizer=Words())
  assert summary['captions_truncated'] == 1
  assert summary['captions_truncated_fraction'] == 0.25
  assert 'captions truncated: 1 (25.00 %)' in describe(summary).splitlines()


def test_memory_of_copies_is_bounded(tmp_path, monkeypatch):
  monkeypatch.setattr('clip_jax.data.record_counts.MAX_REMEMBERED', 3)
  captioned_folder(tmp_path, 6)
  notices = inspect(f'folder:{tmp_path}')['notices']
  assert notices == [
    'copied images are found among the first 3 different ones',
    'repeated captions are found among the first 3 different ones',
  ]
