"""An image of any kind from outside: whole, or one line that says why not."""

import io
import os
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageFile

from clip_jax.data import decoding
from clip_jax.data.augment import Augmentation, augment
from clip_jax.data.contact_sheet import contact_sheet
from clip_jax.data.decoding import (
  CorruptImageError,
  MissingImageError,
  check_corrupt,
  convert,
  decode,
  limit_megapixels,
)
from clip_jax.data.images import (
  composite_on,
  decode_rgb,
  preprocess,
  upright,
)
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.errors import FailureError, UsageError
from clip_jax.report.images import data_uri
from tests.data.images import make_image

SHOWN = Preprocessing(16, background='white', exif=True)


def encoded(image: Image.Image, kind: str = 'PNG', **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


@pytest.fixture
def limits(monkeypatch):
  """Small ones, and none that was asked for."""
  monkeypatch.delenv(decoding.LIMIT_VARIABLE, raising=False)
  monkeypatch.setattr(decoding, 'MAX_PIXELS', 40_000)
  monkeypatch.setattr(decoding, 'MAX_JPEG_PIXELS', 100_000)


# ------------------------------------------------------------------- too large


def with_size(kind: str, side: int) -> bytes:
  """A small file whose header speaks of many pixels."""
  data = encoded(Image.new('L', (9, 9)), kind)
  if kind == 'TIFF':
    for tag in (256, 257):  # width and height, each one long
      at = data.index(struct.pack('<HHI', tag, 4, 1)) + 8
      data = data[:at] + struct.pack('<I', side) + data[at + 4 :]
    return data
  at, size = {
    'PNG': (16, struct.pack('>II', side, side)),
    'GIF': (6, struct.pack('<HH', side, side)),
    'BMP': (18, struct.pack('<ii', side, side)),
    'JPEG': (data.find(b'\xff\xc0') + 5, struct.pack('>HH', side, side)),
    'WEBP': (26, struct.pack('<HH', min(side, 16_383), min(side, 16_383))),
  }[kind]
  data = data[:at] + size + data[at + len(size) :]
  if kind == 'PNG':  # whose header has a checksum
    checksum = struct.pack('>I', zlib.crc32(data[12:29]))
    data = data[:29] + checksum + data[33:]
  return data


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'GIF', 'BMP', 'JPEG', 'WEBP'])
@pytest.mark.parametrize('side', [16_000, 65_000])
def test_a_small_file_of_vast_pixels_is_refused_unread(kind, side, monkeypatch):
  def load(image):
    pytest.fail('its pixels are read')

  monkeypatch.setattr(ImageFile.ImageFile, 'load', load)
  data = with_size(kind, side)
  assert len(data) < 2_000
  with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter('always')
    with pytest.raises(CorruptImageError, match=r'too large: .* over the') as e:
      decode(data)
  assert not warned
  assert '--max_megapixels=' in str(e.value) and '\n' not in str(e.value)


def test_the_flag_that_a_refusal_names_lifts_it(limits):
  data = encoded(make_image(5, 300, 200))
  with pytest.raises(CorruptImageError, match='max_megapixels=1 lifts') as e:
    decode(data)
  assert 'damaged' not in str(e.value)
  limit_megapixels(1)
  try:
    assert decode(data).size == (300, 200)
  finally:
    limit_megapixels(None)
  with pytest.raises(CorruptImageError):
    decode(data)


@pytest.mark.parametrize('megapixels', [0, -1, float('nan'), float('inf')])
def test_an_impossible_limit_is_a_usage_error(limits, monkeypatch, megapixels):
  monkeypatch.setenv(decoding.LIMIT_VARIABLE, '1')
  with pytest.raises(UsageError, match=r'max_megapixels=.*: use a number'):
    limit_megapixels(megapixels)


@pytest.mark.parametrize('kind', ['JPEG', 'MPO'])
@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_a_large_jpeg_is_decoded_at_half_the_size(limits, kind, mode):
  if (kind, mode) == ('MPO', 'CMYK'):
    pytest.skip('Pillow writes none')
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  image = make_image(5, 48, 32).resize((300, 200), Image.Resampling.BICUBIC)
  data = encoded(image.convert(mode), kind, exif=exif, quality=95)
  assert decode(data).size == (150, 100)
  small = preprocess(data, SHOWN).astype(int)
  decoding.MAX_PIXELS = 10**6  # the fixture puts it back
  assert decode(data).size == (300, 200)
  whole = preprocess(data, SHOWN).astype(int)
  assert np.abs(small - whole).mean() < 2


