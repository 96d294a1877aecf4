"""Reads published models from whatever their authors shipped.

A directory has its config beside the weights; a bare weight file is told by
its keys and shapes. What is computed then is what the authors' own code does:
activation, pooling, tokenizer and preprocessing come from the same files.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax import tokenizers
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.files import read_object
from clip_jax.interop import (
  hugging_face_keys,
  layouts,
  open_clip_run,
  preprocessors,
)
from clip_jax.interop.layouts import Table
from clip_jax.interop.published_config import (
  config_of,
  layout_of,
  table_of,
)
from clip_jax.interop.published_files import (
  ADAPTER,
  NO_HINTS,
  OPEN_CLIP_CONFIG,
  Hints,
  is_hugging_face,
  is_open_clip,
)
from clip_jax.interop.weight_files import open_tensors
from clip_jax.models import presets
from clip_jax.models.config import CLIPConfig
from clip_jax.models.description import (
  OTHER_TOWER,
  WITH_ARTICLE,
  Description,
)

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
class PublishedModel:
  """A published model.

  Attributes:
    description: of the model.
    variables: collections by name of numpy arrays.
    layout: 'hugging_face', 'open_clip' (OpenAI's keys) or 'big_vision'.
    positions: how its library interpolates positions (models/positions.py).
    table: the layout of its keys, to write them again.
    constants: what the file has besides that follows from the config.
    guesses: what the files leave open and was assumed, as sentences.
    notes: what of the files was taken, where they hold more, or less than a
      whole model, as sentences.
  """

  description: Description
  variables: dict[str, Any]
  layout: str
  positions: str
  table: Table
  constants: dict[str, np.ndarray]
  guesses: tuple[str, ...]
  notes: tuple[str, ...]


def read_published(
  path: str | os.PathLike,
  *,
  hints: Hints = NO_HINTS,
  dtype: np.dtype | None = None,
) -> PublishedModel:
  """Returns a directory of transformers or open_clip, or a weight file.

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
  weights, notes = _weights_of(Path(path))
  with open_tensors(weights, hints.weights) as tensors:
    layout = layout_of(tensors)
    config, guesses = config_of(tensors, layout, hints)
    table = table_of(layout, config, tensors)
    native = hugging_face_keys.is_native(tensors.infos)
    absent = layouts.absent_towers(table, tensors.infos)
    variables, constants = layouts.read(tensors, table, config, dtype, absent)
    notes += tensors.notes
  for tower in absent:
    notes += (_without(weights, tower),)
  return PublishedModel(
    description=Description(
      model=config,
      tokenizer=_tokenizer(weights, layout, config, absent),
      preprocessing=_preprocessing(
        weights, layout, config, hints.preset, native
      ),
      absent=absent,
    ),
    variables=variables,
    layout=layout,
    positions='transformers' if layout == 'hugging_face' else 'open_clip',
    table=table,
    constants=constants,
    guesses=guesses,
    notes=notes,
  )


def _without(weights: Path, tower: str) -> str:
  """Returns the note on a model that has one tower."""
  return (
    f'{weights} holds {WITH_ARTICLE[OTHER_TOWER[tower]]} tower alone, without '
    f'{WITH_ARTICLE[tower]} one.'
  )


def _weights_of(path: Path) -> tuple[Path, tuple[str, ...]]:
  """Returns the weight file of a reference, and why it is that one."""
  if path.is_dir() and path.name == 'checkpoints':
    path = path.parent if open_clip_run.is_run(path.parent) else path
  if path.is_dir() and open_clip_run.is_run(path):
    file, note = open_clip_run.newest(path)
    return file, (note,)
  weights = weights_in(path)
  if (weights.parent / ADAPTER).exists() and not weights.name.startswith(
    'adapter_'
  ):
    note = f'{weights} is taken without the PEFT adapter that lies beside it.'
    return weights, (note,)
  return weights, ()


def weights_in(path: Path) -> Path:
  """Returns the weight file of a directory; a file is itself.

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


def _tokenizer(
  weights: Path, layout: str, config: CLIPConfig, absent: tuple[str, ...]
) -> dict[str, Any] | None:
  """Describes the tokenizer, or returns None where no file says which."""
  if 'text' in absent:
    return None
  directory, length = weights.parent, config.text.context_length
  tokenizer = None
  if layout != 'big_vision' and (
    is_open_clip(directory) or is_hugging_face(directory)
  ):
    tokenizer = tokenizers.from_directory(directory, length)
  if tokenizer is None and config.text.vocab_size == _CLIP_VOCABULARY:
    tokenizer = tokenizers.load('clip', length)
  return None if tokenizer is None else tokenizer.describe()


def _preprocessing(
  weights: Path,
  layout: str,
  config: CLIPConfig,
  preset: str | None,
  native: bool,
) -> Preprocessing:
  directory, size = weights.parent, config.image.image_size
  if layout == 'hugging_face':
    preprocessing = preprocessors.read_hugging_face_directory(directory)
    if native and (preprocessing is None or preprocessing.is_native):
      return preprocessing or preprocessors.read_hugging_face(
        {
          'image_processor_type': 'Siglip2ImageProcessor',
          'patch_size': getattr(config.image, 'patch_size', None),
        }
      )
    if preprocessing is None and preset:
      preprocessing = presets.preprocessing_of(preset)
    if preprocessing is None:
      family = 'CLIP' if config.initial_logit_bias is None else 'Siglip'
      preprocessing = preprocessors.read_hugging_face(
        {'image_processor_type': f'{family}ImageProcessor'}
      )
    return preprocessing.of_size(size)
  if layout == 'big_vision':
    # All SigLIPs are resized as transformers and open_clip do it, bicubic and
    # antialiased; Pillow does not have TensorFlow's bilinear resize, which is
    # big_vision's own.
    return presets.preprocessing_of(preset or 'ViT-B-16-SigLIP').of_size(size)
  fields = read_object(directory / OPEN_CLIP_CONFIG).get('preprocess_cfg')
  run = open_clip_run.params_of(weights)
  if not fields and run is not None:
    fields = open_clip_run.preprocess_cfg(run[1])
    if not fields and getattr(config.image, 'pooling', '') == 'attention':
      return presets.preprocessing_of(run[1]['model']).of_size(size)
  if preset and not fields:
    return presets.preprocessing_of(preset).of_size(size)
  return preprocessors.read_open_clip(fields or {}, size)
