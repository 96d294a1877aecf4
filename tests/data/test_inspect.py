import json
import time

import numpy as np
import pytest
from PIL import ExifTags, Image

from clip_jax.data.inspect import CELL, contact_sheet, describe, inspect
from clip_jax.errors import UsageError
from tests.data.pictures import captioned_folder, picture, write_pictures


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
  picture(0, 40, 12).save(data / '007.png')
  return data


def test_counts(folder):
  found = inspect(f'folder:{folder}', tokenizer=Words())
  assert found['records'] == 8
  assert found['corrupt'] == 2
  assert [x['id'] for x in found['corrupt_records']] == ['001.png', '004.png']
  assert 'not an image' in found['corrupt_records'][1]['reason']
  assert found['captions'] == 6
  assert found['records_without_caption'] == 1
  assert found['captions_per_record'] == {
    'min': 0, 'median': 1, 'mean': 1.0, 'p95': 2, 'max': 2,
  }  # fmt: skip
  assert found['caption_characters']['min'] == 1
  assert found['caption_characters']['max'] == len('a caption of five words')
  assert found['caption_tokens']['max'] == 7
  assert found['captions_truncated'] == 1
  assert found['image_sizes'] == {'24x24': 5, '40x12': 1}
  assert found['image_width']['max'] == 40
  assert found['image_height']['min'] == 12
  assert found['image_formats'] == {'PNG RGB': 6}
  assert 'labels' not in found
  assert json.loads(json.dumps(found)) == found


def test_labels(tmp_path):
  write_pictures(tmp_path, ['cat/a.png', 'cat/b.png', 'dog/a.png'])
  found = inspect(f'folder:{tmp_path}')
  assert found['labels'] == 2
  assert found['records_per_label']['max'] == 2
  assert 'caption_tokens' not in found


def test_describe_says_it_all_to_people(folder):
  lines = describe(inspect(f'folder:{folder}')).splitlines()
  assert 'records: 8' in lines
  assert '  004.png: not an image in a known format' in lines
  assert 'image sizes: 24x24 5, 40x12 1' in lines


def test_nothing_readable_is_still_a_summary(tmp_path):
  (tmp_path / 'a.png').write_bytes(b'')
  found = inspect(f'folder:{tmp_path}', sheet_path=tmp_path / 'sheet.png')
  assert found['corrupt'] == found['records'] == 1
  assert found['image_width'] == {}
  describe(found)


def test_writes_a_sheet_with_every_picture(folder, tmp_path):
  sheet = tmp_path / 'sheet.png'
  found = inspect(f'folder:{folder}', sheet_path=sheet)
  assert found['sheet'] == str(sheet)
  assert [x.name for x in tmp_path.iterdir() if x.is_file()] == ['sheet.png']
  image = Image.open(sheet)
  assert image.mode == 'RGB'
  assert image.width > 8 * CELL
  with pytest.raises(UsageError, match=r'no folder .*nowhere'):
    inspect(f'folder:{folder}', sheet_path='/nowhere/sheet.png')


def test_the_sheet_has_pictures_captions_and_crosses():
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
  sheet = contact_sheet([(picture(0), 'слово ' * 99), (picture(1), 'ü' * 400)])
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
