"""The shape of a CLIP model, as plain data that is checked.

Fields are named as in the literature; the same objects are rows of
`presets.py`, fields of a config, and JSON in a checkpoint.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from clip_jax.errors import UsageError, check_choice

ACTIVATIONS = ('quick_gelu', 'gelu', 'gelu_tanh')
IMAGE_POOLING = ('class_token', 'average', 'attention')
TEXT_POOLING = ('end', 'highest', 'last')
TOWERS = ('image', 'text')
PROJECTIONS = ('linear', 'affine', 'mlp', 'none')
DECODER_READS = ('tokens', 'text_tower', 'image_prefix', 'pooled_image')
# Limits far above published models, and low enough that computing with the
# shapes of a file from outside costs nothing.
_MAX_NUMBER = 10_000_000
_MAX_OF_FIELD = {
  'depth': 1_000,  # blocks
  'width': 65_536,
  'embed_dim': 65_536,
  'image_size': 16_384,  # pixels a side
  'patch_size': 16_384,
  'context_length': 16_384,  # tokens; attention grows with their square
  'rank': 65_536,
}
_MAX_PATCHES = 65_536
_MAX_HIDDEN = 1_048_576  # the MLP's width
_MAX_BOTTLENECKS = 256  # bottleneck blocks, which are compiled one by one

# How text positions are resized: see `positions.resize_model`.
TEXT_METHODS = ('append', 'interpolate')


@dataclasses.dataclass(frozen=True)
class VisionTransformerConfig:
  """A ViT as image tower (paper, section 2.4; shapes in table 20).

  Attributes:
    pooling: 'class_token', 'average' (of the patches), or 'attention': a
      learned query looks at all tokens, and an MLP follows (SigLIP's MAP head).
    class_token: whether a class token is put before the patches.
    pre_norm: CLIP's extra LayerNorm before the blocks.
    norm_after_pooling: the last LayerNorm sees the pooled vector, not tokens.
    projection: into the joint space: 'linear' has no bias, 'affine' has one,
      'mlp' is the non-linear one that the paper tried and left (section 2.3):
      two products and the tower's activation between them; with 'none' the
      pooled vector is the feature.
  """

  image_size: int  # pixels, a side
  patch_size: int  # pixels, a side
  width: int
  depth: int  # blocks
  heads: int
  mlp_ratio: float = 4.0  # MLP width over `width`; the product is truncated
  activation: str = 'quick_gelu'
  pooling: str = 'class_token'
  class_token: bool = True
  patch_bias: bool = False
  pre_norm: bool = True
  norm_after_pooling: bool = False
  norm_eps: float = 1e-5
  projection: str = 'linear'

  def __post_init__(self):
    _check_tower('model.image', self)
    check_choice('model.image.pooling', self.pooling, IMAGE_POOLING)
    if self.pooling == 'class_token' and not self.class_token:
      raise UsageError(
        "model.image.pooling='class_token' needs model.image.class_token=True."
      )
    if self.image_size < self.patch_size:
      raise UsageError(
        f'model.image.image_size={self.image_size} is smaller than '
        f'model.image.patch_size={self.patch_size}.'
      )
    _check_patches(self)

  @property
  def grid(self) -> int:
    """The number of patches along a side; a rest of pixels is not seen."""
    return self.image_size // self.patch_size

  @property
  def patches(self) -> int:
    """The number of patch tokens of one image."""
    return self.grid**2

  def kept_patches(self, dropout: float, patches: int | None = None) -> int:
    """Returns the number of patches that are left of each image.

    It is at least one, and the same as with open_clip's `patch_dropout`.

    Args:
      dropout: the fraction of patches that is left out.
      patches: of the image; by default those of a square.
    """
    return max(1, int((1 - dropout) * (patches or self.patches)))

  @property
  def pooled_width(self) -> int:
    """The width of the vector that enters the projection."""
    return self.width


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
  """The paper's modified ResNet as image tower (section 2.4, table 19).

  Attributes:
    layers: bottleneck blocks of each of the four stages.
    width: channels after the stem; the last stage has 32 times as many.
    heads: of the attention pooling.
  """

  image_size: int  # pixels, a side
  layers: tuple[int, ...]
  width: int
  heads: int

  def __post_init__(self):
    whole = all(type(blocks) is int and blocks > 0 for blocks in self.layers)
    if len(self.layers) != 4 or not whole:
      raise UsageError(
        f'model.image.layers={self.layers}: give the blocks of four stages, as '
        'in (3, 4, 6, 3).'
      )
    if sum(self.layers) > _MAX_BOTTLENECKS:
      raise UsageError(
        f'model.image.layers={self.layers}: {_MAX_BOTTLENECKS} blocks are '
        'the most.'
      )
    _check_numbers('model.image', self)
    if self.width % 2:
      raise UsageError(
        f'model.image.width={self.width} must be even: the stem begins with '
        'half of it.'
      )
    if self.image_size < 32 or self.image_size % 32:
      raise UsageError(
        f'model.image.image_size={self.image_size} is not a multiple of 32, '
        'the stride of a ResNet.'
      )
    if self.pooled_width % self.heads:
      raise UsageError(
        f'model.image.width={self.width} x 32 does not split over '
        f'model.image.heads={self.heads}.'
      )
    _check_patches(self)

  projection = 'affine'  # the last product of the attention pooling

  @property
  def depth(self) -> int:
    """The number of stages; `image_tokens` counts these."""
    return len(self.layers)

  @property
  def grid(self) -> int:
    """The number of positions along a side of the last stage's map."""
    return self.image_size // 32

  @property
  def patches(self) -> int:
    """The number of positions of the last stage's map."""
    return self.grid**2

  @property
  def pooled_width(self) -> int:
    """The channels of the last stage, which are pooled."""
    return 32 * self.width


@dataclasses.dataclass(frozen=True)
class TextTransformerConfig:
  """The text tower (paper, section 2.4): pooled where the text ends.

  Attributes:
    end_token: ends a text.
    pooling: the position that is read: 'end' is that of the first
      `end_token`, 'highest' that of the highest id (OpenAI's code, whose end
      token is the highest), 'last' the row's last, whatever is there.
    projection: as in `VisionTransformerConfig`.
  """

  vocab_size: int
  context_length: int  # tokens, specials included
  end_token: int
  width: int
  depth: int
  heads: int
  mlp_ratio: float = 4.0
  activation: str = 'quick_gelu'
  causal: bool = True
  pooling: str = 'end'
  norm_eps: float = 1e-5
  projection: str = 'linear'

  def __post_init__(self):
    _check_tower('model.text', self)
    check_choice('model.text.pooling', self.pooling, TEXT_POOLING)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A part that predicts captions from images, beside the two towers.

  Its vocabulary and context are those of the text tower. With 'pooled_image'
  it is one linear layer, so that the fields of a Transformer stay 0.

  Attributes:
    reads: beside the image. 'tokens': the caption's tokens so far, by an
      embedding of its own (a language model, as in the paper's figure 2).
      'text_tower': the causal text tower's states of these (CoCa, arXiv
      2205.01917). 'image_prefix': as 'tokens', but the image's tokens stand
      before them, through a projector of two layers, and no block attends to
      the image otherwise (LLaVA, arXiv 2310.03744). 'pooled_image': no text;
      from the pooled image alone it predicts which words the caption has (the
      figure's bag of words).
    image_layer: the block of a ViT whose patch tokens are read, as they leave
      it, counted as by `Model.image_tokens`; None: all tokens after the last
      LayerNorm, a class token among them.
    only: the model was trained to predict captions and nothing else, so that
      it classifies by these: its text features mean nothing.
  """

  reads: str
  width: int = 0
  depth: int = 0  # blocks, each with attention to the image's tokens
  heads: int = 0
  mlp_ratio: float = 4.0
  activation: str = 'gelu'
  norm_eps: float = 1e-5
  image_layer: int | None = None
  only: bool = False

  def __post_init__(self):
    check_choice('model.decoder.reads', self.reads, DECODER_READS)
    sizes = ('width', 'depth', 'heads')
    if self.reads == 'pooled_image':
      given = [name for name in sizes if getattr(self, name)]
      given += [] if self.image_layer is None else ['image_layer']
      if given:
        raise UsageError(
          "model.decoder.reads='pooled_image' is one linear layer: leave out "
          f'model.decoder.{given[0]}.'
        )
      return
    missing = [name for name in sizes if not getattr(self, name)]
    if missing:
      raise UsageError(
        f'model.decoder.reads={self.reads!r} makes a Transformer: say '
        f'model.decoder.{missing[0]}.'
      )
    _check_tower('model.decoder', self)

  @property
  def reads_image(self) -> str:
    """The name of the one of `DualEncoder.outputs` that the decoder reads."""
    is_linear = self.reads == 'pooled_image'
    return 'pooled_image' if is_linear else 'image_tokens'


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
  """Low-rank adapters of the attention products (LoRA, arXiv 2106.09685).

  Attributes:
    rank: of the change of each kernel.
    alpha: the change is scaled by alpha / rank.
    towers: 'image', 'text', or both, whose blocks have adapters.
  """

  rank: int
  alpha: float
  towers: tuple[str, ...] = TOWERS

  def __post_init__(self):
    _check_numbers('model.lora', self)
    if not self.towers or set(self.towers) - {*TOWERS}:
      raise UsageError(
        f"model.lora.towers={self.towers}: name 'image', 'text', or both."
      )


ImageConfig = VisionTransformerConfig | ResNetConfig


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
  """Two towers, a shared space of `embed_dim`, and the temperature.

  A caption decoder can stand beside them.
  """

  embed_dim: int
  image: ImageConfig
  text: TextTransformerConfig
  initial_logit_scale: float = 1 / 0.07  # exp(t) at the start (figure 3)
  initial_logit_bias: float | None = None  # None: no bias, as in a softmax
  decoder: DecoderConfig | None = None
  lora: LoRAConfig | None = None  # None: no adapters

  def __post_init__(self):
    _check_numbers('model', self)
    bias = self.initial_logit_bias
    if bias is not None and not (
      isinstance(bias, int | float) and abs(bias) <= _MAX_NUMBER
    ):
      raise UsageError(f'model.initial_logit_bias={bias!r} must be a number.')
    for name, tower, width in (
      ('image', self.image, self.image.pooled_width),
      ('text', self.text, self.text.width),
    ):
      if tower.projection == 'none' and width != self.embed_dim:
        raise UsageError(
          f"model.{name}.projection='none' leaves {width} dimensions, not "
          f'model.embed_dim={self.embed_dim}.'
        )
    if self.decoder is not None and self.decoder.reads == 'text_tower':
      _check_read_tower(self.text, self.decoder)
    _check_image_layer(self.image, self.decoder)
    adapted = () if self.lora is None else self.lora.towers
    if 'image' in adapted and isinstance(self.image, ResNetConfig):
      raise UsageError(
        f'model.lora.towers={adapted}: adapters are for the blocks of '
        "Transformers, and the image tower is a ResNet: take ('text',)."
      )

  def lora_of(self, tower: str) -> LoRAConfig | None:
    """Returns the adapters of a tower, 'image' or 'text'; None: it has none."""
    if self.lora is None or tower not in self.lora.towers:
      return None
    return self.lora

  def to_dict(self) -> dict[str, Any]:
    """Returns nested plain data, for JSON; a part that is absent has no key."""
    fields = dataclasses.asdict(self)
    for name in ('decoder', 'lora'):
      if fields[name] is None:
        del fields[name]
    return fields

  @classmethod
  def from_dict(cls, fields: Any) -> 'CLIPConfig':
    """Makes the config of what `to_dict` gives; with `layers`, a ResNet's.

    A ViT that pools by the average has no class token unless the field says
    so: older checkpoints do not have that field.

    Raises:
      UsageError: a field is unknown, missing, or impossible.
    """
    try:
      fields = dict(fields)
      image, text = dict(fields.get('image', {})), dict(fields.get('text', {}))
      if image.get('pooling') == 'average':
        image.setdefault('class_token', False)
      tower = VisionTransformerConfig
      if 'layers' in image:
        tower = ResNetConfig
        image['layers'] = tuple(image['layers'])  # JSON has lists
      _check_names('model.image', tower, image)
      _check_names('model.text', TextTransformerConfig, text)
      fields['image'] = tower(**image)
      fields['text'] = TextTransformerConfig(**text)
      if fields.get('decoder') is not None:
        _check_names('model.decoder', DecoderConfig, fields['decoder'])
        fields['decoder'] = DecoderConfig(**fields['decoder'])
      if fields.get('lora') is not None:
        lora = dict(fields['lora'])
        _check_names('model.lora', LoRAConfig, lora)
        lora['towers'] = tuple(lora.get('towers', TOWERS))  # JSON has lists
        fields['lora'] = LoRAConfig(**lora)
      _check_names('model', cls, fields)
      return cls(**fields)
    except (TypeError, ValueError) as error:
      if isinstance(error, UsageError):
        raise
      raise UsageError(
        f'the model description does not fit: {error}.'
      ) from error


def mlp_ratio(hidden: int, width: int) -> float:
  """Returns the ratio whose truncated product with `width` is `hidden`."""
  ratio = hidden / width
  return ratio if int(width * ratio) == hidden else math.nextafter(ratio, 9e9)


def _check_names(name: str, kind: Any, fields: Mapping[str, Any]) -> None:
  """Refuses fields that `kind` does not have, and the lack of required ones."""
  known = dataclasses.fields(kind)
  unknown = [key for key in fields if key not in {f.name for f in known}]
  if unknown and kind is ResNetConfig:
    raise UsageError(
      f'{name}.layers makes a ResNet, which has no {", ".join(unknown)}: its '
      f'fields are {", ".join(f.name for f in known)}, and with a preset, '
      'that must be one of a ResNet.'
    )
  if unknown:
    raise UsageError(
      f'{name} has no field {unknown[0]!r}: known are '
      f'{", ".join(f.name for f in known)}.'
    )
  missing = [
    f'{name}.{field.name}'
    for field in known
    if field.default is dataclasses.MISSING and field.name not in fields
  ]
  if missing:
    raise UsageError(
      f'missing {", ".join(missing)}: say each, or name a preset.'
    )


def _check_numbers(name: str, config: Any) -> None:
  """Refuses values that no model has: configs come from files from outside."""
  for field in dataclasses.fields(config):
    where, value = f'{name}.{field.name}', getattr(config, field.name)
    if field.type is float:
      number = isinstance(value, int | float) and not isinstance(value, bool)
      if not number or not 0 < value <= _MAX_NUMBER:
        raise UsageError(
          f'{where}={value!r} must be a number above 0 and at most '
          f'{_MAX_NUMBER}.'
        )
    elif field.type is bool:
      if not isinstance(value, bool):
        raise UsageError(f'{where}={value!r} must be true or false.')
    elif field.type is int:
      least = 0 if field.name == 'end_token' else 1
      most = _MAX_OF_FIELD.get(field.name, _MAX_NUMBER)
      if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f'{where}={value!r} must be a whole number.')
      if value < least:
        raise UsageError(f'{where}={value} must be at least {least}.')
      if value > most:
        raise UsageError(f'{where}={value} must be at most {most}.')


def _check_patches(tower: VisionTransformerConfig | ResNetConfig) -> None:
  if tower.patches > _MAX_PATCHES:
    raise UsageError(
      f'model.image.image_size={tower.image_size} makes {tower.patches:,} '
      f'patches: {_MAX_PATCHES:,} are the most.'
    )


def _check_read_tower(
  text: TextTransformerConfig, decoder: DecoderConfig
) -> None:
  """Refuses a text tower whose states a decoder cannot go on from."""
  if not text.causal:
    raise UsageError(
      "model.decoder.reads='text_tower' needs model.text.causal=True: other "
      "states know the tokens that are to be predicted. Take 'tokens'."
    )
  if decoder.width != text.width:
    raise UsageError(
      f'model.decoder.width={decoder.width} must be model.text.width='
      f"{text.width}, whose states model.decoder.reads='text_tower' reads."
    )


def _check_image_layer(
  image: ImageConfig, decoder: DecoderConfig | None
) -> None:
  """Refuses a block that the image tower does not have."""
  if decoder is None or decoder.image_layer is None:
    return
  where = f'model.decoder.image_layer={decoder.image_layer!r}'
  if isinstance(image, ResNetConfig):
    raise UsageError(
      f'{where} is a block of a ViT, and the image tower is a ResNet: leave it '
      'out.'
    )
  depth = image.depth
  if type(decoder.image_layer) is not int or not (
    -depth <= decoder.image_layer < depth
  ):
    raise UsageError(
      f'{where}: the image tower has {depth} blocks, so use 0 to {depth - 1}, '
      f'or -{depth} to -1 from the end.'
    )


def _check_tower(
  name: str,
  tower: VisionTransformerConfig | TextTransformerConfig | DecoderConfig,
) -> None:
  check_choice(f'{name}.activation', tower.activation, ACTIVATIONS)
  if not isinstance(tower, DecoderConfig):
    check_choice(f'{name}.projection', tower.projection, PROJECTIONS)
  _check_numbers(name, tower)
  hidden = int(tower.width * tower.mlp_ratio)
  if hidden < 1:
    raise UsageError(f'{name}.mlp_ratio={tower.mlp_ratio} leaves no MLP.')
  if hidden > _MAX_HIDDEN:
    raise UsageError(
      f'{name}.mlp_ratio={tower.mlp_ratio} makes an MLP of {hidden:,}: '
      f'{_MAX_HIDDEN:,} are the most.'
    )
  if tower.width % tower.heads:
    raise UsageError(
      f'{name}.width={tower.width} does not split over '
      f'{name}.heads={tower.heads}.'
    )