def test_a_jpeg_under_the_limit_is_whole(limits):
  data = encoded(make_image(5, 200, 200), 'JPEG')
  assert decode(data).size == (200, 200)
  np.testing.assert_array_equal(decode(data), Image.open(io.BytesIO(data)))


def test_a_jpeg_of_more_than_a_scaled_one_may_have_is_refused(limits):
  data = encoded(make_image(5, 400, 300), 'JPEG')
  with pytest.raises(CorruptImageError, match=r'limit of 0\.1 million'):
    decode(data)


@pytest.mark.parametrize('size', [(12_000, 9_000), (16_320, 12_240)])
def test_a_phones_largest_photographs_are_read(size):
  data = encoded(Image.new('L', size, 90), 'JPEG')
  assert decode(data).size == (size[0] // 2, size[1] // 2)
  assert (preprocess(data, SHOWN) == 90).all()


def test_the_limit_is_where_pillow_begins_to_warn():
  assert Image.MAX_IMAGE_PIXELS == decoding.MAX_PIXELS


def test_a_side_of_millions_of_rows_is_refused():
  with pytest.raises(CorruptImageError, match='no side may be over 1,048,576'):
    decode(encoded(Image.new('L', (1, 2_000_000))))


@pytest.mark.parametrize('size', [(1, 10**6), (10**6, 1), (3, 400_000)])
@pytest.mark.parametrize('resize_mode', ['squash', 'longest'])
def test_a_thin_image_takes_little_memory(size, resize_mode, monkeypatch):
  sizes = []
  resize = Image.Image.resize

  def counted(self, size, *args, **options):
    # What Pillow makes on the way: the new width, at the old height.
    sizes.append(size[0] * self.height)
    return resize(self, size, *args, **options)

  monkeypatch.setattr(Image.Image, 'resize', counted)
  data = encoded(Image.new('RGB', size, (9, 90, 200)))
  pixels = preprocess(data, Preprocessing(224, resize_mode))
  assert (pixels == (9, 90, 200)).all(-1).any()
  assert max(sizes) <= decoding.MAX_PIXELS


def test_transparency_in_strips_is_that_of_the_whole(monkeypatch):
  rng = np.random.default_rng(0)
  image = Image.fromarray(rng.integers(0, 256, (50, 30, 4), np.uint8))
  whole = composite_on(image, 'white')
  ground = Image.new('RGBA', image.size, 'white')
  ground.alpha_composite(image)
  np.testing.assert_array_equal(whole, ground.convert('RGB'))
  monkeypatch.setattr('clip_jax.data.images._STRIP_PIXELS', 100)
  np.testing.assert_array_equal(composite_on(image, 'white'), whole)


# ------------------------------------------------------------------ what it is


@pytest.mark.parametrize(
  ('data', 'reason'),
  [
    (b'no picture', 'not an image'),
    (b'', 'not an image'),
    (encoded(make_image(3))[:60], 'damaged image'),
    (encoded(make_image(3, 200, 200), 'JPEG')[:900], 'damaged image'),
    ('/nowhere/a.png', '/nowhere/a.png: no such file'),
  ],
)
def test_what_cannot_be_read_says_why(data, reason):
  with pytest.raises(CorruptImageError, match=reason) as caught:
    decode(data)
  assert '\n' not in str(caught.value)


def test_a_missing_image_is_a_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError) as caught:
    decode(tmp_path / 'none.png')
  assert isinstance(caught.value, MissingImageError)


@pytest.mark.parametrize('kind', ['FIFO', 'device', 'folder', 'NUL'])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, kind):
  path = tmp_path / 'a.png'
  if kind == 'FIFO':
    os.mkfifo(path)
  elif kind == 'folder':
    path.mkdir()
  paths = {'device': '/dev/zero', 'NUL': 'a\0.png'}
  with pytest.raises(CorruptImageError, match=r'not a file|null byte'):
    decode(paths.get(kind, path))


def test_a_file_of_too_many_bytes_is_too_large(tmp_path, monkeypatch):
  monkeypatch.setattr(decoding, 'MAX_FILE_BYTES', 100)
  make_image(3).save(tmp_path / 'a.png')
  with pytest.raises(CorruptImageError, match=r'too large, .*pixels=1 l'):
    decode(tmp_path / 'a.png')
  monkeypatch.setenv(decoding.LIMIT_VARIABLE, '1')
  assert decode(tmp_path / 'a.png').size == (24, 24)


