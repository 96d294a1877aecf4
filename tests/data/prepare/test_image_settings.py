"""Images as shards have them: unchanged, smaller, or in another format."""

import io

import numpy as np
import pytest
from PIL import Image

from clip_jax.data.decoding import CorruptImageError
from clip_jax.data.prepare.image_settings import ImageSettings
from clip_jax.errors import UsageError
from tests.data.images import make_image


def encode(image, name, **options):
  file = io.BytesIO()
  image.save(file, name, **options)
  return file.getvalue()


def decoded(content):
  return Image.open(io.BytesIO(content))


@pytest.mark.parametrize('name', ['JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF'])
def test_bytes_stay_unless_something_is_asked_for(name):
  content = encode(make_image(0, 40, 30), name)
  settings = [ImageSettings(), ImageSettings(max_side=40)]
  if name in ('JPEG', 'PNG', 'WEBP'):
    settings += [ImageSettings(max_side=40, format=name.lower())]
  for each in settings:
    assert each.prepare(content) == (None, (40, 30), name)


@pytest.mark.parametrize(
  ('size', 'expected'),
  [((80, 60), (40, 30)), ((60, 80), (30, 40)), ((400, 3), (40, 1))],
)
@pytest.mark.parametrize('name', ['JPEG', 'PNG', 'WEBP'])
def test_large_images_are_scaled_down_in_their_format(name, size, expected):
  prepared = ImageSettings(max_side=40).prepare(
    encode(make_image(1, *size), name)
  )
  assert prepared[1:] == (expected, name)
  image = decoded(prepared.content)
  assert (image.size, image.format) == (expected, name)


def test_a_scaled_image_looks_as_before():
  image = make_image(2, 80, 60)
  prepared = ImageSettings(max_side=40).prepare(encode(image, 'PNG'))
  expected = image.resize((40, 30), Image.Resampling.BICUBIC)
  assert np.array_equal(decoded(prepared.content), expected)


@pytest.mark.parametrize('to', ['jpeg', 'png', 'webp'])
@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'])
def test_all_modes_are_written_in_all_formats(to, mode):
  image = make_image(3).convert('L' if mode == 'I;16' else mode)
  if mode == 'I;16':
    image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
  content = encode(image, 'TIFF' if mode != 'P' else 'GIF')
  prepared = ImageSettings(format=to).prepare(content)
  assert prepared.format == to.upper()
  assert decoded(prepared.content).format == to.upper()


@pytest.mark.parametrize('to', ['jpeg', 'png', 'webp'])
@pytest.mark.parametrize('dtype', [np.uint16, np.int32])  # I;16 and I
def test_grey_of_sixteen_bits_keeps_its_brightness(to, dtype):
  grey = np.asarray(make_image(8, 60, 40).convert('L'))
  content = encode(Image.fromarray(grey.astype(dtype) * 257), 'TIFF')
  image = decoded(ImageSettings(format=to).prepare(content).content)
  pixels = np.asarray(image, float)
  if to == 'png':
    assert np.array_equal(pixels, grey * 257.0)
  else:
    pixels = pixels if pixels.ndim == 2 else pixels[..., 0]
    assert np.abs(pixels - grey).mean() < 3


def test_cmyk_becomes_rgb_in_other_formats():
  content = encode(make_image(4).convert('CMYK'), 'JPEG', quality=95)
  for settings in (ImageSettings(format='png'), ImageSettings(max_side=12)):
    image = decoded(settings.prepare(content).content)
    assert image.mode == 'RGB'
    small = image.resize((4, 4))
    expected = make_image(4).resize((4, 4))
    assert np.abs(np.asarray(small, float) - expected).mean() < 20


def test_transparency_stays_where_the_format_has_it_and_is_white_in_jpeg():
  image = Image.new('RGBA', (20, 20), (10, 20, 30, 0))
  content = encode(image, 'PNG')
  kept = ImageSettings(max_side=10).prepare(content)
  assert decoded(kept.content).getpixel((5, 5))[3] == 0
  flat = ImageSettings(format='jpeg').prepare(content)
  assert min(decoded(flat.content).getpixel((5, 5))) > 250


def test_orientation_and_profile_are_kept_and_nothing_else():
  exif = Image.Exif()
  exif[0x0112], exif[0x010F] = 6, 'a maker'
  content = encode(
    make_image(5, 80, 60), 'JPEG', exif=exif, icc_profile=b'a profile'
  )
  image = decoded(ImageSettings(max_side=40).prepare(content).content)
  assert image.size == (40, 30)  # not turned
  assert dict(image.getexif()) == {0x0112: 6}
  assert image.info['icc_profile'] == b'a profile'


def test_quality_is_asked_for_by_name():
  content = encode(make_image(6, 80, 60), 'JPEG', quality=95)
  assert ImageSettings(format='jpeg').prepare(content).content is None
  small = ImageSettings(format='jpeg', quality=20).prepare(content).content
  assert small is not None and len(small) < len(content)
  png = encode(make_image(6, 80, 60), 'PNG')
  assert ImageSettings(quality=20).prepare(png).content is None


def test_broken_images_are_refused():
  content = encode(make_image(7), 'PNG')
  for broken in (b'', b'text', content[:60]):
    with pytest.raises(CorruptImageError):
      ImageSettings(max_side=5).prepare(broken)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'format': 'gif'}, "--format='gif': choose one of jpeg, png, webp, keep"),
    ({'max_side': 0}, '--max_side=0: use 1 pixel'),
    ({'quality': 101}, '--quality=101: use 1 to 100'),
    ({'quality': 9, 'format': 'png'}, 'not of --format=png'),
  ],
)
def test_wrong_settings_are_refused(settings, message):
  with pytest.raises(UsageError, match=message):
    ImageSettings(**settings)
