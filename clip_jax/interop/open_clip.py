"""Reads and writes open_clip's model configs, `open_clip_config.json`.

What open_clip has and this project does not is refused by name, so that no
option is silently ignored.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from clip_jax.errors import FailureError, UsageError
from clip_jax.interop import timm
from clip_jax.interop.openai import Variant
from clip_jax.interop.timm import side_of
from clip_jax.models.config import (
  CLIPConfig,
  ResNetConfig,
  TextTransformerConfig,
  VisionTransformerConfig,
)

# Options at these values change nothing; the rest of a config is read below.
_IDLE: Mapping[str, tuple[Any, ...]] = {
  'patch_dropout': (),  # of training alone: () admits any value
  'timm_drop': (),
  'timm_drop_path': (),
  'timm_model_pretrained': (),
  'output_tokens': (),
  'attn_pooler_queries': (),
  'attn_pooler_heads': (),
  'hf_tokenizer_name': (),  # the tokenizer's: see clip_jax/tokenizers
  'tokenizer_mode': (),
  'tokenizer_kwargs': (),
  'pad_id': (),
  'hf_model_pretrained': (),
  'hf_proj_type': (),
  'hf_pooler_type': (),
  'ls_init_value': (None,),
  'attentional_pool': (False, None),
  'pos_embed_type': ('learnable',),
  'embed_cls': (False,),
  'block_type': (None, 'default'),
  'qk_norm': (False,),
  'scaled_cosine_attn': (False,),
  'scale_heads': (False,),
  'scale_attn_inner': (False,),
  'scale_attn': (False,),
  'scale_fc': (False,),
  'hf_model_name': (None, ''),
  'timm_proj_bias': (False,),
}
_SIGLIP_2_VOCABULARY = 256_000
_TEXT_POOLING = {'argmax': 'highest', 'eos': 'end', 'last': 'last'}


def read_config(config: Mapping[str, Any], where: str) -> CLIPConfig:
  """Returns a model config of open_clip's as ours.

  Args:
    config: the content of one of its model config files, or 'model_cfg' of
      an open_clip_config.json.
    where: the file, for the errors.
  Raises:
    UsageError: an option is not supported.
    FailureError: it is no model config.
  """
  try:
    rest = dict(config)
    image, text = dict(rest.pop('vision_cfg')), dict(rest.pop('text_cfg'))
    embed_dim = rest.pop('embed_dim')
    quick = rest.pop('quick_gelu', False)
    bias = rest.pop('init_logit_bias', None)
    scale = rest.pop('init_logit_scale', None)
    rest.pop('custom_text', None)
    result = CLIPConfig(
      embed_dim=embed_dim,
      image=_image(image, quick),
      text=_text(text, quick),
      initial_logit_bias=None if bias is None else float(bias),
      initial_logit_scale=_initial_scale(scale, bias is not None),
    )
  except (
    KeyError,
    TypeError,
    AttributeError,
    ValueError,
    ArithmeticError,
  ) as error:
    if isinstance(error, UsageError):
      raise UsageError(f'{where}: {error}') from error
    raise FailureError(
      f"{where} is no model config of open_clip's: {error!r}."
    ) from error
  left = {
    f'{part}{key}': value
    for part, fields in (
      ('', rest),
      ('vision_cfg.', image),
      ('text_cfg.', text),
    )
    for key, value in fields.items()
    if key not in _IDLE or (_IDLE[key] and value not in _IDLE[key])
  }
  if left:
    unsupported = ', '.join(f'{key}={value!r}' for key, value in left.items())
    raise UsageError(f'{where} asks for what is not supported: {unsupported}.')
  return result


def _initial_scale(logarithm: float | int | None, sigmoid: bool) -> float:
  """Returns 1 / temperature at the start of training."""
  if logarithm is not None:
    return math.exp(logarithm)
  return 10.0 if sigmoid else 1 / 0.07


def _image(
  fields: dict[str, Any], quick: bool
) -> VisionTransformerConfig | ResNetConfig:
  """Returns the image tower; takes the fields that it reads out of `fields`."""
  if fields.get('timm_model_name'):
    return timm.read_tower(fields)
  size = side_of('image_size', fields.pop('image_size', 224))
  width, layers = fields.pop('width', 768), fields.pop('layers', 12)
  head_width = fields.pop('head_width', 64)
  patch_size = fields.pop('patch_size', 16)
  if isinstance(layers, list | tuple):
    return ResNetConfig(size, tuple(layers), width, width * 32 // head_width)
  return VisionTransformerConfig(
    image_size=size,
    patch_size=side_of('patch_size', patch_size),
    width=width,
    depth=layers,
    heads=width // head_width,
    mlp_ratio=fields.pop('mlp_ratio', 4.0),
    activation=_activation(fields, quick),
    pooling=_choice(
      fields, 'pool_type', 'tok', {'tok': 'class_token', 'avg': 'average'}
    ),
    pre_norm=not fields.pop('no_ln_pre', False),
    norm_after_pooling=fields.pop('final_ln_after_pool', False),
    norm_eps=_eps(fields),
  )


def _text(fields: dict[str, Any], quick: bool) -> TextTransformerConfig:
  """Returns the text tower; takes the fields that it reads out of `fields`."""
  if fields.get('hf_model_name'):
    raise UsageError(
      f'a text tower of transformers (hf_model_name='
      f'{fields["hf_model_name"]!r}) is not supported.'
    )
  vocab_size = fields.pop('vocab_size', 49_408)
  pooling = _choice(fields, 'pool_type', 'argmax', _TEXT_POOLING)
  eos = fields.pop('eos_id', 2)
  bias = fields.pop('proj_bias', False)
  projection = _choice(
    fields,
    'proj_type',
    'linear',
    {'linear': 'affine' if bias else 'linear', 'none': 'none'},
  )
  fields.pop('final_ln_after_pool', None)  # the same, where one row is pooled
  return TextTransformerConfig(
    vocab_size=vocab_size,
    context_length=fields.pop('context_length', 77),
    end_token=eos if pooling == 'end' else vocab_size - 1,
    width=fields.pop('width', 512),
    depth=fields.pop('layers', 12),
    heads=fields.pop('heads', 8),
    mlp_ratio=fields.pop('mlp_ratio', 4.0),
    activation=_activation(fields, quick),
    causal=not fields.pop('no_causal_mask', False),
    pooling=pooling,
    norm_eps=_eps(fields),
    projection=projection,
  )


def _activation(fields: dict[str, Any], quick: bool) -> str:
  options = fields.pop('act_kwargs', None) or {}
  if options not in ({}, {'approximate': 'tanh'}, {'approximate': 'none'}):
    raise UsageError(f'act_kwargs={options!r} is not supported.')
  if quick:
    return 'quick_gelu'
  return 'gelu_tanh' if options.get('approximate') == 'tanh' else 'gelu'


def _eps(fields: dict[str, Any]) -> float:
  options = dict(fields.pop('norm_kwargs', None) or {})
  eps = float(options.pop('eps', 1e-5))
  if options:
    raise UsageError(f'norm_kwargs={options!r} is not supported.')
  return eps


def _choice(
  fields: dict[str, Any], name: str, default: str, known: Mapping[str, str]
) -> str:
  value = fields.pop(name, default)
  if value not in known:
    raise UsageError(
      f'{name}={value!r} is not supported: {", ".join(known)} are.'
    )
  return known[value]


def write_config(config: CLIPConfig) -> dict[str, Any]:
  """Returns the inverse of `read_config`: what 'model_cfg' holds.

  Raises:
    UsageError: open_clip cannot express the model; the message says what.
  """
  image, text = config.image, config.text
  fields: dict[str, Any] = {'embed_dim': config.embed_dim}
  if config.initial_logit_bias is not None:
    fields['init_logit_bias'] = config.initial_logit_bias
  if 'quick_gelu' in (text.activation, getattr(image, 'activation', None)):
    fields['quick_gelu'] = True
  if isinstance(image, ResNetConfig):
    fields['vision_cfg'] = _write_resnet(image)
  elif image.pooling == 'attention':
    fields['custom_text'] = True
    fields['vision_cfg'] = timm.write_tower(image)
  else:
    fields['vision_cfg'] = _write_vit(image, text.activation)
  fields['text_cfg'] = _write_text(text)
  return fields


def as_computed_there(config: CLIPConfig) -> CLIPConfig:
  """Returns a published SigLIP with the activations that open_clip uses.

  Its authors' code has tanh's GELU everywhere. open_clip has what timm gives
  the image tower of that size, and in the text tower the exact GELU for
  SigLIP's vocabulary, tanh's for SigLIP 2's.
  """
  image, text = config.image, config.text
  assert isinstance(image, VisionTransformerConfig)
  second = text.vocab_size == _SIGLIP_2_VOCABULARY
  activation = 'gelu_tanh' if second else 'gelu'
  return dataclasses.replace(
    config,
    image=timm.with_its_activation(image),
    text=dataclasses.replace(text, activation=activation),
  )


def variant_of_config(config: CLIPConfig) -> Variant:
  """Returns the keys of the model that open_clip makes of `write_config`."""
  if getattr(config.image, 'pooling', '') == 'attention':
    return Variant(text_prefix='text.', trunk=True)
  return Variant()


def _write_resnet(image: ResNetConfig) -> dict[str, Any]:
  return {
    'image_size': image.image_size,
    'layers': list(image.layers),
    'width': image.width,
    'head_width': image.pooled_width // image.heads,
    'patch_size': None,
  }


def _write_vit(
  image: VisionTransformerConfig, text_activation: str
) -> dict[str, Any]:
  impossible = [
    feature
    for feature, applies in (
      ('no class token', not image.class_token),
      ('a bias of the patch embedding', image.patch_bias),
      (f"projection={image.projection!r}", image.projection != 'linear'),
      (
        f'the activations {image.activation} and {text_activation}',
        (image.activation == 'quick_gelu') != (text_activation == 'quick_gelu'),
      ),
    )
    if applies
  ]  # fmt: skip
  if impossible:
    raise UsageError(
      f'open_clip cannot express this image tower: {", ".join(impossible)}.'
    )
  fields = {
    'image_size': image.image_size,
    'patch_size': image.patch_size,
    'width': image.width,
    'layers': image.depth,
    'head_width': image.width // image.heads,
    'mlp_ratio': image.mlp_ratio,
    **_write_options(image),
  }
  if image.pooling == 'average':
    fields['pool_type'] = 'avg'
  if not image.pre_norm:
    fields['no_ln_pre'] = True
  if image.norm_after_pooling:
    fields['final_ln_after_pool'] = True
  return fields


def _write_text(text: TextTransformerConfig) -> dict[str, Any]:
  if text.projection == 'mlp':  # its own has no biases
    raise UsageError(
      "open_clip cannot express this text tower: projection='mlp'."
    )
  back = {ours: theirs for theirs, ours in _TEXT_POOLING.items()}
  fields = {
    'context_length': text.context_length,
    'vocab_size': text.vocab_size,
    'width': text.width,
    'heads': text.heads,
    'layers': text.depth,
    'mlp_ratio': text.mlp_ratio,
    **_write_options(text),
  }
  if text.pooling != 'highest':
    fields['pool_type'] = back[text.pooling]
  if text.pooling == 'end':
    fields['eos_id'] = text.end_token
  if not text.causal:
    fields['no_causal_mask'] = True
  if text.projection == 'affine':
    fields['proj_bias'] = True
  if text.projection == 'none':
    fields['proj_type'] = 'none'
  return fields


def _write_options(
  tower: VisionTransformerConfig | TextTransformerConfig,
) -> dict[str, Any]:
  options: dict[str, Any] = {}
  if tower.activation == 'gelu_tanh':
    options['act_kwargs'] = {'approximate': 'tanh'}
  if tower.norm_eps != 1e-5:
    options['norm_kwargs'] = {'eps': tower.norm_eps}
  return options
