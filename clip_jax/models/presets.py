"""The table of published models: their names, shapes and preprocessing.

OpenAI's nine models have the paper's names (tables 19 and 20; vocabulary and
context length as in OpenAI's code), with QuickGELU. The others have those of
open_clip's configs, whose 'ViT-B-32' is the same shape with GELU. Other
libraries' names for a row are understood too (`preset_names`). A recipe or a
flag may override single fields (`resolve`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from clip_jax.data.preprocessing import Preprocessing
from clip_jax.models.config import CLIPConfig

# The fields that all SigLIPs have in common, whatever its sizes (arXiv
# 2303.15343): a learned query pools the patches, and texts are read both ways,
# at their end.
SIGLIP_IMAGE: dict[str, Any] = dict(
  pooling='attention',
  class_token=False,
  patch_bias=True,
  pre_norm=False,
  projection='none',
)
SIGLIP_TEXT: dict[str, Any] = dict(
  end_token=1, causal=False, pooling='last', projection='affine'
)
SIGLIP_TEMPERATURE: dict[str, Any] = dict(
  initial_logit_scale=10.0, initial_logit_bias=-10.0
)
_SIGLIP_STATS = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclasses.dataclass(frozen=True)
class Preset:
  """A published model without its weights.

  Attributes:
    fields: nested like `CLIPConfig.to_dict()`.
    preprocessing: fields of `Preprocessing` besides the image size.
    tokenizer: 'clip', or whose files are needed beside the weights.
    origin: where the shapes are published.
  """

  fields: Mapping[str, Any]
  preprocessing: Mapping[str, Any]
  tokenizer: str
  origin: str

  @property
  def config(self) -> CLIPConfig:
    """The shapes of both towers."""
    return CLIPConfig.from_dict(self.fields)


def _text(width, depth, heads, activation='quick_gelu'):
  return dict(
    vocab_size=49_408,
    context_length=77,
    end_token=49_407,
    width=width,
    depth=depth,
    heads=heads,
    activation=activation,
  )


def _openai(embed_dim, image, text_width, text_heads):
  text = _text(text_width, 12, text_heads)
  origin = 'Radford et al. 2021, arXiv 2103.00020, tables 19 and 20'
  fields = dict(embed_dim=embed_dim, image=image, text=text)
  return Preset(fields, {}, 'clip', origin)


def _laion(embed_dim, image, text_width, text_depth, text_heads):
  fields = dict(
    embed_dim=embed_dim,
    image=dict(image, activation='gelu'),
    text=_text(text_width, text_depth, text_heads, 'gelu'),
  )
  return Preset(fields, {}, 'clip', 'open_clip, arXiv 2212.07143')


def _resnet(image_size, layers, width):
  heads = width * 32 // 64
  return dict(image_size=image_size, layers=layers, width=width, heads=heads)


def _vit(image_size, patch_size, width, depth, heads, mlp_ratio=4.0):
  return dict(
    image_size=image_size,
    patch_size=patch_size,
    width=width,
    depth=depth,
    heads=heads,
    mlp_ratio=mlp_ratio,
  )


# Width, depth, heads, MLP width over width; the text tower is the same stack.
SIGLIP_SHAPES = {
  'B': (768, 12, 12, 4.0),
  'L': (1024, 24, 16, 4.0),
  'SO400M': (1152, 27, 16, 4304 / 1152),
  'gopt': (1536, 40, 16, 4.0),  # its text tower is that of SO400M
}


def _siglip(size, image_size, patch_size, version=1, **text):
  # The authors' activation; open_clip's differ: see interop/timm.py.
  tower = dict(activation='gelu_tanh', norm_eps=1e-6)
  shape = SIGLIP_SHAPES[size]
  width, depth, heads, ratio = (
    SIGLIP_SHAPES['SO400M'] if size == 'gopt' else shape
  )
  fields = dict(
    embed_dim=shape[0],
    image=dict(_vit(image_size, patch_size, *shape), **tower, **SIGLIP_IMAGE),
    text=dict(
      dict(
        vocab_size=32_000 if version == 1 else 256_000,
        context_length=64,
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=ratio,
        **tower,
        **SIGLIP_TEXT,
      ),
      **text,
    ),
    **SIGLIP_TEMPERATURE,
  )
  origin = {
    1: 'Zhai et al. 2023, arXiv 2303.15343',
    2: 'Tschannen et al. 2025, arXiv 2502.14786',
  }[version]
  squashed = dict(resize_mode='squash', **_SIGLIP_STATS)
  return Preset(fields, squashed, f'siglip{version}', origin)


# fmt: off
PRESETS: dict[str, Preset] = {
  #                embed_dim, image: size layers width, text: width heads
  'RN50':     _openai(1024, _resnet(224, (3,  4,  6,  3),  64),  512,  8),
  'RN101':    _openai( 512, _resnet(224, (3,  4, 23,  3),  64),  512,  8),
  'RN50x4':   _openai( 640, _resnet(288, (4,  6, 10,  6),  80),  640, 10),
  'RN50x16':  _openai( 768, _resnet(384, (6,  8, 18,  8),  96),  768, 12),
  'RN50x64':  _openai(1024, _resnet(448, (3, 15, 36, 10), 128), 1024, 16),
  #                embed_dim, image: size patch width depth heads, text
  'ViT-B/32':     _openai(512, _vit(224, 32,  768, 12, 12), 512,  8),
  'ViT-B/16':     _openai(512, _vit(224, 16,  768, 12, 12), 512,  8),
  'ViT-L/14':     _openai(768, _vit(224, 14, 1024, 24, 16), 768, 12),
  'ViT-L/14@336': _openai(768, _vit(336, 14, 1024, 24, 16), 768, 12),
  #            embed_dim, image: size patch width depth heads MLP, text
  'ViT-B-32':    _laion( 512, _vit(224, 32,  768, 12, 12),         512, 12,  8),
  'ViT-B-16':    _laion( 512, _vit(224, 16,  768, 12, 12),         512, 12,  8),
  'ViT-L-14':    _laion( 768, _vit(224, 14, 1024, 24, 16),         768, 12, 12),
  'ViT-L-14-336': _laion(768, _vit(336, 14, 1024, 24, 16),         768, 12, 12),
  'ViT-H-14':    _laion(1024, _vit(224, 14, 1280, 32, 16),        1024, 24, 16),
  'ViT-g-14':    _laion(1024, _vit(224, 14, 1408, 40, 16, 4.3637),
                                                                  1024, 24, 16),
  'ViT-bigG-14': _laion(1280, _vit(224, 14, 1664, 48, 16, 4.9231),
                                                                  1280, 32, 20),
  #                                   shape, image size, patch size
  'ViT-B-16-SigLIP':          _siglip('B',      224, 16),
  'ViT-B-16-SigLIP-256':      _siglip('B',      256, 16),
  'ViT-B-16-SigLIP-384':      _siglip('B',      384, 16),
  'ViT-B-16-SigLIP-512':      _siglip('B',      512, 16),
  'ViT-B-16-SigLIP-i18n-256': _siglip('B',      256, 16, vocab_size=250_000),
  'ViT-L-16-SigLIP-256':      _siglip('L',      256, 16),
  'ViT-L-16-SigLIP-384':      _siglip('L',      384, 16),
  'ViT-SO400M-14-SigLIP':     _siglip('SO400M', 224, 14, context_length=16),
  'ViT-SO400M-14-SigLIP-384': _siglip('SO400M', 384, 14),
  'ViT-B-32-SigLIP2-256':     _siglip('B',      256, 32, 2),
  'ViT-B-16-SigLIP2':         _siglip('B',      224, 16, 2),
  'ViT-B-16-SigLIP2-256':     _siglip('B',      256, 16, 2),
  'ViT-B-16-SigLIP2-384':     _siglip('B',      384, 16, 2),
  'ViT-B-16-SigLIP2-512':     _siglip('B',      512, 16, 2),
  'ViT-L-16-SigLIP2-256':     _siglip('L',      256, 16, 2),
  'ViT-L-16-SigLIP2-384':     _siglip('L',      384, 16, 2),
  'ViT-L-16-SigLIP2-512':     _siglip('L',      512, 16, 2),
  'ViT-SO400M-14-SigLIP2':     _siglip('SO400M', 224, 14, 2),
  'ViT-SO400M-14-SigLIP2-378': _siglip('SO400M', 378, 14, 2),
  'ViT-SO400M-16-SigLIP2-256': _siglip('SO400M', 256, 16, 2),
  'ViT-SO400M-16-SigLIP2-384': _siglip('SO400M', 384, 16, 2),
  'ViT-SO400M-16-SigLIP2-512': _siglip('SO400M', 512, 16, 2),
  'ViT-gopt-16-SigLIP2-256':   _siglip('gopt',   256, 16, 2),
  'ViT-gopt-16-SigLIP2-384':   _siglip('gopt',   384, 16, 2),
}
# fmt: on


def find(name: str) -> Preset:
  """Returns the row of a published name, or of another library's for it.

  Raises:
    UsageError: the name is not known, or might be either of two models.
  """
  if name in PRESETS:
    return PRESETS[name]
  from clip_jax.models.preset_names import resolve_name

  alias = resolve_name(name, {row: _summary(row) for row in PRESETS})
  preset = PRESETS[alias.row]
  fields = dict(preset.fields)
  if alias.activation is not None:
    for tower in ('image', 'text'):
      fields[tower] = dict(fields[tower], activation=alias.activation)
  preprocessing = {**preset.preprocessing, **alias.preprocessing}
  return dataclasses.replace(preset, fields=fields, preprocessing=preprocessing)


def name_of(config: CLIPConfig) -> str:
  """Returns the first row with these shapes, or '' if there is none.

  The temperature may be any.
  """
  for name, preset in PRESETS.items():
    row = preset.config
    if (row.image, row.text, row.embed_dim) == (
      config.image,
      config.text,
      config.embed_dim,
    ):
      return name
  return ''


def _summary(row: str) -> str:
  """Returns what a name may leave open: the activation and the image size."""
  fields = PRESETS[row].fields
  return (
    f'{fields["text"]["activation"]}, {fields["image"]["image_size"]} pixels'
  )


def preprocessing_of(name: str) -> Preprocessing:
  """Returns how images become what the model of a published name reads."""
  preset = find(name)
  size = preset.fields['image']['image_size']
  return Preprocessing(image_size=size, **preset.preprocessing)


def resolve(
  preset: str | None, overrides: Mapping[str, Any] | None = None
) -> CLIPConfig:
  """Returns the model of a preset, or of none, with single fields replaced.

  Args:
    preset: a name of `PRESETS`, or None where `overrides` says all.
    overrides: nested like `CLIPConfig.to_dict()`; None stands for "as the
      preset has it".
  Raises:
    UsageError: the name is not in the table, or a field is missing.
  """
  fields = dict(find(preset).fields) if preset else {'image': {}, 'text': {}}
  overrides = _without_none(overrides or {})
  for tower in ('image', 'text'):
    fields[tower] = {**fields[tower], **overrides.pop(tower, {})}
  if not overrides.get('decoder'):
    overrides.pop('decoder', None)
  return CLIPConfig.from_dict({**fields, **overrides})


def _without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns `fields` without those that are None."""
  nested = {
    key: _without_none(value) if isinstance(value, Mapping) else value
    for key, value in fields.items()
  }
  return {key: value for key, value in nested.items() if value is not None}