def test_heic_is_read_by_its_content():
  pillow_heif = pytest.importorskip('pillow_heif')
  file = io.BytesIO()
  pillow_heif.from_pillow(make_image(4, 64, 48)).save(file, quality=95)
  image = decode(file.getvalue())
  assert (image.size, image.format) == ((64, 48), 'HEIF')
  difference = np.asarray(image).astype(int) - np.asarray(make_image(4, 64, 48))
  assert np.abs(difference).mean() < 12


def test_heic_without_its_plugin_names_what_to_install(monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  head = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic'
  with pytest.raises(CorruptImageError, match=r'pip install "\.\[heif\]"'):
    decode(head + bytes(100))


def test_heic_is_not_loaded_for_other_formats():
  code = (
    'import sys; from clip_jax.data.images import decode; '
    f'decode({encoded(make_image(0))!r}); print("pillow_heif" in sys.modules)'
  )
  import subprocess

  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == 'False'


# -------------------------------------------------------- what comes afterwards


def test_lab_is_read_as_the_colour_that_it_is():
  srgb, lab = ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB')
  red = Image.new('RGB', (20, 20), (200, 40, 30))
  image = ImageCms.profileToProfile(red, srgb, lab, outputMode='LAB')
  data = encoded(image, 'TIFF')
  assert Image.open(io.BytesIO(data)).mode == 'LAB'
  for convention in ('open_clip', 'transformers'):
    pixels = preprocess(data, Preprocessing(8, convention=convention))
    np.testing.assert_allclose(pixels[4, 4], (200, 40, 30), atol=4)
  np.testing.assert_allclose(preprocess(image, SHOWN)[4, 4], (200, 40, 30),
                             atol=4)  # fmt: skip
  assert data_uri(data).startswith('data:image/jpeg')


def everything(data: bytes | Image.Image) -> None:
  """All that is done with an image somewhere."""
  for preprocessing in (
    SHOWN,
    Preprocessing(16),
    Preprocessing(16, 'longest', convention='transformers'),
  ):
    preprocess(data, preprocessing)
  rng = np.random.default_rng(0)
  augment(
    decode_rgb(data, SHOWN), SHOWN, Augmentation(padding=0.1, rotate=9.0), rng
  )
  plain = Preprocessing(16)
  augment(decode_rgb(data, plain), plain, Augmentation(), rng)
  data_uri(data)
  image = decode(data)
  convert(upright(image, SHOWN), 'L')
  contact_sheet([(image, 'caption')])


def with_transparency(image: Image.Image, value) -> Image.Image:
  image.info['transparency'] = value
  return image


def with_exif(data: bytes) -> bytes:
  """A JPEG whose EXIF block is what is given."""
  plain = encoded(make_image(2), 'JPEG')
  block = b'Exif\0\0' + data
  marker = b'\xff\xe1' + struct.pack('>H', len(block) + 2) + block
  return plain[:2] + marker + plain[2:]


@pytest.mark.parametrize(
  'image',
  [
    with_transparency(make_image(0).convert('P'), b'\0' * 400),
    with_transparency(make_image(0).convert('P'), 'none'),
    with_transparency(make_image(0).convert('P'), (1, 2, 3)),
    with_transparency(make_image(0), 7),
    with_transparency(make_image(0), (1, 2)),
    with_transparency(make_image(0), b'\1'),
    with_transparency(make_image(0).convert('L'), (1, 2, 3)),
    with_transparency(make_image(0).convert('1'), 'x'),
    Image.new('La', (5, 5)),
    Image.new('RGBa', (5, 5)),
    Image.new('F', (5, 5), float('nan')),
    Image.new('I', (5, 5), -7),
    Image.new('I;16B', (5, 5)),
    Image.new('HSV', (5, 5)),
    Image.new('PA', (5, 5)),
    Image.new('LAB', (5, 5)),
  ],
)
def test_odd_modes_and_transparency_end_in_one_error_or_none(image):
  try:
    everything(image)
  except CorruptImageError as error:
    assert '\n' not in str(error)


@pytest.mark.parametrize(
  'image',
  [
    with_transparency(make_image(0).convert('P'), 'none'),
    with_transparency(make_image(0), (1, 2)),
    Image.new('La', (5, 5)),
  ],
)
def test_what_no_later_step_could_convert_is_refused_at_the_door(image):
  with pytest.raises(CorruptImageError, match='damaged image'):
    decode(image)


def test_a_prepared_image_is_prepared_already():
  for resize_mode in ('shortest', 'squash', 'longest'):
    for convention in ('open_clip', 'transformers'):
      preprocessing = Preprocessing(
        16, resize_mode, background='white', exif=True, convention=convention
      )
      once = preprocess(make_image(3, 50, 30), preprocessing)
      again = preprocess(Image.fromarray(once), preprocessing)
      np.testing.assert_array_equal(again, once)


def test_a_lazily_opened_image_that_is_cut_off_is_corrupt():
  data = encoded(make_image(3, 200, 200), 'JPEG')[:900]
  for use in (decode, lambda x: preprocess(x, SHOWN), data_uri):
    with pytest.raises(CorruptImageError, match='damaged image'):
      use(Image.open(io.BytesIO(data)))
  closed = Image.open(io.BytesIO(encoded(make_image(3))))
  closed.close()
  with pytest.raises(CorruptImageError):
    decode(closed)


@pytest.mark.filterwarnings('ignore')  # Pillow's own
@pytest.mark.parametrize(
  'exif',
  [
    b'', b'junk', b'II*\0', b'II*\0\xff\xff\xff\xff',
    b'MM\0*\0\0\0\x08\xff\xff',
    b'II*\0\x08\0\0\0\1\0\x12\1\2\0\4\0\0\0abc\0\0\0\0\0',  # a text
    b'II*\0\x08\0\0\0\1\0\x12\1\5\0\1\0\0\0\xff\0\0\0\0\0\0\0',  # outside
    b'II*\0\x08\0\0\0\1\0\x12\1\3\0\2\0\0\0\6\0\6\0\0\0\0\0',  # two
  ],
)  # fmt: skip
def test_an_image_with_damaged_exif_is_read_as_stored(exif):
  data = with_exif(exif)
  everything(data)
  plain = preprocess(encoded(make_image(2), 'JPEG'), SHOWN)
  if b'\6' not in exif:
    np.testing.assert_array_equal(preprocess(data, SHOWN), plain)


def samples() -> list[bytes]:
  """Small files of all kinds, with what is beside the pixels."""
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  exif[ExifTags.Base.ImageDescription] = 'a description'
  rgb = make_image(6, 20, 12)
  clear = rgb.convert('RGBA')
  clear.putalpha(90)
  return [
    encoded(rgb, 'JPEG', exif=exif),
    encoded(rgb, 'PNG', exif=exif),
    encoded(clear, 'PNG'),
    encoded(rgb.convert('P'), 'PNG', transparency=bytes(range(200))),
    encoded(rgb.convert('L'), 'PNG', transparency=7),
    encoded(rgb.convert('P'), 'GIF', transparency=3),
    encoded(clear, 'WEBP', exif=exif),
    encoded(rgb, 'TIFF', exif=exif),
    encoded(rgb.convert('CMYK'), 'TIFF', compression='tiff_lzw'),
    encoded(rgb.convert('P'), 'BMP'),
    encoded(clear, 'ICO', sizes=[(16, 12)]),
    encoded(rgb.convert('P'), 'PCX'),
    encoded(clear, 'TGA', rle=True),
    encoded(rgb, 'PPM'),
    encoded(clear, 'DDS'),
    encoded(rgb, 'SGI'),
  ]


@pytest.mark.filterwarnings('ignore')
def test_flipped_and_cut_bytes_end_in_one_error_or_none(limits):
  rng = np.random.default_rng(14)
  whole = samples()
  for case in range(480):
    data = bytearray(whole[case % len(whole)])
    for _ in range(rng.integers(1, 6)):
      # Mostly in the first part, where headers are.
      span = len(data) if rng.random() < 0.4 else min(len(data), 120)
      data[rng.integers(span)] = rng.integers(256)
    if rng.random() < 0.2:
      del data[rng.integers(len(data)) :]
    try:
      everything(bytes(data))
    except CorruptImageError as error:
      assert '\n' not in str(error), case


def test_as_many_corrupt_records_as_allowed_are_left_out():
  corrupt = {f'{i}.png': 'damaged' for i in range(4)}
  check_corrupt(corrupt, 4)
  message = (
    "^data 'folder:x': over max_corrupt_records=3 records are corrupt: "
    r'0\.png: damaged; 1\.png: damaged; 2\.png: damaged\.$'
  )
  with pytest.raises(FailureError, match=message):
    check_corrupt(corrupt, 3, 'folder:x')
