"""Writes preprocessing as other libraries read it (see `preprocessors`).

What the other library cannot be told comes back as plain sentences, for the
person who converts.
"""

from typing import Any, NamedTuple

from clip_jax.data.preprocessing import Preprocessing
from clip_jax.errors import UsageError
from clip_jax.interop.preprocessors import RESAMPLE

# Measured as `_options` says.
_TRANSPARENT = (
  'it sees another image than {}, and features move by 0.9 of their length, '
  "by up to 0.4 in a single number (measured with the emoji demo's model)"
)


class Written(NamedTuple):
  """The file to write, and notes on what it cannot express."""

  config: dict[str, Any]
  differences: list[str]  # sentences; empty where all pixels are ours


def write_hugging_face(preprocessing: Preprocessing) -> Written:
  """Returns the content of a preprocessor_config.json.

  Raises:
    UsageError: the resize mode 'longest', which has no counterpart.
  """
  p = preprocessing
  config: dict[str, Any] = {
    'do_convert_rgb': True,
    'do_normalize': True,
    'do_rescale': True,
    'do_resize': True,
    'image_mean': list(p.mean),
    'image_std': list(p.std),
    'resample': {name: code for code, name in RESAMPLE.items()}[
      p.interpolation
    ],
    'rescale_factor': 1 / 255,
  }
  if p.is_native:
    config |= {
      'image_processor_type': 'Siglip2ImageProcessor',
      'patch_size': p.patch_size,
      'max_num_patches': p.max_patches,
    }
    return Written(config, _differences(p))
  square = {'height': p.side, 'width': p.side}
  to = p.resize_to or p.side
  rows, columns = (to, to) if isinstance(to, int) else to
  cropped = {
    'image_processor_type': 'CLIPImageProcessor',
    'crop_size': square,
    'do_center_crop': True,
  }
  resized = {'height': rows, 'width': columns}
  if p.resize_mode == 'shortest':
    config |= cropped | {'size': {'shortest_edge': rows}}
  elif p.resize_mode == 'none':
    config |= cropped | {'do_resize': False}
  elif p.resize_mode == 'squash' and p.resize_to is not None:
    config |= cropped | {'size': resized}
  elif p.resize_mode == 'squash':
    config |= {'image_processor_type': 'SiglipImageProcessor', 'size': square}
  else:
    raise UsageError(
      f'the image processors of transformers cannot express '
      f'resize_mode={p.resize_mode!r}: shortest and squash are possible.'
    )
  return Written(config, _differences(p))


def _differences(preprocessing: Preprocessing) -> list[str]:
  """Returns sentences on the pixels that transformers makes otherwise."""
  p = preprocessing
  differences = [
    "transformers resizes with torchvision unless asked for backend='pil' "
    '(use_fast=False before version 5): pixels differ by a few grey levels, '
    'and features by 0.001 of their length.'
  ]
  if p.convention != 'transformers':
    ground = 'as this model does'
    if p.background != 'white':
      ground = f'so that {_TRANSPARENT.format("this model")}'
    differences.append(
      'transformers lays transparency over white before it resizes, '
      f'{ground}; where an odd number of pixels is cropped, it may keep one '
      'more at the left or the top, which moves features by 0.04 of their '
      'length, and by 0.3 at most.'
    )
  return differences + _options(p, 'transformers')


def write_open_clip(preprocessing: Preprocessing) -> Written:
  """Returns the content of open_clip's `preprocess_cfg`.

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
      'open_clip resizes before it converts to RGB, and drops transparency: '
      f'{_TRANSPARENT.format("transformers")}. Where an odd number of pixels '
      'is cropped, it may keep one more at the right or the bottom, which '
      'moves features by 0.04 of their length, and by 0.3 at most.'
    )
  if p.resize_mode == 'none' or p.resize_to is not None:
    how = f'resizes to {p.side} pixels' if p.resize_to else 'resizes'
    differences.append(
      f'open_clip {how} where this model crops the centre of '
      f'{p.resize_to or "the image as it is"}: it sees more of the border.'
    )
  return Written(config, differences)


def _options(preprocessing: Preprocessing, library: str) -> list[str]:
  """Returns sentences on the options for users' own images.

  The sizes were measured with the model of the emoji demo, between the features
  of 200 of its images before and after; those of two images that have
  nothing in common are 1.4 apart.
  """
  sentences = []
  if preprocessing.exif:
    sentences.append(
      f'{library} takes photographs as stored, not as EXIF says: features of '
      'one that lies on its side move by 0.9 of their length. Turn them first, '
      'with PIL.ImageOps.exif_transpose.'
    )
  ground = preprocessing.background
  if ground:
    # transformers lays them upon white, as its convention has it.
    if (library, ground) != ('transformers', 'white'):
      sentences.append(
        f'{library} does not lay transparent images upon {ground}: '
        f'{_TRANSPARENT.format("this model")}. Lay them upon it first: '
        f"ground = Image.new('RGBA', image.size, {ground!r}); "
        "ground.alpha_composite(image.convert('RGBA')); "
        "ground.convert('RGB')."
      )
    sentences.append(
      f'{library} cuts grey of 16 bits off where 8 bits end, so that nearly '
      'all is white: convert such images to 8 bits first.'
    )
  return sentences
