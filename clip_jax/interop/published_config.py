"""Finds the layout of published weights, and the config of their model.

A directory has its config beside the weights; a bare weight file is told by its
keys and shapes, and by what a person knows of it.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.errors import FailureError, UsageError
from clip_jax.files import check_fields, read_object
from clip_jax.interop import (
  big_vision,
  hugging_face,
  hugging_face_keys,
  open_clip,
  open_clip_run,
  openai,
  shapes,
)
from clip_jax.interop.layouts import Table
from clip_jax.interop.published_files import (
  OPEN_CLIP_CONFIG,
  Hints,
  is_open_clip,
  refuse_adapter,
)
from clip_jax.interop.weight_files import Tensors
from clip_jax.models import presets
from clip_jax.models.config import CLIPConfig, ResNetConfig


def layout_of(tensors: Tensors) -> str:
  """Returns 'hugging_face', 'open_clip' (OpenAI's keys) or 'big_vision'.

  Raises:
    UsageError: the keys are none of these, or of an adapter.
  """
  infos = tensors.infos
  if any('.lora_' in key for key in infos):
    refuse_adapter(tensors.path)
  for tower in ('vision_model', 'text_model'):
    if f'{tower}.embeddings.position_embedding.weight' in infos:
      return 'hugging_face'
  if {'params/img/pos_embedding', 'params/txt/pos_embedding'} & infos.keys():
    return 'big_vision'
  texts = {'token_embedding.weight', 'text.token_embedding.weight'}
  if texts & infos.keys() or _has_images(tensors):
    return 'open_clip'
  first = ', '.join(list(infos)[:3])
  raise UsageError(
    f'{tensors.path} holds no CLIP model: its keys ({first}, …) are none of '
    "OpenAI's, open_clip's, transformers' or big_vision's."
  )


def _has_images(tensors: Tensors) -> bool:
  """Returns whether there are keys of an image tower in open_clip's layout."""
  return any(key.startswith('visual.') for key in tensors.infos)


def config_of(
  tensors: Tensors, layout: str, hints: Hints
) -> tuple[CLIPConfig, tuple[str, ...]]:
  """Returns the config, and what had to be assumed for it."""
  directory, where = tensors.path.parent, str(tensors.path)
  if layout == 'hugging_face':
    return _of_transformers(tensors, hints), ()
  if layout == 'open_clip' and is_open_clip(directory):
    file, fields = _open_clip_config(directory)
    Hints(preset=hints.preset, heads=hints.heads).refuse(str(file))
    config = open_clip.read_config(fields, str(file))
    # The same as open_clip's `force_quick_gelu`: some configs leave it out.
    config = _activated(config, hints.activation)
    return _with_bias(config, tensors), ()
  if hints.preset:
    config = presets.find(hints.preset).config
    if any(key.startswith('visual.trunk.') for key in tensors.infos):
      config = open_clip.as_computed_there(config)
    _check_openais(tensors, config, hints)
    return _with_bias(_hinted(config, hints), tensors), ()
  if layout == 'big_vision':
    return _hinted(shapes.of_big_vision(tensors.infos, where), hints), ()
  run = open_clip_run.params_of(tensors.path)
  if run is not None:
    return _of_run(tensors, *run, hints)
  return _told_by_shapes(tensors, hints)


def _of_transformers(tensors: Tensors, hints: Hints) -> CLIPConfig:
  """Returns what config.json says, or without one, a published name."""
  where, file = str(tensors.path), tensors.path.parent / 'config.json'
  if file.exists():
    Hints(hints.preset, hints.activation, hints.heads).refuse(
      f"{where} is transformers', whose config.json"
    )
    fields = read_object(file)
    if 'model_type' not in fields and 'vision_cfg' in fields:
      raise FailureError(
        f"{where} has the keys of transformers, and {file} is open_clip's: "
        'they are of two models.'
      )
    return hugging_face.read_config(fields, str(file), tensors.infos)
  if hints.preset:
    return _hinted(presets.find(hints.preset).config, hints)
  raise UsageError(
    f'{where} has the keys of transformers, whose config.json is missing '
    'beside it: fetch it too, or give its published name, as in '
    'preset="openai/clip-vit-base-patch32".'
  )


def _of_run(
  tensors: Tensors, file: Path, params: Mapping[str, str], hints: Hints
) -> tuple[CLIPConfig, tuple[str, ...]]:
  """Returns the model of an open_clip run, which its params.txt names."""
  Hints(activation=hints.activation).refuse(str(file))
  name, where = params['model'], str(tensors.path)
  if any(key.startswith('text.') for key in tensors.infos):
    config = presets.find(name).config
    if any(key.startswith('visual.trunk.') for key in tensors.infos):
      config = open_clip.as_computed_there(config)
    return _hinted(config, hints), ()
  config = shapes.of_openai(tensors.infos, where)
  config = _activated(config, open_clip_run.activation(params))
  config = _hinted(_with_bias(config, tensors), hints)
  if hints.heads or shapes.is_published(config):
    return config, ()
  return config, (
    f'{file} names the model {name!r}, whose config is not known here: '
    f'{_assumed(config)}; heads={config.image.heads},{config.text.heads} '
    'would say so.',
  )


def _assumed(config: CLIPConfig) -> str:
  return f'{config.text.activation} is assumed, and {_assumed_heads(config)}'


def _assumed_heads(config: CLIPConfig) -> str:
  return (
    f'{config.image.heads} heads in the image tower, {config.text.heads} in '
    'the text tower'
  )


def _told_by_shapes(
  tensors: Tensors, hints: Hints
) -> tuple[CLIPConfig, tuple[str, ...]]:
  """Reads a bare state dict; only OpenAI's tell their activation and heads."""
  where = str(tensors.path)
  if any(key.startswith('text.') for key in tensors.infos):
    raise UsageError(
      f'{where} needs its {OPEN_CLIP_CONFIG} beside it, or its published '
      'name, as in preset="ViT-B-16-SigLIP".'
    )
  config = shapes.of_openai(tensors.infos, where)
  config = _with_bias(_hinted(config, hints), tensors)
  if _is_openais(tensors):  # QuickGELU, and heads of 64 dimensions
    return config, ()
  if hints.activation and (hints.heads or shapes.is_published(config)):
    return config, ()
  if hints.activation:
    return config, (
      f'{where} does not say its heads, and comes without {OPEN_CLIP_CONFIG}: '
      f'{_assumed_heads(config)} are assumed; heads= says it.',
    )
  return config, (
    f'{where} does not say its activation and heads, and comes without '
    f'{OPEN_CLIP_CONFIG}: {_assumed(config)}. OpenAI and some of '
    "open_clip's have quick_gelu, most of open_clip's gelu: activation= and "
    'heads= say it.',
  )


def _is_openais(tensors: Tensors) -> bool:
  """Returns whether a file is of OpenAI's, whose models compute QuickGELU."""
  return 'input_resolution' in tensors.infos


def _check_openais(tensors: Tensors, config: CLIPConfig, hints: Hints) -> None:
  """Refuses another library's model of the same shapes for OpenAI's weights."""
  activation = config.text.activation
  if (
    _is_openais(tensors)
    and activation != 'quick_gelu'
    and hints.activation is None
  ):
    raise UsageError(
      f"{tensors.path} is OpenAI's, whose models compute quick_gelu, and "
      f'preset={hints.preset!r} is one with {activation}: leave it out, or '
      'name one of quick_gelu.'
    )


def _with_bias(config: CLIPConfig, tensors: Tensors) -> CLIPConfig:
  """Returns the config, with a logit bias if the weights have one.

  The weights of open_clip's runs with a sigmoid loss do, and no config says so.
  """
  if 'logit_bias' not in tensors.infos or config.initial_logit_bias is not None:
    return config
  return dataclasses.replace(config, **presets.SIGLIP_TEMPERATURE)


def _hinted(config: CLIPConfig, hints: Hints) -> CLIPConfig:
  """Returns the config with what a person knows better."""
  config = _activated(config, hints.activation)
  heads = hints.heads or ()
  if len(heads) > 2:
    raise UsageError(
      f'heads={",".join(map(str, heads))}: give those of the image tower, or '
      'of the image and the text tower.'
    )
  for tower, count in zip(('image', 'text'), heads, strict=False):
    changed = dataclasses.replace(getattr(config, tower), heads=count)
    config = dataclasses.replace(config, **{tower: changed})
  return config


def _activated(config: CLIPConfig, activation: str | None) -> CLIPConfig:
  """Returns the config with another activation in its Transformers."""
  if activation is None:
    return config
  image = config.image
  if not isinstance(image, ResNetConfig):
    image = dataclasses.replace(image, activation=activation)
  text = dataclasses.replace(config.text, activation=activation)
  return dataclasses.replace(config, image=image, text=text)


def table_of(layout: str, config: CLIPConfig, tensors: Tensors) -> Table:
  """Returns the keys that a config of that layout has.

  Raises:
    FailureError: the config is of another family than the weights.
  """
  if layout == 'hugging_face':
    siglip = 'vision_model.head.probe' in tensors.infos
    if 'vision_model.embeddings.position_embedding.weight' in tensors.infos:
      _check_family(tensors, siglip, config.initial_logit_bias is not None)
    native = hugging_face_keys.is_native(tensors.infos)
    return hugging_face_keys.table(config, native)
  variant = openai.variant_of(tensors.infos)
  pooling = getattr(config.image, 'pooling', None)
  if layout == 'big_vision' or _has_images(tensors):
    _check_family(
      tensors, layout == 'big_vision' or variant.trunk, pooling == 'attention'
    )
  if layout == 'big_vision':
    return big_vision.table(config, big_vision.stacked_towers(tensors.infos))
  return openai.table(config, variant)


def _check_family(tensors: Tensors, theirs: bool, ours: bool) -> None:
  """Refuses weights of a SigLIP with a config of a CLIP, and the reverse."""
  if theirs != ours:
    names = {True: 'SigLIP', False: 'CLIP'}
    raise FailureError(
      f'{tensors.path} has the keys of a {names[theirs]}, and its config or '
      f'preset is of a {names[ours]}: they are of two models.'
    )


def _open_clip_config(directory: Path) -> tuple[Path, dict[str, Any]]:
  file = directory / OPEN_CLIP_CONFIG
  if file.exists():
    fields = check_fields(file, read_object(file), {}, {'model_cfg': dict})
    return file, fields.get('model_cfg', fields)
  file = directory / 'config.json'
  return file, read_object(file)
