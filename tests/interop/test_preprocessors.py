"""Preprocessing in other libraries' files.

The files below are as published: openai/clip-vit-base-patch32's older keys,
google/siglip-*, google/siglip2-*, and what transformers 5.23.0 saves. By hand
AutoImageProcessor(backend='pil') on what `write_hugging_face` gives was equal,
to the byte, to our pixels on all fifteen images of goldens/preprocess.
"""

import dataclasses
import json

import numpy as np
import pytest

from clip_jax.data.preprocessing import (
  CLIP_MEAN,
  CLIP_STD,
  Preprocessing,
)
from clip_jax.errors import FailureError, UsageError
from clip_jax.interop.preprocessor_writers import (
  write_hugging_face,
  write_open_clip,
)
from clip_jax.interop.preprocessors import (
  read_hugging_face,
  read_hugging_face_directory,
  read_open_clip,
)

HALF = [0.5, 0.5, 0.5]
OPENAI = {
  'crop_size': 224,
  'do_center_crop': True,
  'do_normalize': True,
  'do_resize': True,
  'feature_extractor_type': 'CLIPFeatureExtractor',
  'image_mean': list(CLIP_MEAN),
  'image_std': list(CLIP_STD),
  'resample': 3,
  'size': 224,
}
SIGLIP = {
  'do_normalize': True,
  'do_rescale': True,
  'do_resize': True,
  'image_mean': HALF,
  'image_processor_type': 'SiglipImageProcessor',
  'image_std': HALF,
  'processor_class': 'SiglipProcessor',
  'resample': 3,
  'rescale_factor': 0.00392156862745098,
  'size': {'height': 384, 'width': 384},
}
SIGLIP_2 = SIGLIP | {
  'do_convert_rgb': None,
  'image_processor_type': 'SiglipImageProcessorFast',
  'resample': 2,
}
SAVED = {
  'crop_size': {'height': 336, 'width': 336},
  'do_center_crop': True,
  'do_convert_rgb': True,
  'image_processor_type': 'CLIPImageProcessorFast',
  'size': {'shortest_edge': 336},
}
CLIP_FORM = Preprocessing(224, convention='transformers')
SIGLIP_FORM = Preprocessing(
  384,
  'squash',
  mean=(0.5,) * 3,
  std=(0.5,) * 3,
  convention='transformers',
)


@pytest.mark.parametrize(
  ('config', 'wanted'),
  [
    (OPENAI, CLIP_FORM),
    (SIGLIP, SIGLIP_FORM),
    (SIGLIP_2, dataclasses.replace(SIGLIP_FORM, interpolation='bilinear')),
    (SAVED, dataclasses.replace(CLIP_FORM, image_size=336)),
    ({'image_processor_type': 'CLIPImageProcessorPil'}, CLIP_FORM),
    (
      {'image_processor_type': 'SiglipImageProcessor'},
      dataclasses.replace(SIGLIP_FORM, image_size=224),
    ),
  ],
)
def test_published_files_of_hugging_face(config, wanted):
  assert read_hugging_face(config) == wanted
  written, differences = write_hugging_face(wanted)
  assert read_hugging_face(json.loads(json.dumps(written))) == wanted
  assert len(differences) == 1 and 'torchvision' in differences[0]


