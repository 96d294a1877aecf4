"""Reads preprocessing as other libraries write it down.

Hugging Face has a preprocessor_config.json (in transformers 5 it may be part of
a processor_config.json), open_clip a `preprocess_cfg`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.data.preprocessing import (
  CLIP_MEAN,
  CLIP_STD,
  MAX_SIDE,
  Preprocessing,
)
from clip_jax.errors import UsageError
from clip_jax.files import read_object

_HALF = (0.5, 0.5, 0.5)
# Pillow's codes of the interpolations.
RESAMPLE = {
  0: 'nearest',
  1: 'lanczos',
  2: 'bilinear',
  3: 'bicubic',
  4: 'box',
  5: 'hamming',
}
# The defaults of transformers' image processors.
_DEFAULTS: dict[str, dict[str, Any]] = {
  'CLIP': {
    'size': {'shortest_edge': 224},
    'crop_size': 224,
    'do_center_crop': True,
    'image_mean': CLIP_MEAN,
    'image_std': CLIP_STD,
  },
  'Siglip': {
    'size': {'height': 224, 'width': 224},
    'do_center_crop': False,
    'image_mean': _HALF,
    'image_std': _HALF,
  },
  'Siglip2': {  # of native aspect (NaFlex)
    'patch_size': 16,
    'max_num_patches': 256,
    'resample': 2,
    'image_mean': _HALF,
    'image_std': _HALF,
  },
}
_OPEN_CLIP_DEFAULTS: dict[str, Any] = {
  'size': 224,
  'mode': 'RGB',
  'mean': CLIP_MEAN,
  'std': CLIP_STD,
  'interpolation': 'bicubic',
  'resize_mode': 'shortest',
  'fill_color': 0,
}


def read_hugging_face_directory(directory: Path) -> Preprocessing | None:
  """Returns the preprocessing of a published directory; None where it has none.

  Raises:
    UsageError: see `read_hugging_face`.
    FailureError: the file is damaged.
  """
  for name in ('preprocessor_config.json', 'processor_config.json'):
    file = directory / name
    if file.exists():
      config = read_object(file)
      if name == 'processor_config.json':
        config = config.get('image_processor')
      if isinstance(config, dict):
        return read_hugging_face(config, str(file))
  return None


def read_hugging_face(
  config: Mapping[str, Any], origin: str = 'the image processor'
) -> Preprocessing:
  """Reads the content of a preprocessor_config.json, old or new.

  Raises:
    UsageError: another processor than CLIP's and SigLIP's, a value that is
      not supported, or an image that does not come out square.
  """
  kind = str(
    config.get('image_processor_type')
    or config.get('feature_extractor_type')
    or 'CLIPImageProcessor'
  )
  name = kind.removesuffix('Fast').removesuffix('Pil')
  family = name.removesuffix('ImageProcessor').removesuffix('FeatureExtractor')
  if family not in _DEFAULTS or family == name:
    raise UsageError(
      f"{origin}: the image processor {kind} is not known; CLIP's, Siglip's "
      "and Siglip2's are."
    )
  values = _DEFAULTS[family] | {
    key: value for key, value in config.items() if value is not None
  }
  resample = values.get('resample', 3)
  if resample not in list(
    RESAMPLE
  ):  # unlike a dict, a list takes unhashable values
    raise UsageError(
      f'{origin}: resample={resample!r} is not supported: '
      + ', '.join(f'{code} ({name})' for code, name in RESAMPLE.items())
      + ' are.'
    )
  mean, std = _normalisation(values, origin)
  fields: dict[str, Any] = dict(
    interpolation=RESAMPLE[resample],
    mean=mean,
    std=std,
    convention='transformers',
  )
  if family == 'Siglip2':
    return _native(values, fields, origin)
  return Preprocessing(**_geometry(values, family, origin), **fields)


def read_open_clip(config: Any, image_size: int | None = None) -> Preprocessing:
  """Reads open_clip's `preprocess_cfg`.

  Args:
    config: the keys that differ from open_clip's defaults.
    image_size: of the model, which open_clip takes instead of `size`.
  Raises:
    UsageError: a key or a value that is not known.
  """
  if not isinstance(config, Mapping):
    raise UsageError(f'preprocess_cfg={config!r} is no object.')
  for key in config:
    if key not in _OPEN_CLIP_DEFAULTS:
      raise UsageError(
        f'preprocess_cfg has {key!r}, which is not known: '
        f'{", ".join(_OPEN_CLIP_DEFAULTS)} are.'
      )
  values = _OPEN_CLIP_DEFAULTS | dict(config)
  if values['mode'] != 'RGB':
    raise UsageError(f'preprocess_cfg.mode={values["mode"]!r} is not RGB.')
  if values['fill_color'] and values['resize_mode'] == 'longest':
    raise UsageError(
      f'preprocess_cfg.fill_color={values["fill_color"]!r} is not supported: '
      '0 is.'
    )
  if image_size is None:
    sides = _pair(values['size'], 'size', 'preprocess_cfg')
    if sides[0] != sides[1]:
      raise UsageError(f'preprocess_cfg.size={values["size"]} is not square.')
    image_size = sides[0]
  mean = _channels(values['mean'], 'mean', 'preprocess_cfg')
  std = _channels(values['std'], 'std', 'preprocess_cfg')
  for name, known in (
    ('resize_mode', ('shortest', 'longest', 'squash')),
    ('interpolation', ('bicubic', 'bilinear', 'random')),
  ):
    if values[name] not in known:
      raise UsageError(
        f'preprocess_cfg: {name}={values[name]!r}: use one of '
        f'{", ".join(known)}.'
      )
  return Preprocessing(
    image_size=image_size,
    resize_mode=values['resize_mode'],
    # open_clip's 'random' is for training: it is bicubic in evaluation.
    interpolation=values['interpolation'].replace('random', 'bicubic'),
    mean=mean,
    std=std,
  )


def _native(
  values: Mapping[str, Any], fields: Mapping[str, Any], origin: str
) -> Preprocessing:
  """Returns the preprocessing of images that keep their aspect."""
  if not values.get('do_resize', True):
    raise UsageError(
      f'{origin}: do_resize is off, and images of native aspect are resized to '
      'whole patches.'
    )
  size, most = values['patch_size'], values['max_num_patches']
  try:
    return Preprocessing.native(size, most, **fields)
  except (UsageError, TypeError, ValueError):  # of a root, for example
    raise UsageError(
      f'{origin}: patch_size={size!r} and max_num_patches={most!r} are not '
      'supported: a number of pixels, and one of patches, are.'
    ) from None


def _geometry(
  values: Mapping[str, Any], family: str, origin: str
) -> dict[str, Any]:
  """Returns the fields of `Preprocessing` for resizing and cropping."""
  crop = None
  if values['do_center_crop']:
    crop = _pair(values.get('crop_size', 224), 'crop_size', origin)
  if not values.get('do_resize', True):
    if crop is None:
      raise UsageError(
        f'{origin}: do_resize and do_center_crop are off, so that images '
        'keep their sizes: a model reads squares of one.'
      )
    return {
      'image_size': _square(crop, 'crop_size', origin),
      'resize_mode': 'none',
    }
  size = values['size']
  if family == 'CLIP' and isinstance(size, int):  # as its older files say it
    size = {'shortest_edge': size}
  if isinstance(size, Mapping) and set(size) == {'shortest_edge'}:
    [short] = _pair(size['shortest_edge'], 'size.shortest_edge', origin)[:1]
    if crop is None:
      raise UsageError(
        f'{origin}: do_center_crop is off and size={dict(size)} keeps the '
        'aspect: a model reads squares.'
      )
    side = _square(crop, 'crop_size', origin)
    return {
      'image_size': side,
      'resize_mode': 'shortest',
      'resize_to': None if short == side else short,
    }
  sides = _pair(size, 'size', origin)
  result = _square(crop or sides, 'crop_size' if crop else 'size', origin)
  rows, columns = sides
  resize_to = rows if rows == columns else sides
  return {
    'image_size': result,
    'resize_mode': 'squash',
    'resize_to': None if resize_to == result else resize_to,
  }


def _pair(size: Any, name: str, origin: str) -> tuple[int, int]:
  """Returns a height and a width, of all the forms that files have."""
  pair: Any = size
  if isinstance(size, Mapping) and set(size) == {'height', 'width'}:
    pair = (size['height'], size['width'])
  elif isinstance(size, list | tuple) and len(size) == 2:
    pair = tuple(size)
  elif type(size) is int:
    pair = (size, size)
  if not isinstance(pair, tuple) or not all(
    type(side) is int and 1 <= side <= MAX_SIDE for side in pair
  ):
    raise UsageError(
      f'{origin}: {name}={size} is not supported: a number of pixels up to '
      f'{MAX_SIDE:,}, or a height and a width, is.'
    )
  return pair[0], pair[1]


def _square(sides: tuple[int, int], name: str, origin: str) -> int:
  if sides[0] != sides[1]:
    raise UsageError(
      f'{origin}: {name}={sides[0]} x {sides[1]}: images have to come out as '
      'one square.'
    )
  return sides[0]


def _normalisation(
  values: Mapping[str, Any], origin: str
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
  """Returns the mean and deviation of values in [0, 1] that come to the same.

  (x * factor - mean) / std, with x the pixel and any of the three left out.
  """
  mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
  if values.get('do_normalize', True):
    mean = _channels(values['image_mean'], 'image_mean', origin)
    std = _channels(values['image_std'], 'image_std', origin)
    if min(std) <= 0:
      raise UsageError(f'{origin}: image_std={std}: each has to be above 0.')
  factor = 1.0
  if values.get('do_rescale', True):
    factor = values.get('rescale_factor', 1 / 255)
  if not _is_number(factor) or not 1e-6 <= factor <= 1e3:
    raise UsageError(f'{origin}: rescale_factor={factor!r} is not supported.')
  if abs(factor * 255 - 1) < 1e-6:
    return mean, std
  scale = 255 * factor
  return (
    (mean[0] / scale, mean[1] / scale, mean[2] / scale),
    (std[0] / scale, std[1] / scale, std[2] / scale),
  )


def _channels(
  values: Any, name: str, origin: str
) -> tuple[float, float, float]:
  """Returns three numbers, of three or of one for all."""
  if _is_number(values):
    values = [values] * 3
  if (
    not isinstance(values, list | tuple)
    or len(values) != 3
    or not all(map(_is_number, values))
  ):
    raise UsageError(f'{origin}: {name}={values!r} is not three numbers')
  red, green, blue = map(float, values)
  return red, green, blue


def _is_number(value: Any) -> bool:
  """Returns whether a value is a number of a possible size for a pixel."""
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and abs(value) < 1e6
