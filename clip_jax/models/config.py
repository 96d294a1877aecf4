"""What a CLIP model is, as plain data: the part of a checkpoint that says how
its arrays are to be used. Each field is named as in the literature; the same
objects are rows of `presets.py`, fields of a config, and JSON in a checkpoint.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from clip_jax.errors import UsageError

ACTIVATIONS = ('quick_gelu', 'gelu')
IMAGE_POOLING = ('class_token', 'average')


@dataclasses.dataclass(frozen=True)
class VisionTransformerConfig:
  """The image tower (paper, section 2.4; shapes in table 20)."""

  image_size: int  # pixels, a side
  patch_size: int  # pixels, a side
  width: int
  depth: int  # blocks
  heads: int
  mlp_ratio: float = 4.0  # MLP width over `width`; the product is truncated
  activation: str = 'quick_gelu'
  pooling: str = 'class_token'  # 'average' has no class token
  pre_norm: bool = True  # CLIP's extra LayerNorm before the blocks

  def __post_init__(self):
    _check_tower('model.image', self)
    _check_choice('model.image.pooling', self.pooling, IMAGE_POOLING)
    if self.image_size % self.patch_size:
      raise UsageError(
        f'model.image.image_size={self.image_size} is not a multiple of '
        f'model.image.patch_size={self.patch_size}.'
      )

  @property
  def patches(self) -> int:
    """Patch tokens of one image."""
    return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class TextTransformerConfig:
  """The text tower (paper, section 2.4): pooled where the text ends."""

  vocab_size: int
  context_length: int  # tokens, specials included
  end_token: int  # its first occurrence is the pooled position
  width: int
  depth: int
  heads: int
  mlp_ratio: float = 4.0
  activation: str = 'quick_gelu'
  causal: bool = True

  def __post_init__(self):
    _check_tower('model.text', self)


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
  """Two towers, a shared space of `embed_dim`, and the temperature's bounds."""

  embed_dim: int
  image: VisionTransformerConfig
  text: TextTransformerConfig
  initial_logit_scale: float = 1 / 0.07  # exp(t) at the start (figure 3)

  def to_dict(self) -> dict[str, Any]:
    """Nested plain data, for JSON."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, fields: Mapping[str, Any]) -> 'CLIPConfig':
    """The inverse of `to_dict`.

    Raises:
      UsageError: a field is unknown, missing, or impossible.
    """
    fields = dict(fields)
    try:
      image = VisionTransformerConfig(**fields.pop('image'))
      text = TextTransformerConfig(**fields.pop('text'))
      return cls(image=image, text=text, **fields)
    except (KeyError, TypeError) as error:
      raise UsageError(
        f'the model description does not fit: {error}.'
      ) from error


def _check_tower(
  name: str, tower: VisionTransformerConfig | TextTransformerConfig
) -> None:
  _check_choice(f'{name}.activation', tower.activation, ACTIVATIONS)
  for field in dataclasses.fields(tower):
    value = getattr(tower, field.name)
    if field.type in (int, 'int') and field.name != 'end_token' and value < 1:
      raise UsageError(f'{name}.{field.name}={value} must be at least 1.')
  if tower.width % tower.heads:
    raise UsageError(
      f'{name}.width={tower.width} does not split over '
      f'{name}.heads={tower.heads}.'
    )


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
  if value not in known:
    raise UsageError(f'{name}={value!r}: choose one of {", ".join(known)}.')