@pytest.mark.parametrize(
  ('change', 'wanted'),
  [
    # The crop is another one than what is resized: 40 and 32.
    ({'size': 256}, {'resize_to': 256}),
    ({'size': {'shortest_edge': 40}, 'crop_size': 32}, {'resize_to': 40}),
    (
      {'size': {'height': 40, 'width': 40}, 'crop_size': [32, 32]},
      {'resize_mode': 'squash', 'resize_to': 40},
    ),
    (
      {'size': [40, 50], 'crop_size': 32},
      {'resize_mode': 'squash', 'resize_to': (40, 50)},
    ),
    ({'size': {'height': 224, 'width': 224}}, {'resize_mode': 'squash'}),
    (
      {'size': {'height': 40, 'width': 40}, 'do_center_crop': False},
      {'resize_mode': 'squash', 'image_size': 40},
    ),
    ({'do_resize': False}, {'resize_mode': 'none'}),
    ({'do_convert_rgb': False}, {}),
    ({'resample': 1}, {'interpolation': 'lanczos'}),
    ({'image_mean': None, 'image_std': None}, {}),
    (
      {'image_mean': 0.5, 'image_std': 1},
      {'mean': (0.5,) * 3, 'std': (1.0,) * 3},
    ),
    ({'do_normalize': False}, {'mean': (0.0,) * 3, 'std': (1.0,) * 3}),
    ({'crop_size': None}, {}),
    ({'rescale_factor': None}, {}),
  ],
)
def test_older_and_rarer_forms_are_read_as_transformers_does(change, wanted):
  size = change.get('crop_size') or 224
  size = size[0] if isinstance(size, list) else size
  expected = dataclasses.replace(CLIP_FORM, **{'image_size': size, **wanted})
  assert read_hugging_face(OPENAI | change) == expected
  written = json.loads(json.dumps(write_hugging_face(expected).config))
  assert read_hugging_face(written) == expected


def test_a_missing_mean_is_the_processors_own():
  fields = {k: v for k, v in SIGLIP.items() if not k.startswith('image_m')}
  assert read_hugging_face(fields) == SIGLIP_FORM


@pytest.mark.parametrize(
  'change', [{'do_rescale': False}, {'rescale_factor': 1 / 127.5}]
)
def test_another_scale_is_in_the_mean_and_deviation(change):
  pixel = np.arange(256)
  factor = change.get('rescale_factor', 1)
  result = read_hugging_face(OPENAI | change)
  for mean, std, theirs, deviation in zip(
    result.mean, result.std, CLIP_MEAN, CLIP_STD, strict=True
  ):
    np.testing.assert_allclose(
      (pixel / 255 - mean) / std, (pixel * factor - theirs) / deviation
    )


def test_where_the_file_is_in_a_directory(tmp_path):
  assert read_hugging_face_directory(tmp_path) is None
  nested = {'image_processor': SAVED, 'processor_class': 'CLIPProcessor'}
  (tmp_path / 'processor_config.json').write_text(json.dumps(nested))
  assert read_hugging_face_directory(tmp_path).image_size == 336
  (tmp_path / 'preprocessor_config.json').write_text(json.dumps(SIGLIP))
  assert read_hugging_face_directory(tmp_path) == SIGLIP_FORM


def test_a_processor_of_text_alone_has_no_preprocessing(tmp_path):
  (tmp_path / 'processor_config.json').write_text('{"processor_class": "X"}')
  assert read_hugging_face_directory(tmp_path) is None


@pytest.mark.parametrize('content', ['', '{', '[]', '\x00'])
def test_a_damaged_file_is_named_in_one_line(tmp_path, content):
  (tmp_path / 'preprocessor_config.json').write_text(content)
  with pytest.raises(FailureError, match=r'preprocessor_config\.json') as error:
    read_hugging_face_directory(tmp_path)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'feature_extractor_type': 'ViTFeatureExtractor'}, 'ViT.* is not known'),
    ({'do_center_crop': False}, 'do_center_crop is off .* keeps the aspect'),
    ({'do_resize': False, 'do_center_crop': False}, 'keep their sizes'),
    ({'rescale_factor': 'x'}, "rescale_factor='x' is not supported"),
    ({'rescale_factor': 0}, 'rescale_factor=0 is not'),
    ({'rescale_factor': float('nan')}, 'rescale_factor=nan is not'),
    ({'resample': 9}, r'resample=9 .* 3 \(bicubic\), .* are'),
    ({'resample': [3]}, 'resample='),
    ({'size': 'big'}, 'size=big is not supported'),
    ({'size': {'longest_edge': 9}}, 'longest_edge'),
    ({'size': {'shortest_edge': [9]}}, r'size.shortest_edge=\[9\]'),
    ({'size': {'height': 10**9, 'width': 8}}, 'up to 16,384'),
    ({'size': 0}, 'size.shortest_edge=0 is not supported'),
    ({'size': {'height': True, 'width': 8}}, 'is not supported'),
    ({'crop_size': {'height': 8, 'width': 9}}, 'crop_size=8 x 9'),
    ({'crop_size': [[1]]}, 'crop_size='),
    (
      {'size': {'height': 8, 'width': 9}, 'do_center_crop': False},
      'size=8 x 9: .* one square',
    ),
    ({'image_mean': [0.5]}, r'image_mean=\[0\.5\] is not three numbers'),
    ({'image_mean': ['a', 'b', 'c']}, 'image_mean=.* not three numbers'),
    ({'image_mean': {'r': 1}}, 'image_mean=.* not three numbers'),
    ({'image_mean': [0, 0, [1]]}, 'image_mean=.* not three numbers'),
    ({'image_std': [1, 1, float('inf')]}, 'image_std=.* not three numbers'),
    ({'image_std': [1, 1, 0]}, 'each has to be above 0'),
    ({'image_std': 10**400}, 'image_std='),
  ],
)
def test_what_is_not_supported_is_said_in_one_line(change, message):
  with pytest.raises(UsageError, match=message) as error:
    read_hugging_face(OPENAI | change, 'a/preprocessor_config.json')
  assert str(error.value).startswith('a/preprocessor_config.json: ')
  assert '\n' not in str(error.value)


