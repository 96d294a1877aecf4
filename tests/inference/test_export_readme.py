"""What an export's README.md says, and that its code does it."""

import re

import numpy as np
import pytest
from PIL import Image

from clip_jax.data.images import preprocess
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.inference.export_readme import pixels_of, readme
from tests.tiny_run import tiny_model

FACTS = {'clip_jax': '1', 'jax': '2', 'dtype': 'float32'}


def written(platforms=('cpu', 'cuda', 'tpu'), files=(), differences=None):
  return readme(tiny_model(), platforms, FACTS, files, differences or {})


def test_onnx_is_told_of_where_it_was_written():
  assert 'onnx' not in written().lower()
  files = ['encode_image.onnx', 'encode_image.onnx.data', 'encode_text.onnx']
  text = written(files=files, differences={'encode_image': 2e-6})
  assert '| `encode_image.onnx` | ONNX: `pixels`, uint8 [b, 16, 16, 3]' in text
  assert '| `encode_image.onnx.data` | the weights of' in text
  assert 'encode_text.onnx.data' not in text
  assert 'to 2.0e-06 in any feature' in ' '.join(text.split())
  code = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  assert 'onnxruntime.InferenceSession' in code[1]


@pytest.mark.parametrize(
  ('platforms', 'said', 'not_said'),
  [
    (('cpu', 'tpu'), 'for cpu, tpu, which takes no such device', 'tpu alone'),
    (
      ('cpu',),
      'for cpu alone: to run them on an accelerator',
      'no such device',
    ),
    (('tpu',), 'for tpu alone, which takes no such device', 'on CPUs'),
    (('cuda',), 'they run nowhere else', 'on CPUs'),
  ],
)
def test_with_one_platform_its_sentences_are_about_that_one(
  platforms, said, not_said
):
  text = ' '.join(written(platforms).split())
  assert said in text and not_said not in text


def image(mode, size):
  rng = np.random.default_rng(3)
  pixels = rng.integers(0, 256, (size[1], size[0], 4), np.uint8)
  return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(
  'preprocessing',
  [
    Preprocessing(16),
    Preprocessing(16, background='white', exif=True),
    Preprocessing(16, 'squash', 'bilinear', convention='transformers'),
    Preprocessing(16, 'longest'),
    Preprocessing(16, 'none', convention='transformers'),
    Preprocessing(16, resize_to=20, convention='transformers'),
    Preprocessing(16, 'squash', resize_to=(19, 21), convention='transformers'),
  ],
)
@pytest.mark.parametrize('size', [(31, 20), (16, 47), (9, 9)])
@pytest.mark.parametrize('mode', ['RGBA', 'RGB', 'L'])
def test_its_way_from_an_image_to_pixels_is_the_models(
  tmp_path, preprocessing, size, mode
):
  path = tmp_path / 'p.png'
  image(mode, size).save(path)
  names = {}
  code = pixels_of(preprocessing)
  exec('import numpy as np\nfrom PIL import Image, ImageOps\n' + code, names)
  np.testing.assert_array_equal(
    names['pixels_of'](path), preprocess(path, preprocessing)
  )
