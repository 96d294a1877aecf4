"""Images of every kind into the encoders, and what becomes of the bad ones."""

import io
import tempfile

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from clip_jax.data.decoding import CorruptImageError, MissingImageError
from clip_jax.data.images import preprocess
from clip_jax.data.preprocessing import (
  CONVENTIONS,
  RESIZE_MODES,
  Preprocessing,
)
from clip_jax.errors import UsageError
from clip_jax.inference.export import export
from clip_jax.inference.exported import Exported
from clip_jax.inference.inputs import as_pixels, prepare_image
from tests.tiny_run import tiny_model

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)


@pytest.fixture(scope='module', params=['model', 'exported'])
def model(request, tmp_path_factory):
  """Both have the same interface."""
  if request.param == 'model':
    return tiny_model()
  out = tmp_path_factory.mktemp('exported') / 'model'
  export(tiny_model(), out)
  return Exported(out)


@pytest.fixture(scope='module')
def expected(model):
  return model.encode_image(PIXELS)


def png(pixels) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


class Tensor:
  """An array of a library that numpy does not know, as torch's."""

  def __init__(self, array, error=None):
    self._array, self._error = array, error

  def __array__(self, dtype=None, copy=None):
    if self._error:
      raise self._error
    return np.asarray(self._array, dtype)

  def __len__(self):
    return len(self._array)


def just_written(pixels):
  """A buffer that stands at its end."""
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return file


FLOATS = PIXELS.astype(np.float32) / 255


@pytest.mark.parametrize(
  'images',
  [
    FLOATS,
    FLOATS.astype(np.float64),
    PIXELS.astype(np.int64),
    PIXELS.transpose(0, 3, 1, 2),
    FLOATS.transpose(0, 3, 1, 2),
    jnp.asarray(PIXELS),
    jnp.asarray(FLOATS).transpose(0, 3, 1, 2),
    list(jnp.asarray(PIXELS)),
    Tensor(PIXELS.transpose(0, 3, 1, 2)),
    [Tensor(x) for x in FLOATS.transpose(0, 3, 1, 2)],
    [just_written(x) for x in PIXELS],
    [io.BytesIO(png(x)) for x in PIXELS],
    [bytearray(png(PIXELS[0])), memoryview(png(PIXELS[1])), *PIXELS[2:]],
    np.array([png(x) for x in PIXELS], object),
    tuple(PIXELS),
  ],
  ids=[
    'floats',
    'doubles',
    'integers',
    'channels_first',
    'floats_channels_first',
    'jax',
    'jax_channels_first',
    'list_of_jax',
    'tensor',
    'list_of_tensors',
    'files',
    'streams',
    'buffers',
    'array_of_bytes',
    'tuple',
  ],
)
def test_every_kind_of_images(model, expected, images):
  if isinstance(images, list) and hasattr(images[0], 'seek'):
    for file in images:
      file.seek(0, 2)
  result = model.encode_image(images)
  np.testing.assert_allclose(result, expected, atol=1e-6)


def test_paths_of_every_kind(model, expected, tmp_path, monkeypatch):
  paths = [tmp_path / f'{i}.png' for i in range(5)]
  for path, pixels in zip(paths, PIXELS, strict=True):
    path.write_bytes(png(pixels))
  monkeypatch.setenv('HOME', str(tmp_path))
  for images in (
    paths,
    np.array([str(path) for path in paths]),
    [f'~/{i}.png' for i in range(5)],
    [path.open('rb') for path in paths],
  ):
    result = model.encode_image(images)
    np.testing.assert_allclose(result, expected, atol=1e-6)
  with paths[0].open('rb') as file:
    one = model.encode_image(file)
    np.testing.assert_allclose(one, expected[:1], atol=1e-6)
    # The same file twice, which two threads would read at once.
    twice = model.encode_image([file, file])
    np.testing.assert_allclose(twice, expected[[0, 0]], atol=1e-6)


@pytest.mark.parametrize(
  ('image', 'shape'),
  [
    (np.zeros((9, 7), np.uint8), (9, 7)),
    (np.zeros((9, 7, 1), np.uint8), (9, 7)),
    (np.zeros((1, 9, 7), np.uint8), (9, 7)),
    (np.zeros((9, 7, 4), np.uint8), (9, 7, 4)),
    (np.zeros((4, 9, 7), np.float16), (9, 7, 4)),
    (np.zeros((3, 9, 3), np.uint8), (3, 9, 3)),  # channels last, as promised
    (jnp.ones((3, 9, 7), jnp.bfloat16), (9, 7, 3)),
  ],
)
def test_shapes_of_one_image(image, shape):
  pixels = as_pixels(image, 'image 0')
  assert (pixels.shape, pixels.dtype) == (shape, np.uint8)


def test_floats_are_rounded_to_the_pixels_that_they_were():
  levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
  for dtype in (np.float32, np.float64):
    np.testing.assert_array_equal(as_pixels(levels / dtype(255), 'x'), levels)


@pytest.mark.parametrize(
  'mode', [mode for mode in RESIZE_MODES if mode != 'native']
)
@pytest.mark.parametrize('convention', CONVENTIONS)
def test_pixels_of_the_models_size_are_read_as_they_are(mode, convention):
  pixels = PIXELS[0, :, :20]
  preprocessing = Preprocessing(
    20, mode, background='white', exif=True, convention=convention
  )
  np.testing.assert_array_equal(preprocess(pixels, preprocessing), pixels)
  assert np.shares_memory(prepare_image(pixels, 0, preprocessing), pixels)


