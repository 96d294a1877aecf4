import dataclasses
import io
import json
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from clip_jax.data.decoding import CorruptImageError, decode
from clip_jax.data.images import preprocess
from clip_jax.data.preprocessing import CONVENTIONS, RESIZE_MODES, Preprocessing
from clip_jax.errors import UsageError
from clip_jax.models.description import Description
from tests.data.images import make_image
from tests.tiny import TINY

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens' / 'preprocess'
CASES = json.loads((GOLDENS / 'cases.json').read_text())
OUTPUTS = load_file(GOLDENS / 'outputs.safetensors')
PREPROCESSING = {  # see shared/goldens/README.md
  'shortest': Preprocessing(40),
  'squash': Preprocessing(40, resize_mode='squash'),
  'longest': Preprocessing(40, resize_mode='longest'),
  'bilinear': Preprocessing(40, interpolation='bilinear'),
  'siglip': Preprocessing(
    40, resize_mode='squash', mean=(0.5,) * 3, std=(0.5,) * 3
  ),
  'rect': Preprocessing(tuple(CASES['rect'])),
  'hf_pil': Preprocessing(40, convention='transformers'),
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
def test_equals_the_published_transforms_to_the_byte(name, case):
  preprocessing = PREPROCESSING[case]
  wanted = OUTPUTS[f'{name}.{case}'].transpose(1, 2, 0)
  wanted = (wanted * preprocessing.std + preprocessing.mean) * 255
  result = preprocess(GOLDENS / CASES['images'][name]['file'], preprocessing)
  np.testing.assert_array_equal(result, np.rint(wanted).astype(np.uint8))


def test_every_case_of_the_published_transforms_is_covered():
  cases = {c for image in CASES['images'].values() for c in image['cases']}
  assert cases == {*PREPROCESSING, 'hf_torchvision'}


@pytest.mark.parametrize(
  'name',
  [n for n, x in CASES['images'].items() if 'hf_torchvision' in x['cases']],
)
def test_is_near_to_a_resampler_that_does_not_round_between_its_passes(name):
  preprocessing = PREPROCESSING['hf_pil']
  wanted = OUTPUTS[f'{name}.hf_torchvision'].transpose(1, 2, 0)
  wanted = (wanted * preprocessing.std + preprocessing.mean) * 255
  result = preprocess(GOLDENS / CASES['images'][name]['file'], preprocessing)
  difference = np.abs(result - wanted)  # the bounds are the README's
  assert difference.max() <= 8
  assert difference.mean() <= 0.5


@pytest.mark.parametrize(
  ('size', 'mode', 'filled'),
  [
    # Of an image that is 20 wide and 30 high, by what open_clip makes of it:
    # the columns and rows that hold the image itself.
    ((10, 20), 'longest', (slice(0, 10), slice(6, 13))),
    ((30, 10), 'longest', (slice(7, 22), slice(0, 10))),
    ((10, 20), 'shortest', (slice(0, 10), slice(0, 20))),
    ((7, 3), 'squash', (slice(0, 7), slice(0, 3))),
  ],
)
def test_results_that_are_not_square(size, mode, filled):
  image = Image.new('RGB', (20, 30), (90, 160, 200))
  pixels = preprocess(image, Preprocessing(size, mode))
  expected = np.zeros((*size, 3), np.uint8)
  expected[filled] = (90, 160, 200)
  np.testing.assert_array_equal(pixels, expected)


def test_a_rectangle_is_always_bicubic_where_it_is_cropped():
  image = make_image(7, 30, 50)
  bilinear = Preprocessing((9, 12), interpolation='bilinear')
  bicubic = dataclasses.replace(bilinear, interpolation='bicubic')
  np.testing.assert_array_equal(
    preprocess(image, bilinear), preprocess(image, bicubic)
  )


def test_models_read_squares():
  with pytest.raises(UsageError, match=r'\(36, 52\): a model reads square'):
    Description(TINY, None, Preprocessing((36, 52)))
  assert Preprocessing((36, 36)).side == 36


def test_takes_bytes_paths_arrays_and_pillow_alike(tmp_path):
  image = make_image(0, 30, 50)
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
  opaque = make_image(1)
  np.testing.assert_array_equal(
    preprocess(opaque, on_white), preprocess(opaque, plain)
  )


def transparent(mode: str) -> bytes:
  """Two clear columns of eight, then six of a dark colour."""
  if mode == 'P':
    image = Image.new('P', (8, 8), 1)
    image.putpalette([200, 0, 0, 0, 0, 50])
    image.paste(0, (0, 0, 2, 8))
    return encoded(image, transparency=0)
  if mode in ('RGB', 'L'):
    clear, dark = (200, 50) if mode == 'L' else ((200, 0, 0), (0, 0, 50))
    image = Image.new(mode, (8, 8), dark)
    image.paste(clear, (0, 0, 2, 8))
    return encoded(image, transparency=clear)
  clear, dark = {
    'RGBA': ((200, 0, 0, 0), (0, 0, 50, 255)),
    'LA': ((200, 0), (50, 255)),
  }[mode]
  image = Image.new(mode, (8, 8), dark)
  image.paste(clear, (0, 0, 2, 8))
  return encoded(image)


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P', 'RGB', 'L'])
def test_transparency_of_every_kind(mode):
  """White where a person expects it, and where transformers puts it."""
  data = transparent(mode)
  plain = Preprocessing(8)
  for preprocessing in (
    dataclasses.replace(plain, background='white'),
    dataclasses.replace(plain, convention='transformers'),
  ):
    pixels = preprocess(data, preprocessing)
    assert (pixels[:, :2] == 255).all() and pixels[:, 2:, :2].max() <= 50
  assert not (preprocess(data, plain)[:, :2] == 255).all()
  green = dataclasses.replace(
    plain, background='#00ff00', convention='transformers'
  )
  assert (preprocess(data, green)[:, :2] == (0, 255, 0)).all()


def of_mode(resize_mode, **fields):
  """A preprocessing that makes squares of 16 pixels, of squares at least."""
  if resize_mode == 'native':
    return Preprocessing.native(4, 16, **fields)
  return Preprocessing(16, resize_mode, **fields)


@pytest.mark.parametrize('resize_mode', RESIZE_MODES)
@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'big-endian TIFF', 'PPM'])
def test_grey_of_sixteen_bits_is_scaled_when_asked(kind, resize_mode):
  grey = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
  if kind == 'big-endian TIFF':
    data = encoded(Image.fromarray(grey.astype('>u2')), 'TIFF')
  elif kind == 'PPM':
    data = b'P5 16 16 65535\n' + grey.astype('>u2').tobytes()
  else:
    data = encoded(Image.fromarray(grey), kind)
  plain = of_mode(resize_mode)
  seen = preprocess(data, dataclasses.replace(plain, background='white'))
  np.testing.assert_array_equal(seen[..., 0], grey // 257)
  # As stored, all but the first values are beyond 255.
  assert (preprocess(data, plain) == 255).mean() > 0.9


def test_cmyk_and_sixteen_bits_with_a_clear_grey_are_read():
  person = Preprocessing(8, background='white', exif=True)
  ink = encoded(Image.new('CMYK', (9, 9), (0, 255, 255, 0)), 'JPEG')
  assert preprocess(ink, person)[4, 4].tolist() == pytest.approx(
    [255, 0, 0], abs=3
  )
  rows = zlib.compress((b'\0' + b'\0\5' * 4) * 4)
  clear = b'\x89PNG\r\n\x1a\n' + b''.join(
    struct.pack('>I', len(data))
    + name
    + data
    + struct.pack('>I', zlib.crc32(name + data))
    for name, data in (
      (b'IHDR', struct.pack('>IIBBBBB', 4, 4, 16, 0, 0, 0, 0)),
      (b'tRNS', b'\0\5'),
      (b'IDAT', rows),
      (b'IEND', b''),
    )
  )
  for preprocessing in (
    person,
    Preprocessing(8),
    Preprocessing(8, convention='transformers'),
  ):
    assert preprocess(clear, preprocessing).shape == (8, 8, 3)


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG', 'TIFF', 'MPO'])
def test_of_many_images_in_a_file_the_first_counts(kind):
  frames = [Image.new('RGB', (9, 9), c) for c in ('red', 'lime', 'blue')]
  more = {'lossless': True} if kind == 'WEBP' else {}
  data = encoded(
    frames[0], kind, save_all=True, append_images=frames[1:], **more
  )
  pixels = preprocess(data, Preprocessing(8, background='white', exif=True))
  np.testing.assert_allclose(pixels, np.full((8, 8, 3), (255, 0, 0)), atol=2)


# EXIF orientation -> what has to be done to see the image upright.
ORIENTATIONS = {
  1: None,
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'MPO', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', ORIENTATIONS)
def test_exif_turns_a_photograph_only_when_asked(orientation, kind):
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encoded(make_image(2, 32, 16), kind, exif=exif)
  with Image.open(io.BytesIO(data)) as stored:
    pixels = stored.convert('RGB')
  plain = Preprocessing(16, resize_mode='squash')
  turned = dataclasses.replace(plain, exif=True)
  # Pillow turns a TIFF while it reads it, for open_clip as for us.
  transpose = ORIENTATIONS[1 if kind == 'TIFF' else orientation]
  upright = pixels if transpose is None else pixels.transpose(transpose)
  np.testing.assert_array_equal(
    preprocess(data, plain), preprocess(pixels, plain)
  )
  np.testing.assert_array_equal(
    preprocess(data, turned), preprocess(upright, plain)
  )


def test_a_flipped_byte_is_noticed():
  data = bytearray(encoded(make_image(4)))
  data[70] ^= 0xFF
  with pytest.raises(CorruptImageError):
    decode(bytes(data))


def test_a_postscript_program_is_not_run():
  program = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n'
  with pytest.raises(CorruptImageError, match='EPS is a program'):
    decode(program)


@pytest.mark.parametrize('size', [(1, 1), (1, 5_000), (5_000, 1), (3, 2)])
@pytest.mark.parametrize('resize_mode', RESIZE_MODES)
@pytest.mark.parametrize('convention', CONVENTIONS)
def test_the_smallest_and_the_thinnest(size, resize_mode, convention):
  image = Image.new('RGB', size, (9, 90, 200))
  pixels = preprocess(
    encoded(image), of_mode(resize_mode, convention=convention)
  )
  if resize_mode == 'native':
    assert not any(side % 4 for side in pixels.shape[:2])
    assert (pixels == (9, 90, 200)).all()
  elif resize_mode == 'longest' and 5_000 in size:
    assert (pixels == (9, 90, 200)).all(-1).sum() == 16  # between pads
  else:
    assert pixels.shape == (16, 16, 3)
    assert (pixels[8, 8] == (9, 90, 200)).all()


@pytest.mark.parametrize(
  'shape', [(0, 5, 3), (5, 0), (5, 5, 2), (5, 5, 5), (3,)]
)
def test_arrays_of_other_shapes_are_a_usage_error(shape):
  with pytest.raises(UsageError, match=r'uint8 .*: use uint8 \[H, W, 3\]'):
    decode(np.zeros(shape, np.uint8))


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'GIF', 'WEBP', 'TIFF', 'BMP'])
def test_a_file_cut_off_anywhere_is_refused_in_one_line(kind):
  data = encoded(make_image(6, 40, 40), kind)
  for length in range(0, len(data) - 60, max(1, len(data) // 17)):
    with pytest.raises(CorruptImageError) as error:
      decode(data[:length])
    assert '\n' not in str(error.value)


def test_a_thread_of_pixels_is_not_scaled_up_to_gigabytes():
  thread = Image.new('RGB', (1, 3_000_000))
  with pytest.raises(CorruptImageError, match='too long'):
    preprocess(thread, Preprocessing(224))


def test_arrays_of_floats_are_a_usage_error():
  with pytest.raises(UsageError, match=r'float32 \[8, 8, 3\]: use uint8'):
    decode(np.zeros((8, 8, 3), np.float32))


def test_preprocessing_survives_json():
  preprocessing = Preprocessing(
    40,
    'longest',
    'bilinear',
    (0.5,) * 3,
    (0.25,) * 3,
    'white',
    True,
    'transformers',
  )
  data = json.loads(json.dumps(preprocessing.to_dict()))
  assert Preprocessing.from_dict(data) == preprocessing
  assert hash(Preprocessing.from_dict(data)) == hash(preprocessing)


def test_descriptions_from_before_the_convention_mean_open_clips():
  data = Preprocessing(40).to_dict()
  del data['convention']
  assert Preprocessing.from_dict(data) == Preprocessing(40)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'image_size': 0}, 'image_size=0'),
    ({'image_size': [8, 0]}, 'use 1 or more, or a height and a width'),
    (
      {'image_size': [8, 9], 'convention': 'transformers'},
      r"image_size=\(8, 9\): only open_clip's convention",
    ),
    ({'image_size': 8, 'resize_mode': 'crop'}, 'shortest, squash, longest'),
    ({'image_size': 8, 'interpolation': 'cubic'}, 'bicubic, bilinear'),
    ({'image_size': 8, 'convention': 'timm'}, 'open_clip, transformers'),
    ({'image_size': 8, 'background': 'whitish'}, 'not a colour'),
    ({'image_size': 8, 'size': 8}, "no field 'size'.*image_size"),
    ({'image_size': 10**9}, '16,384 pixels are the most'),
    ({'image_size': True}, 'use 1 or more'),
    ({'image_size': '8'}, 'use 1 or more'),
    ({'image_size': 8, 'mean': [0.5]}, r'mean=\(0.5,\) is not three numbers'),
    ({'image_size': 8, 'mean': 'red'}, "mean='red' is not three numbers"),
    ({'image_size': 8, 'mean': [0.5, float('nan'), 0.5]}, 'three numbers'),
    ({'image_size': 8, 'std': [0.5, 0, 0.5]}, 'each has to be above 0'),
    ({'image_size': 8, 'std': [[1], [1], [1]]}, 'three numbers'),
    ({'image_size': 8, 'interpolation': ['bicubic']}, 'use one of'),
    ({'image_size': 8, 'exif': 'no'}, 'use true or false'),
    ({'image_size': 8, 'background': 7}, 'not a colour'),
    ({'image_size': 8, 'resize_to': 0}, 'resize_to=0'),
    ({'image_size': 8, 'resize_to': [9, 8]}, 'squash one or two'),
    ({'image_size': 8, 'resize_mode': 'none', 'resize_to': 9}, 'shortest'),
    ({'resize_mode': 'squash'}, 'an object with its image_size'),
    ([], 'an object with its image_size'),
  ],
)
def test_impossible_preprocessing(fields, message):
  with pytest.raises(UsageError, match=message):
    Preprocessing.from_dict(fields)


