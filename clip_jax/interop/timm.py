"""The image towers that open_clip takes from timm: SigLIP's, by their names."""

import dataclasses
import re
from typing import Any

from clip_jax.errors import UsageError
from clip_jax.models.config import VisionTransformerConfig
from clip_jax.models.presets import SIGLIP_IMAGE, SIGLIP_SHAPES

# timm's word for a shape, and SigLIP's.
_SHAPES = {'base': 'B', 'large': 'L', 'so400m': 'SO400M', 'giantopt': 'gopt'}
_IMAGE_SIZES = {  # that timm has a name for, by shape and patch
  ('base', 16): (224, 256, 384, 512),
  ('base', 32): (256,),
  ('large', 16): (256, 384, 512),
  ('so400m', 14): (224, 378, 384),
  ('so400m', 16): (256, 384, 512),
  ('giantopt', 16): (256, 384),
}
_TANH = {  # whose GELU is the approximate one; the others' is exact
  ('base', 32, 256),
  ('large', 16, 512),
  ('so400m', 16, 256),
  ('so400m', 16, 384),
  ('so400m', 16, 512),
  ('giantopt', 16, 256),
  ('giantopt', 16, 384),
}
_NAME = re.compile(r'vit_(\w+?)_patch(\d+)_siglip_(\d+)')


def read_tower(fields: dict[str, Any]) -> VisionTransformerConfig:
  """Returns the tower of a `vision_cfg`, and removes the fields that it read.

  Raises:
    UsageError: it is none of timm's SigLIP towers.
  """
  name = fields.pop('timm_model_name')
  match = _NAME.fullmatch(name)
  pool, proj = fields.pop('timm_pool', ''), fields.pop('timm_proj', '')
  if (
    match is None
    or match[1] not in _SHAPES
    or (pool, proj) not in (('map', 'none'), ('map', ''))
  ):
    raise UsageError(
      f'the image tower timm_model_name={name!r} with timm_pool={pool!r} and '
      f'timm_proj={proj!r} is not supported: of timm, SigLIP towers with the '
      "pool 'map' and no projection are."
    )
  shape, patch_size, size = match[1], int(match[2]), int(match[3])
  width, depth, heads, ratio = SIGLIP_SHAPES[_SHAPES[shape]]
  tanh = (shape, patch_size, size) in _TANH
  return VisionTransformerConfig(
    image_size=side_of('image_size', fields.pop('image_size', size)),
    patch_size=patch_size,
    width=width,
    depth=depth,
    heads=heads,
    mlp_ratio=ratio,
    # open_clip's act_kwargs and quick_gelu do not reach timm's towers.
    activation='gelu_tanh' if tanh else 'gelu',
    norm_eps=1e-6,
    **SIGLIP_IMAGE,
  )


def write_tower(image: VisionTransformerConfig) -> dict[str, Any]:
  """Returns the inverse of `read_tower`.

  Raises:
    UsageError: timm has no name for the tower.
  """
  fields = _named(image)
  if fields is None or not _same(image, read_tower(dict(fields))):
    raise UsageError(
      'open_clip takes image towers with attention pooling from timm, which '
      'has the published SigLIP shapes only, each with one activation; this '
      f'one has width {image.width}, {image.depth} blocks, {image.image_size} '
      f'pixels and {image.activation}: convert it with --to=hf.'
    )
  return fields


def with_its_activation(
  image: VisionTransformerConfig,
) -> VisionTransformerConfig:
  """Returns the tower with the activation that timm gives one of its sizes."""
  fields = _named(image)
  if fields is None:
    return image
  return dataclasses.replace(image, activation=read_tower(fields).activation)


def _named(image: VisionTransformerConfig) -> dict[str, Any] | None:
  """Returns timm's name of these sizes, as a `vision_cfg`; None without one."""
  for shape, ours in _SHAPES.items():
    size, patch = image.image_size, image.patch_size
    if SIGLIP_SHAPES[ours][0] == image.width and (
      size in _IMAGE_SIZES.get((shape, patch), ())
    ):
      return {
        'image_size': size,
        'timm_model_name': f'vit_{shape}_patch{patch}_siglip_{size}',
        'timm_pool': 'map',
        'timm_proj': 'none',
      }
  return None


def _same(one: VisionTransformerConfig, other: VisionTransformerConfig) -> bool:
  """Returns whether two towers compute the same.

  The ratio of the MLP may be written with other digits.
  """
  hidden = [int(tower.width * tower.mlp_ratio) for tower in (one, other)]
  return hidden[0] == hidden[1] and one == dataclasses.replace(
    other, mlp_ratio=one.mlp_ratio
  )


def side_of(name: str, size: Any) -> int:
  """Returns a side in pixels of what may be written as [height, width].

  Raises:
    UsageError: the sides differ; the message has the name of the field.
  """
  sides = set(size) if isinstance(size, list | tuple) else {size}
  if len(sides) != 1:
    raise UsageError(f'{name}={size} is not square.')
  return sides.pop()