def test_pixels_are_resized_where_a_model_crops_a_larger_image():
  pixels = PIXELS[0, :, :20]
  preprocessing = Preprocessing(20, resize_to=24)
  prepared = prepare_image(pixels, 0, preprocessing)
  np.testing.assert_array_equal(prepared, preprocess(pixels, preprocessing))
  assert not np.array_equal(prepared, pixels)


@pytest.mark.parametrize(
  ('image', 'message'),
  [
    (PIXELS[0] * np.float32(1), r'image 1 is an array of float32 .* 0 to 255'),
    (FLOATS[0] * 2 - 1, r'from -1 to 1: give uint8, or floats in \[0, 1\]'),
    (FLOATS[0] + np.float32('nan'), 'from nan to nan'),
    (PIXELS[0].astype(np.uint16) * 9, 'values from .* give uint8'),
    (PIXELS[0] > 7, 'array of bool'),
    (PIXELS[0, :, :, :2], r'image 1 is an array of uint8 \[20, 24, 2\]'),
    (PIXELS[0, 0, 0], r'array of uint8 \[3\]'),
    (np.zeros((0, 5, 3), np.uint8), r'array of uint8 \[0, 5, 3\]'),
    (7, 'image 1 is of type int'),
    (None, 'image 1 is of type NoneType'),
    (['a.png'], 'image 1 is of type list'),
    (io.StringIO('text'), 'open it with mode "rb"'),
    (Tensor(0, TypeError('use Tensor.cpu()')), r'image 1: use Tensor\.cpu'),
    ('https://example.org/a.jpg', 'is a URL, .* download it first'),
    ('s3://bucket/a.jpg', 'is a URL'),
    ('data:image/png;base64,iVBORw0KGgo=', 'is a URL'),
  ],
)
def test_what_is_no_image_says_what_would_be(model, image, message):
  with pytest.raises(UsageError, match=message):
    model.encode_image(iter([PIXELS[0], image]))


@pytest.mark.parametrize(
  'images', [7, None, np.zeros((2, 2, 2, 2, 3)), Tensor(3)]
)
def test_what_holds_no_images_is_refused(model, images):
  with pytest.raises(UsageError, match='give'):
    model.encode_image(images)


def test_a_closed_file_is_refused(model):
  with tempfile.TemporaryFile() as file:
    pass
  with pytest.raises(UsageError, match=r'an open file: .* closed file'):
    model.encode_image(file)


def test_a_missing_file_is_a_file_not_found_error(model, tmp_path):
  with pytest.raises(FileNotFoundError, match=r'none\.png: no such file'):
    model.encode_image(tmp_path / 'none.png')


MIXED = [PIXELS[0], b'junk', PIXELS[1], '/nowhere/a.png', PIXELS[2]]


@pytest.mark.parametrize('batch_size', [None, 1, 2])
def test_skipped_images_have_no_row_and_are_named(
  model, expected, batch_size, capsys
):
  result = model.encode_image(MIXED, on_error='skip', batch_size=batch_size)
  np.testing.assert_allclose(result, expected[:3], atol=1e-6)
  assert capsys.readouterr().err.splitlines() == [
    'left out image 1: not an image in a known format',
    'left out /nowhere/a.png: no such file.',
  ]


def test_a_function_is_told_of_bad_images_in_their_order(model, expected):
  bad = {}
  result = model.encode_image(iter(MIXED), on_error=bad.__setitem__)
  np.testing.assert_allclose(result, expected[:3], atol=1e-6)
  assert list(bad) == [1, 3]
  assert isinstance(bad[1], CorruptImageError)
  assert isinstance(bad[3], MissingImageError)
  probabilities = model.classify(
    MIXED, ['red', 'cat'], on_error=bad.__setitem__, batch_size=2
  )
  assert probabilities.shape == (3, 2)


def test_where_none_can_be_read_there_are_no_rows(model):
  bad = {}
  result = model.encode_image([b'a', b'b', b'c'], on_error=bad.__setitem__)
  assert result.shape == (0, 16)
  assert list(bad) == [0, 1, 2]


def test_what_is_no_image_is_never_skipped(model):
  with pytest.raises(UsageError, match='image 0 is of type int'):
    model.encode_image([7], on_error='skip')


def test_wrong_options_are_refused(model):
  with pytest.raises(UsageError, match="on_error='ignore': use 'raise'"):
    model.encode_image(PIXELS, on_error='ignore')
  with pytest.raises(UsageError, match='batch_size=0'):
    model.encode_image(PIXELS, batch_size=0)


def test_progress_is_shown_when_asked_for(model, capsys):
  model.encode_image(list(PIXELS))
  assert capsys.readouterr().err == ''
  model.encode_image(list(PIXELS), progress=True)
  assert '5/5' in capsys.readouterr().err


def test_repr_of_an_export(model):
  if isinstance(model, Exported):
    assert repr(model).startswith('<Exported from ')
    assert ': 16 pixels, tokenizer sentencepiece of 16 tokens' in repr(model)
