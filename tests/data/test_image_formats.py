import io

import pytest
from PIL import Image, features

from clip_jax.data import image_formats
from clip_jax.data.image_formats import format_of


def encoded(image_format: str) -> bytes:
  file = io.BytesIO()
  mode = '1' if image_format == 'XBM' else 'RGB'
  Image.new(mode, (32, 32), 1).save(file, image_format)
  return file.getvalue()


@pytest.mark.parametrize(
  'image_format',
  [
    'JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'TIFF', 'JPEG2000', 'PPM', 'ICO',
    'ICNS', 'DDS', 'SGI', 'AVIF', 'QOI',
  ],
)  # fmt: skip
def test_formats_are_told_by_their_first_bytes(image_format):
  head = encoded(image_format)[: image_formats.HEAD_BYTES]
  assert format_of(head) == image_format
  assert image_formats.why_unreadable(image_format) == ''


def test_heic_is_told_from_other_files_of_its_container():
  heif = pytest.importorskip('pillow_heif')
  file = io.BytesIO()
  heif.from_pillow(Image.new('RGB', (64, 64))).save(file)
  assert format_of(file.getvalue()) == 'HEIF'
  assert format_of(b'\0\0\0\x18ftypmif1\0\0\0\0mif1avif') == 'AVIF'
  assert format_of(b'\0\0\0\x18ftypisom\0\0\2\0isommp41') == ''
  # The brands end where the box does.
  assert format_of(b'\0\0\0\x14ftypisom\0\0\2\0isomheic') == ''


@pytest.mark.parametrize(
  'head',
  [
    b'',
    b'P',
    b'Python notes',
    b'P3rl',
    b'BMW 320, photographed in May',
    b'II*\0\x10\0\0\0CR\2\0',  # Canon's raw file
    b'<svg xmlns="http://www.w3.org/2000/svg">',
    b'%!PS-Adobe-3.0 EPSF-3.0',
    b'RIFF\0\0\0\0WAVEfmt ',
    b'PK\3\4',
    b'image,caption\n',
    bytes(64),
  ],
)
def test_what_is_no_image_has_no_format(head):
  assert format_of(head) == ''


def test_what_cannot_be_read_here_names_what_to_install(monkeypatch):
  monkeypatch.setattr(
    image_formats.importlib.util, 'find_spec', lambda name: None
  )
  assert '.[heif]' in image_formats.why_unreadable('HEIF')
  monkeypatch.setattr(features, 'check', lambda part: False)
  assert 'without AVIF' in image_formats.why_unreadable('AVIF')
  assert image_formats.why_unreadable('PNG') == ''
