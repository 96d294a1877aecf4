"""Published models, read from whatever their authors shipped.

A directory has its config beside the weights; a bare weight file is told by
its keys and shapes. What is computed then is what the authors' own code does:
activation, pooling, tokenizer and preprocessing come from the same files.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax import tokenizers
from clip_jax.data.images import Preprocessing
from clip_jax.errors import UsageError
from clip_jax.files import read_object
from clip_jax.interop import (
  big_vision,
  hugging_face,
  layouts,
  open_clip,
  openai,
  preprocessors,
  shapes,
)
from clip_jax.interop.layouts import Table
from clip_jax.interop.tensors import Tensors, open_tensors
from clip_jax.models import presets
from clip_jax.models.config import CLIPConfig, ResNetConfig
from clip_jax.models.description import Description

OPEN_CLIP_CONFIG = 'open_clip_config.json'
_OPEN_CLIP_WEIGHTS = (
  'open_clip_model.safetensors',
  'open_clip_model.safetensors.index.json',
  'open_clip_pytorch_model.safetensors',
  'open_clip_pytorch_model.safetensors.index.json',
  'open_clip_pytorch_model.bin',
  'open_clip_pytorch_model.bin.index.json',
)
_HUGGING_FACE_WEIGHTS = (
  'model.safetensors',
  'model.safetensors.index.json',
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
)
_CLIP_VOCABULARY = 49_408


@dataclasses.dataclass(frozen=True)
class Foreign:
  """A published model.

  Attributes:
    description: of the model.
    variables: collections by name of numpy arrays.
    layout: 'hugging_face', 'open_clip' (OpenAI's keys) or 'big_vision'.
    positions: how its library interpolates positions (models/positions.py).
    table: the layout of its keys, to write them again.
    constants: what the file has besides that follows from the config.
    guesses: what the files leave open and was assumed, as sentences.
  """

  description: Description
  variables: dict[str, Any]
  layout: str
  positions: str
  table: Table
  constants: dict[str, np.ndarray]
  guesses: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Hints:
  """What a person knows of weights that their files do not say.

  Attributes:
    preset: of a bare weight file, the published name of its model.
    activation: of the Transformers of a bare weight file, or of an open_clip
      directory whose config leaves it out.
  """

  preset: str | None = None
  activation: str | None = None

  def refuse(self, teller: str) -> None:
    """For what says all of itself: a hint would be ignored.

    Raises:
      UsageError: there is one.
    """
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value is not None:
        raise UsageError(
          f'{field.name}={value!r} is for a bare weight file: {teller} says '
          'what it is.'
        )


NO_HINTS = Hints()


def read_foreign(
  path: str | os.PathLike,
  *,
  hints: Hints = NO_HINTS,
  dtype: np.dtype | None = None,
) -> Foreign:
  """A directory of transformers or open_clip, or a weight file.

  Args:
    path: a directory with a config and weights, or a weight file of OpenAI's,
      open_clip's or big_vision's.
    hints: for a weight file without a config.
    dtype: of floating-point arrays; None is the file's own.
  Raises:
    UsageError: it is no model that can be read, or asks for what is not
      supported.
    FailureError: it is damaged, or its keys are not those of its config.
  """
  weights = weights_in(Path(path))
  with open_tensors(weights) as tensors:
    layout = _layout_of(tensors)
    config, guesses = _config(tensors, layout, hints)
    table = _table(layout, config, tensors.infos)
    variables, constants = layouts.read(tensors, table, config, dtype)
  directory = weights.parent
  return Foreign(
    description=Description(
      model=config,
      tokenizer=_tokenizer(directory, layout, config),
      preprocessing=_preprocessing(directory, layout, config, hints.preset),
    ),
    variables=variables,
    layout=layout,
    positions='transformers' if layout == 'hugging_face' else 'open_clip',
    table=table,
    constants=constants,
    guesses=guesses,
  )


def weights_in(path: Path) -> Path:
  """The weight file of a directory; a file is itself.

  Raises:
    UsageError: there is none.
  """
  if not path.is_dir():
    return path
  first = _OPEN_CLIP_WEIGHTS if is_open_clip(path) else ()
  for name in (*first, *_HUGGING_FACE_WEIGHTS):
    if (path / name).exists():
      return path / name
  with open_tensors(path) as tensors:  # says what is missing
    return tensors.path


def is_open_clip(path: Path) -> bool:
  """Whether a directory has a model config of open_clip's."""
  return (path / OPEN_CLIP_CONFIG).exists() or 'vision_cfg' in read_object(
    path / 'config.json'
  )


def is_hugging_face(path: Path) -> bool:
  """Whether a directory has a config of transformers'."""
  return 'model_type' in read_object(path / 'config.json')


def _layout_of(tensors: Tensors) -> str:
  infos = tensors.infos
  if 'vision_model.embeddings.position_embedding.weight' in infos:
    return 'hugging_face'
  if 'params/img/pos_embedding' in infos:
    return 'big_vision'
  if any(key.startswith('visual.') for key in infos):
    return 'open_clip'
  first = ', '.join(list(infos)[:3])
  raise UsageError(
    f'{tensors.path} holds no CLIP model: its keys ({first}, …) are none of '
    "OpenAI's, open_clip's, transformers' or big_vision's."
  )


def _config(
  tensors: Tensors, layout: str, hints: Hints
) -> tuple[CLIPConfig, tuple[str, ...]]:
  """The config, and what had to be assumed for it."""
  directory, where = tensors.path.parent, str(tensors.path)
  if layout == 'hugging_face':
    hints.refuse(f"{where} is transformers', whose config.json")
    file = directory / 'config.json'
    if not file.exists():
      raise UsageError(
        f'{where} has the keys of transformers, whose config.json is missing '
        'beside it.'
      )
    return hugging_face.read_config(read_object(file), str(file)), ()
  if layout == 'open_clip' and is_open_clip(directory):
    file, fields = _open_clip_config(directory)
    Hints(preset=hints.preset).refuse(str(file))
    # As open_clip's own `force_quick_gelu`: some configs leave it out.
    config = open_clip.read_config(fields, str(file))
    return _activated(config, hints.activation), ()
  if hints.preset:
    config = presets.find(hints.preset).config
    if any(key.startswith('visual.trunk.') for key in tensors.infos):
      config = open_clip.as_computed_there(config)
    return _activated(config, hints.activation), ()
  if layout == 'big_vision':
    config = shapes.of_big_vision(tensors.infos, where)
    return _activated(config, hints.activation), ()
  return _told_by_shapes(tensors, hints)


def _told_by_shapes(
  tensors: Tensors, hints: Hints
) -> tuple[CLIPConfig, tuple[str, ...]]:
  """A bare state dict. Only the containers of OpenAI say their activation."""
  where = str(tensors.path)
  if any(key.startswith('text.') for key in tensors.infos):
    raise UsageError(
      f'{where} needs its {OPEN_CLIP_CONFIG} beside it, or its published '
      'name, as in preset="ViT-B-16-SigLIP".'
    )
  config = shapes.of_openai(tensors.infos, where)
  config = _activated(config, hints.activation)
  openais = 'input_resolution' in tensors.infos
  if hints.activation or openais:
    return config, ()
  return config, (
    f'{where} does not say its activation and heads, and comes without '
    f'{OPEN_CLIP_CONFIG}: {config.text.activation} is assumed, and '
    f'{config.image.heads} heads in the image tower. OpenAI and some of '
    "open_clip's have quick_gelu, most of open_clip's gelu.",
  )


def _activated(config: CLIPConfig, activation: str | None) -> CLIPConfig:
  """`config` with another activation in its Transformers."""
  if activation is None:
    return config
  image = config.image
  if not isinstance(image, ResNetConfig):
    image = dataclasses.replace(image, activation=activation)
  text = dataclasses.replace(config.text, activation=activation)
  return dataclasses.replace(config, image=image, text=text)


def _table(layout: str, config: CLIPConfig, infos: Mapping[str, Any]) -> Table:
  if layout == 'hugging_face':
    return hugging_face.table(config)
  if layout == 'big_vision':
    return big_vision.table(config, big_vision.stacked_towers(infos))
  return openai.table(config, openai.variant_of(infos))


def _tokenizer(
  directory: Path, layout: str, config: CLIPConfig
) -> dict[str, Any] | None:
  """A description of the tokenizer, or None where no file says which."""
  length = config.text.context_length
  found = None
  if layout != 'big_vision' and (
    is_open_clip(directory) or is_hugging_face(directory)
  ):
    found = tokenizers.from_directory(directory, length)
  if found is None and config.text.vocab_size == _CLIP_VOCABULARY:
    found = tokenizers.load('clip', length)
  return None if found is None else found.describe()


def _preprocessing(
  directory: Path, layout: str, config: CLIPConfig, preset: str | None
) -> Preprocessing:
  size = config.image.image_size
  if layout == 'hugging_face':
    found = preprocessors.read_hugging_face_directory(directory)
    if found is None:
      family = 'CLIP' if config.initial_logit_bias is None else 'Siglip'
      found = preprocessors.read_hugging_face(
        {'image_processor_type': f'{family}ImageProcessor'}
      )
    return dataclasses.replace(found, image_size=size)
  if layout == 'big_vision':
    # Bicubic and antialiased as in transformers and open_clip; big_vision's
    # own is TensorFlow's bilinear resize, which Pillow does not have. All
    # SigLIPs are alike in this.
    found = presets.preprocessing_of(preset or 'ViT-B-16-SigLIP')
    return dataclasses.replace(found, image_size=size)
  fields = read_object(directory / OPEN_CLIP_CONFIG).get('preprocess_cfg')
  if preset and not fields:
    found = presets.preprocessing_of(preset)
    return dataclasses.replace(found, image_size=size)
  return preprocessors.read_open_clip(fields or {}, size)


def _open_clip_config(directory: Path) -> tuple[Path, dict[str, Any]]:
  file = directory / OPEN_CLIP_CONFIG
  if file.exists():
    fields = read_object(file)
    return file, fields.get('model_cfg', fields)
  file = directory / 'config.json'
  return file, read_object(file)
