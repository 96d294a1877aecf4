"""Reads and writes transformers' `config.json` of CLIP and SigLIP models.

They are CLIPModel, SiglipModel, and Siglip2Model, which is SigLIP 2 of native
aspect ratio (NaFlex).

What a file leaves out has transformers' default. Fields that concern training
alone (initializers, dropout of a model in use) are not read.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

from clip_jax.errors import FailureError, UsageError
from clip_jax.interop.timm import side_of
from clip_jax.models.config import (
  CLIPConfig,
  TextTransformerConfig,
  VisionTransformerConfig,
  mlp_ratio,
)
from clip_jax.models.presets import (
  SIGLIP_IMAGE,
  SIGLIP_TEMPERATURE,
  SIGLIP_TEXT,
)

_ACTIVATIONS = {
  'quick_gelu': 'quick_gelu',
  'gelu': 'gelu',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_new': 'gelu_tanh',
}
_CLIP_TEXT = dict(
  vocab_size=49_408,
  hidden_size=512,
  intermediate_size=2048,
  num_hidden_layers=12,
  num_attention_heads=8,
  max_position_embeddings=77,
  hidden_act='quick_gelu',
  layer_norm_eps=1e-5,
  eos_token_id=49_407,
)
_CLIP_VISION = dict(
  hidden_size=768,
  intermediate_size=3072,
  num_hidden_layers=12,
  num_attention_heads=12,
  num_channels=3,
  image_size=224,
  patch_size=32,
  hidden_act='quick_gelu',
  layer_norm_eps=1e-5,
)
_SIGLIP_TEXT = dict(
  vocab_size=32_000,
  hidden_size=768,
  intermediate_size=3072,
  num_hidden_layers=12,
  num_attention_heads=12,
  max_position_embeddings=64,
  hidden_act='gelu_pytorch_tanh',
  layer_norm_eps=1e-6,
  projection_size=None,  # the image tower's width
)
_SIGLIP_VISION = dict(
  _CLIP_VISION,
  patch_size=16,
  hidden_act='gelu_pytorch_tanh',
  layer_norm_eps=1e-6,
  vision_use_head=True,
)
_LEGACY_EOS = 2  # stands for "the highest id" in configs of before 2023
_SIGLIP_EOS = 1


def read_config(
  config: Mapping[str, Any],
  where: str,
  keys: Collection[str] = ('vision_model', 'text_model'),
) -> CLIPConfig:
  """Returns a model of transformers' as ours.

  Args:
    config: the content of its config.json.
    where: the file, for the errors.
    keys: of the weights. Where they are one tower's, what the result says of
      the other means nothing.
  Raises:
    UsageError: another kind of model, or an option that is not supported.
    FailureError: a field has a value that cannot be.
  """
  kind = str(config.get('model_type'))
  family, _, tower = kind.partition('_')
  read = {
    'clip': _read_clip,
    'siglip': _read_siglip,
    'siglip2': _read_siglip2,
  }.get(family)
  if read is None or tower not in ('', 'vision_model', 'text_model'):
    raise UsageError(
      f'{where} is of model_type {config.get("model_type")!r}: clip, siglip '
      'and siglip2 are read, and the towers of them alone.'
    )
  if tower:
    config = {
      **config,
      f'{tower.removesuffix("_model")}_config': dict(config),
    }
  try:
    return read(config, keys)
  except UsageError as error:
    raise UsageError(f'{where}: {error}') from error
  except (LookupError, TypeError, ValueError, ArithmeticError) as error:
    raise FailureError(
      f'{where} is no config of a {kind} model: {error!r}.'
    ) from error


def _read_clip(config: Mapping[str, Any], keys: Collection[str]) -> CLIPConfig:
  vision = _fields(config, 'vision_config', _CLIP_VISION)
  text = _fields(config, 'text_config', _CLIP_TEXT)
  eos = text['eos_token_id']
  highest = eos == _LEGACY_EOS
  image_tower = VisionTransformerConfig(
    **_tower(vision),
    **_pixels(vision),
    projection=_projection('visual_projection', 'vision_model', keys),
  )
  text_tower = TextTransformerConfig(
    **_tower(text),
    **_words(text),
    end_token=text['vocab_size'] - 1 if highest else eos,
    pooling='highest' if highest else 'end',
    projection=_projection('text_projection', 'text_model', keys),
  )
  embed_dim = config.get('projection_dim') or 512
  # In CLIPVisionModel and CLIPTextModel the pooled vector is the feature. The
  # numbers of an absent tower need not fit.
  if image_tower.projection == 'none':
    embed_dim = image_tower.width
  elif text_tower.projection == 'none':
    embed_dim = text_tower.width
  return CLIPConfig(
    embed_dim=embed_dim,
    image=image_tower,
    text=text_tower,
    initial_logit_scale=math.exp(config.get('logit_scale_init_value', 2.6592)),
  )


def _projection(name: str, tower: str, keys: Collection[str]) -> str:
  """Returns 'none' for a tower alone without its projection, else 'linear'."""
  towers = {key.split('.')[0] for key in keys} & {'vision_model', 'text_model'}
  alone = towers == {tower}
  return 'none' if alone and f'{name}.weight' not in keys else 'linear'


def _read_siglip(
  config: Mapping[str, Any], keys: Collection[str]
) -> CLIPConfig:
  vision = _fields(config, 'vision_config', _SIGLIP_VISION)
  text = _fields(config, 'text_config', _SIGLIP_TEXT)
  if not vision['vision_use_head']:
    raise UsageError('vision_use_head=false leaves no pooled feature.')
  towers = {key.split('.')[0] for key in keys}
  width = vision['hidden_size']
  # transformers takes the text tower's own width here, which its published
  # configs mean only where both are the same.
  projected = text['projection_size'] or text['hidden_size']
  if 'vision_model' not in towers:  # its config is not used
    vision = {**_SIGLIP_VISION, 'hidden_size': projected}
    vision['num_attention_heads'] = 1
    width = projected
  elif 'text_model' not in towers:
    projected = width
  if projected != width:
    raise UsageError(
      f'text_config.projection_size={projected} is not '
      f'vision_config.hidden_size={width}.'
    )
  return CLIPConfig(
    embed_dim=width,
    image=VisionTransformerConfig(
      **_tower(vision), **_pixels(vision), **SIGLIP_IMAGE
    ),
    text=TextTransformerConfig(**_tower(text), **_words(text), **SIGLIP_TEXT),
    **SIGLIP_TEMPERATURE,
  )


def _read_siglip2(
  config: Mapping[str, Any], keys: Collection[str]
) -> CLIPConfig:
  """Returns a SigLIP whose positions are those of a square of `num_patches`."""
  defaults = dict(_SIGLIP_VISION, num_patches=256)
  vision = _fields(config, 'vision_config', defaults)
  side = math.isqrt(vision['num_patches'])
  if side**2 != vision['num_patches']:
    raise UsageError(
      f'vision_config.num_patches={vision["num_patches"]} is no square.'
    )
  vision['image_size'] = side * vision['patch_size']
  return _read_siglip({**config, 'vision_config': vision}, keys)


def _fields(
  config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns a tower's fields; the older 'NAME_dict' wins over 'NAME'."""
  fields = dict(defaults, **(config.get(name) or {}))
  if config.get(f'{name}_dict'):
    fields |= {**defaults, **config[f'{name}_dict']}
  return fields


