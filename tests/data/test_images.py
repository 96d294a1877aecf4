import dataclasses
import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from clip_jax.data import images
from clip_jax.data.images import (
  CorruptImageError,
  Preprocessing,
  decode,
  preprocess,
)
from clip_jax.errors import UsageError
from tests.data.pictures import picture

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens' / 'preprocess'
CASES = json.loads((GOLDENS / 'cases.json').read_text())
OUTPUTS = load_file(GOLDENS / 'outputs.safetensors')
PREPROCESSING = {  # open_clip's transforms; see shared/goldens/README.md
  'shortest': Preprocessing(40),
  'squash': Preprocessing(40, resize_mode='squash'),
  'longest': Preprocessing(40, resize_mode='longest'),
  'bilinear': Preprocessing(40, interpolation='bilinear'),
  'siglip': Preprocessing(
    40, resize_mode='squash', mean=(0.5,) * 3, std=(0.5,) * 3
  ),
}


def encoded(image: Image.Image, kind: str = 'PNG', **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


@pytest.mark.parametrize(
  ('name', 'case'),
  [
    (name, case)
    for name, image in CASES['images'].items()
    for case in image['cases']
    if case in PREPROCESSING
  ],
)
def test_equals_open_clip_to_the_byte(name, case):
  preprocessing = PREPROCESSING[case]
  wanted = OUTPUTS[f'{name}.{case}'].transpose(1, 2, 0)
  wanted = (wanted * preprocessing.std + preprocessing.mean) * 255
  found = preprocess(GOLDENS / CASES['images'][name]['file'], preprocessing)
  np.testing.assert_array_equal(found, np.rint(wanted).astype(np.uint8))


def test_takes_bytes_paths_arrays_and_pillow_alike(tmp_path):
  image = picture(0, 30, 50)
  image.save(tmp_path / 'a.png')
  preprocessing = Preprocessing(16)
  wanted = preprocess(image, preprocessing)
  for same in (
    encoded(image),
    tmp_path / 'a.png',
    str(tmp_path / 'a.png'),
    np.asarray(image),
  ):
    np.testing.assert_array_equal(preprocess(same, preprocessing), wanted)


def test_background_comes_first_and_only_under_transparency():
  clear = Image.new('RGBA', (20, 20), (255, 0, 0, 0))
  plain = Preprocessing(8)
  on_white = dataclasses.replace(plain, background='white')
  assert (preprocess(clear, plain) == 0).all()  # Resized, alpha makes black.
  assert (preprocess(clear, on_white) == 255).all()
  opaque = picture(1)
  np.testing.assert_array_equal(
    preprocess(opaque, on_white), preprocess(opaque, plain)
  )


def test_exif_turns_a_photograph_only_when_asked():
  image = picture(2, 32, 16)
  exif = Image.Exif()
  exif[0x0112] = 6  # Turned a quarter.
  data = encoded(image, exif=exif)
  plain = Preprocessing(16, resize_mode='squash')
  turned = dataclasses.replace(plain, exif=True)
  upright = image.transpose(Image.Transpose.ROTATE_270)
  np.testing.assert_array_equal(
    preprocess(data, plain), preprocess(image, plain)
  )
  np.testing.assert_array_equal(
    preprocess(data, turned), preprocess(upright, plain)
  )


@pytest.mark.parametrize(
  ('data', 'reason'),
  [
    (b'no picture', 'not an image'),
    (b'', 'not an image'),
    (encoded(picture(3))[:60], 'damaged image'),
    (encoded(picture(3, 200, 200), 'JPEG')[:900], 'damaged image'),
    ('/nowhere/a.png', '/nowhere/a.png: no such file'),
  ],
)
def test_what_cannot_be_read_says_why(data, reason):
  with pytest.raises(CorruptImageError, match=reason) as caught:
    decode(data)
  assert '\n' not in str(caught.value)


def test_a_flipped_byte_is_noticed():
  data = bytearray(encoded(picture(4)))
  data[70] ^= 0xFF
  with pytest.raises(CorruptImageError):
    decode(bytes(data))


def test_a_decompression_bomb_is_refused_before_decoding(monkeypatch):
  monkeypatch.setattr(images, 'MAX_PIXELS', 100)
  with pytest.raises(CorruptImageError, match='over the limit of 100'):
    decode(encoded(picture(5)))


def test_what_pillow_refuses_is_refused(monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 200)
  with pytest.raises(CorruptImageError, match='decompression bomb'):
    decode(encoded(picture(5)))


def test_the_limit_is_where_pillow_begins_to_warn():
  assert images.MAX_PIXELS == Image.MAX_IMAGE_PIXELS


def test_a_thread_of_pixels_is_not_scaled_up_to_gigabytes():
  thread = Image.new('RGB', (1, 3_000_000))
  with pytest.raises(CorruptImageError, match='too long'):
    preprocess(thread, Preprocessing(224))


def test_arrays_of_floats_are_a_usage_error():
  with pytest.raises(UsageError, match=r'float32 \[8, 8, 3\]: use uint8'):
    decode(np.zeros((8, 8, 3), np.float32))


def test_preprocessing_survives_json():
  preprocessing = Preprocessing(
    40, 'longest', 'bilinear', (0.5,) * 3, (0.25,) * 3, 'white', True
  )
  data = json.loads(json.dumps(preprocessing.to_dict()))
  assert Preprocessing.from_dict(data) == preprocessing
  assert hash(Preprocessing.from_dict(data)) == hash(preprocessing)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'image_size': 0}, 'image_size=0'),
    ({'image_size': 8, 'resize_mode': 'crop'}, 'shortest, squash, longest'),
    ({'image_size': 8, 'interpolation': 'cubic'}, 'bicubic, bilinear'),
    ({'image_size': 8, 'background': 'whitish'}, 'not a colour'),
    ({'image_size': 8, 'size': 8}, "no field 'size'.*image_size"),
  ],
)
def test_impossible_preprocessing(fields, message):
  with pytest.raises(UsageError, match=message):
    Preprocessing.from_dict(fields)