def test_what_hugging_face_cannot_be_told():
  mine = Preprocessing(32, background='white', exif=True)
  said = ' '.join(write_hugging_face(mine).differences)
  for word in ('torchvision', 'over white', 'EXIF', 'grey of 16 bits'):
    assert word in said
  assert 'upon' not in said  # white is theirs, too
  red = Preprocessing(32, background='red')
  assert 'upon red' in ' '.join(write_hugging_face(red).differences)
  with pytest.raises(UsageError, match=r"'longest'.* shortest and squash"):
    write_hugging_face(Preprocessing(32, 'longest'))


@pytest.mark.parametrize('resize_mode', ['shortest', 'squash', 'longest'])
@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear'])
def test_open_clip_there_and_back(resize_mode, interpolation):
  mine = Preprocessing(
    40, resize_mode, interpolation, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
  )
  config, differences = write_open_clip(mine)
  assert differences == []
  assert read_open_clip(json.loads(json.dumps(config))) == mine


def test_open_clips_defaults_and_the_models_size():
  assert read_open_clip({}) == Preprocessing(224)
  assert read_open_clip({'size': [224, 224]}) == Preprocessing(224)
  # As in its published files: the size is that of the model.
  assert read_open_clip({'mean': CLIP_MEAN}, 336) == Preprocessing(336)
  assert read_open_clip({'interpolation': 'random'}) == Preprocessing(224)
  assert read_open_clip({'fill_color': 127}) == Preprocessing(224)  # no pads


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ({'crop': 1}, "'crop', which is not known"),
    ({'mode': 'L'}, "mode='L' is not RGB"),
    ({'size': [36, 52]}, 'not square'),
    ({'resize_mode': 'longest', 'fill_color': 9}, 'fill_color=9'),
    ({'resize_mode': 'crop'}, "resize_mode='crop'"),
    ({'interpolation': 'cubic'}, "interpolation='cubic'"),
    ({'std': 'x'}, "std='x' is not three numbers"),
    ({'std': [[1], 1, 1]}, 'is not three numbers'),
    ({'interpolation': ['bicubic']}, 'interpolation='),
    ({'resize_mode': {}}, 'resize_mode='),
    ({'size': [[1]]}, 'size='),
    (['size'], 'is no object'),
    (3, 'is no object'),
  ],
)
def test_what_open_clip_may_not_ask_for(config, message):
  with pytest.raises(UsageError, match=message):
    read_open_clip(config)


def test_what_open_clip_cannot_be_told():
  mine = dataclasses.replace(SIGLIP_FORM, background='black', exif=True)
  said = ' '.join(write_open_clip(mine).differences)
  for word in ('before it converts', 'EXIF', 'upon black'):
    assert word in said
  with pytest.raises(UsageError, match='nearest'):
    write_open_clip(Preprocessing(32, interpolation='nearest'))