def _tower(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what both kinds of tower call the same."""
  activation, width = fields['hidden_act'], fields['hidden_size']
  if activation not in _ACTIVATIONS:
    raise UsageError(
      f'hidden_act={activation!r} is not supported: '
      f'{", ".join(_ACTIVATIONS)} are.'
    )
  return dict(
    width=width,
    depth=fields['num_hidden_layers'],
    heads=fields['num_attention_heads'],
    mlp_ratio=mlp_ratio(fields['intermediate_size'], width),
    activation=_ACTIVATIONS[activation],
    norm_eps=fields['layer_norm_eps'],
  )


def _pixels(fields: Mapping[str, Any]) -> dict[str, Any]:
  if fields['num_channels'] != 3:
    raise UsageError(f'num_channels={fields["num_channels"]}: 3 is supported.')
  return {
    name: side_of(name, fields[name]) for name in ('image_size', 'patch_size')
  }


def _words(fields: Mapping[str, Any]) -> dict[str, Any]:
  return dict(
    vocab_size=fields['vocab_size'],
    context_length=fields['max_position_embeddings'],
  )


def write_config(config: CLIPConfig, native: bool = False) -> dict[str, Any]:
  """Returns the inverse of `read_config`, the content of a config.json.

  Args:
    native: whether images keep their aspect, as those of Siglip2Model.
  Raises:
    UsageError: transformers cannot express the model; the message says what.
  """
  sigmoid = config.initial_logit_bias is not None
  kind = 'siglip' if sigmoid else 'clip'
  image, text = config.image, config.text
  if not isinstance(image, VisionTransformerConfig):
    raise UsageError(
      'transformers has no ResNet in its CLIP: convert with --to=open_clip.'
    )
  _check(kind, image, text)
  size = {'image_size': image.image_size}
  if native:
    if not sigmoid:
      raise UsageError(
        'transformers has native aspect (NaFlex) with a logit bias only, as of '
        'SigLIP 2.'
      )
    kind, size = 'siglip2', {'num_patches': image.patches}
  vision_config = {
    'model_type': f'{kind}_vision_model',
    **size,
    'patch_size': image.patch_size,
    **_write_tower(image),
  }
  text_config = {
    'model_type': f'{kind}_text_model',
    'vocab_size': text.vocab_size,
    'max_position_embeddings': text.context_length,
    # transformers' defaults are CLIP's ids, whatever the vocabulary.
    'bos_token_id': None,
    'pad_token_id': None,
    **_write_tower(text),
  }
  result: dict[str, Any] = {'model_type': kind}
  if sigmoid:
    result['architectures'] = ['Siglip2Model' if native else 'SiglipModel']
    text_config['projection_size'] = config.embed_dim
    text_config['eos_token_id'] = text_config['pad_token_id'] = _SIGLIP_EOS
  else:
    result['architectures'] = ['CLIPModel']
    result['projection_dim'] = config.embed_dim
    result['logit_scale_init_value'] = math.log(config.initial_logit_scale)
    text_config['projection_dim'] = config.embed_dim
    vision_config['projection_dim'] = config.embed_dim
    text_config['eos_token_id'] = (
      _LEGACY_EOS if text.pooling == 'highest' else text.end_token
    )
  return {**result, 'text_config': text_config, 'vision_config': vision_config}


def _check(
  kind: str,
  image: VisionTransformerConfig,
  text: TextTransformerConfig,
) -> None:
  """Refuses what the class computes otherwise."""
  if kind == 'clip':
    wanted = {
      'image.pooling': (image.pooling, ('class_token',)),
      'image.patch_bias': (image.patch_bias, (False,)),
      'image.pre_norm': (image.pre_norm, (True,)),
      'image.projection': (image.projection, ('linear',)),
      'text.causal': (text.causal, (True,)),
      'text.pooling': (text.pooling, ('end', 'highest')),
      'text.projection': (text.projection, ('linear',)),
    }
  else:
    wanted = {
      'image.pooling': (image.pooling, ('attention',)),
      'image.class_token': (image.class_token, (False,)),
      'image.patch_bias': (image.patch_bias, (True,)),
      'image.pre_norm': (image.pre_norm, (False,)),
      'image.norm_after_pooling': (image.norm_after_pooling, (False,)),
      'image.projection': (image.projection, ('none',)),
      'text.causal': (text.causal, (False,)),
      'text.pooling': (text.pooling, ('last',)),
      'text.projection': (text.projection, ('affine',)),
    }
  wrong = [
    f'{name}={value!r}'
    for name, (value, possible) in wanted.items()
    if value not in possible
  ]
  if text.pooling == 'end' and text.end_token == _LEGACY_EOS:
    wrong.append('text.end_token=2, which it takes for "the highest id"')
  if wrong:
    raise UsageError(
      f'a {kind} model of transformers cannot express {", ".join(wrong)}: '
      'try --to=open_clip.'
    )


def _write_tower(
  tower: VisionTransformerConfig | TextTransformerConfig,
) -> dict[str, Any]:
  names = {'gelu_tanh': 'gelu_pytorch_tanh'}
  return {
    'hidden_size': tower.width,
    'intermediate_size': int(tower.width * tower.mlp_ratio),
    'num_hidden_layers': tower.depth,
    'num_attention_heads': tower.heads,
    'hidden_act': names.get(tower.activation, tower.activation),
    'layer_norm_eps': tower.norm_eps,
  }