@pytest.mark.parametrize(
  ('options', 'box'),
  [
    # Of an image that is 60 wide and 40 high: what is resized and seen.
    (dict(resize_to=20), (30, 20)),
    (dict(resize_mode='squash', resize_to=20), (20, 20)),
    (dict(resize_mode='squash', resize_to=(20, 18)), (18, 20)),
    (dict(resize_mode='none'), (60, 40)),
  ],
)
def test_a_crop_from_a_resized_image_is_its_centre(options, box):
  image = make_image(3, 60, 40)
  preprocessing = Preprocessing(16, convention='transformers', **options)
  resized = image.resize(box, Image.Resampling.BICUBIC)
  left, top = (box[0] - 16) // 2, (box[1] - 16) // 2
  np.testing.assert_array_equal(
    preprocess(image, preprocessing),
    np.asarray(resized.crop((left, top, left + 16, top + 16))),
  )


def test_a_crop_beyond_the_image_is_black_and_places_it_as_transformers():
  image = Image.new('RGB', (5, 7), (9, 9, 9))
  pixels = preprocess(
    image, Preprocessing(8, 'none', convention='transformers')
  )
  expected = np.zeros((8, 8, 3), np.uint8)
  expected[1:8, 2:7] = 9  # its top and left pad have the odd pixel
  np.testing.assert_array_equal(pixels, expected)


def test_another_size_crops_the_same_share():
  preprocessing = Preprocessing(32, resize_to=40, convention='transformers')
  assert preprocessing.of_size(64).resize_to == 80
  assert preprocessing.of_size(32) == preprocessing
  assert Preprocessing(32).of_size(64) == Preprocessing(64)
