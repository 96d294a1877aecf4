"""Preprocessing as other libraries write it down, in and out.

Hugging Face has a preprocessor_config.json (in transformers 5 it may be part of
a processor_config.json), open_clip a `preprocess_cfg`. What the other library
cannot be told comes back as plain sentences, for the person who converts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clip_jax.data.images import CLIP_MEAN, CLIP_STD, Preprocessing
from clip_jax.errors import UsageError
from clip_jax.files import read_object

_HALF = (0.5, 0.5, 0.5)
# Pillow's codes of the interpolations.
_RESAMPLE = {0: 'nearest', 2: 'bilinear', 3: 'bicubic'}
# What the image processors of transformers do where a file says nothing.
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


class Written(NamedTuple):
  """What to write, and what it leaves out."""

  config: dict[str, Any]
  differences: list[str]  # sentences; empty where all pixels are ours


def read_hugging_face_directory(directory: Path) -> Preprocessing | None:
  """The preprocessing of a published directory; None where it has none.

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
  """From the content of a preprocessor_config.json, old or new.

  Raises:
    UsageError: another processor than CLIP's and SigLIP's, a step that is
      turned off, or a picture that does not come out square.
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
      f"{origin}: the image processor {kind} is not known; CLIP's and "
      "Siglip's are."
    )
  values = _DEFAULTS[family] | {
    key: value for key, value in config.items() if value is not None
  }
  for step in ('resize', 'rescale', 'normalize', 'convert_rgb'):
    if not values.get(f'do_{step}', True):
      raise UsageError(f'{origin}: do_{step} is off, which is not supported.')
  factor = values.get('rescale_factor', 1 / 255)
  if not isinstance(factor, float) or abs(factor * 255 - 1) > 1e-6:
    raise UsageError(f'{origin}: rescale_factor={factor!r} is not 1/255.')
  size, resize_mode = _size(values, origin)
  resample = values.get('resample', 3)
  if resample not in list(_RESAMPLE):  # a list takes what has no hash
    raise UsageError(
      f'{origin}: resample={resample!r} is not supported: '
      + ', '.join(f'{code} ({name})' for code, name in _RESAMPLE.items())
      + ' are.'
    )
  return Preprocessing(
    image_size=size,
    resize_mode=resize_mode,
    interpolation=_RESAMPLE[resample],
    mean=_channels(values['image_mean'], 'image_mean', origin),
    std=_channels(values['image_std'], 'image_std', origin),
    convention='transformers',
  )


def write_hugging_face(preprocessing: Preprocessing) -> Written:
  """The content of a preprocessor_config.json.

  Raises:
    UsageError: the resize mode 'longest', which has no counterpart.
  """
  p = preprocessing
  square = {'height': p.side, 'width': p.side}
  config: dict[str, Any] = {
    'do_convert_rgb': True,
    'do_normalize': True,
    'do_rescale': True,
    'do_resize': True,
    'image_mean': list(p.mean),
    'image_std': list(p.std),
    'resample': {name: code for code, name in _RESAMPLE.items()}[
      p.interpolation
    ],
    'rescale_factor': 1 / 255,
  }
  if p.resize_mode == 'shortest':
    config |= {
      'image_processor_type': 'CLIPImageProcessor',
      'size': {'shortest_edge': p.side},
      'crop_size': square,
      'do_center_crop': True,
    }
  elif p.resize_mode == 'squash':
    config |= {'image_processor_type': 'SiglipImageProcessor', 'size': square}
  else:
    raise UsageError(
      f'the image processors of transformers cannot express '
      f'resize_mode={p.resize_mode!r}: shortest and squash are possible.'
    )
  differences = [
    "transformers resizes with torchvision unless asked for backend='pil': "
    'pixels differ by a few grey levels.'
  ]
  if p.convention != 'transformers':
    differences.append(
      'transformers converts to RGB (transparency over white) before it '
      'resizes, and may crop one pixel further left or up.'
    )
  return Written(config, differences + _options(p, 'transformers'))


def read_open_clip(
  config: Mapping[str, Any], image_size: int | None = None
) -> Preprocessing:
  """From open_clip's `preprocess_cfg`.

  Args:
    config: the keys that differ from open_clip's defaults.
    image_size: of the model, which open_clip puts in the place of `size`.
  Raises:
    UsageError: a key or a value that is not known.
  """
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
  size = values['size']
  sides = set(size) if isinstance(size, list | tuple) else {size}
  if image_size is None and len(sides) > 1:
    raise UsageError(f'preprocess_cfg.size={size} is not square.')
  return Preprocessing(
    image_size=image_size or sides.pop(),
    resize_mode=values['resize_mode'],
    # open_clip's 'random' is for training: it is bicubic in evaluation.
    interpolation=str(values['interpolation']).replace('random', 'bicubic'),
    mean=_channels(values['mean'], 'mean', 'preprocess_cfg'),
    std=_channels(values['std'], 'std', 'preprocess_cfg'),
  )


def write_open_clip(preprocessing: Preprocessing) -> Written:
  """open_clip's `preprocess_cfg`.

  Raises:
    UsageError: nearest-neighbour interpolation, which open_clip has not.
  """
  p = preprocessing
  if p.interpolation == 'nearest':
    raise UsageError(
      "open_clip cannot express interpolation='nearest': bicubic and bilinear "
      'are possible.'
    )
  config = {
    'size': p.side,
    'mode': 'RGB',
    'mean': list(p.mean),
    'std': list(p.std),
    'interpolation': p.interpolation,
    'resize_mode': p.resize_mode,
    'fill_color': 0,
  }
  differences = _options(p, 'open_clip')
  if p.convention != 'open_clip':
    differences.append(
      'open_clip resizes before it converts to RGB, drops transparency, and '
      'may crop one pixel further right or down.'
    )
  return Written(config, differences)


def _size(values: Mapping[str, Any], origin: str) -> tuple[int, str]:
  """The side, and the resize mode."""
  crops = values['do_center_crop']
  size = _sides(values['size'], 'shortest_edge')
  crop = _sides(values.get('crop_size'), 'height', 'width') if crops else None
  side = next(iter(size.values()), None)
  square = {'height': side, 'width': side}
  if isinstance(side, int):
    if size == {'shortest_edge': side} and crop == square:
      return side, 'shortest'
    if size == square and crop in (None, square):
      return side, 'squash'
  raise UsageError(
    f'{origin}: size={values["size"]} with crop_size='
    f'{crop} is not supported: both have to be one square.'
  )


def _sides(size: Any, *names: str) -> dict[str, Any]:
  """Sides by name; older files have a number for those of `names`."""
  if isinstance(size, Mapping):
    return dict(size)
  return dict.fromkeys(names, size)


def _channels(
  values: Any, name: str, origin: str
) -> tuple[float, float, float]:
  if not isinstance(values, list | tuple) or len(values) != 3:
    raise UsageError(f'{origin}: {name}={values!r} is not three numbers.')
  red, green, blue = map(float, values)
  return red, green, blue


def _options(preprocessing: Preprocessing, library: str) -> list[str]:
  """Sentences on the options for users' own pictures."""
  found = []
  if preprocessing.exif:
    found.append(f'{library} takes photographs as stored, not as EXIF says.')
  if preprocessing.background:
    # transformers lays them upon white, as its convention has it.
    if (library, preprocessing.background) != ('transformers', 'white'):
      found.append(
        f'{library} does not lay transparent pictures upon '
        f'{preprocessing.background}.'
      )
    found.append(f'{library} cuts grey of 16 bits off where 8 bits end.')
  return found
