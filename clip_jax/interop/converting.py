"""A model in the layout of another library, so that its own code loads it."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from clip_jax import tokenizers
from clip_jax.errors import UsageError
from clip_jax.files import new_folder, replacing_folder, to_bytes
from clip_jax.interop import (
  hugging_face,
  hugging_face_keys,
  layouts,
  open_clip,
  openai,
  preprocessor_writers,
)
from clip_jax.interop.published_files import OPEN_CLIP_CONFIG
from clip_jax.interop.safetensors_file import write_safetensors
from clip_jax.models.description import Description
from clip_jax.tokenizers import exporting

_NO_TOKENIZER = 'The model came without a tokenizer, so none was written.'


class Converted(NamedTuple):
  """The result of a conversion.

  Attributes:
    files: names and bytes.
    differences: sentences on what the other library cannot be told.
  """

  files: dict[str, int]
  differences: list[str]


class _Layout(NamedTuple):
  """The files of one library, besides the weights."""

  table: layouts.Table
  weights: str  # the name of their file
  contents: dict[str, bytes]
  differences: list[str]


def convert(
  description: Description,
  variables: Mapping[str, Any],
  target: str,
  directory: str | os.PathLike,
) -> Converted:
  """Writes config, weights, tokenizer and preprocessing.

  Args:
    description: of the model.
    variables: collections by name of numpy arrays. Floats of several dtypes
      become float32.
    target: 'hf' (transformers) or 'open_clip'.
    directory: does not exist yet, or is empty; it appears whole.
  Raises:
    UsageError: the target is unknown or cannot express the model, or the
      directory holds something.
    FailureError: it cannot be written.
  """
  check_call(target, directory)
  tokenizer = None
  if description.tokenizer is not None:
    tokenizer = tokenizers.from_description(description.tokenizer)
  description, variables, lines = description.without_decoder(variables)
  layout = _LAYOUTS[target](description, tokenizer)
  tensors = layouts.write(
    _in_one_dtype(variables), layout.table, description.model
  )
  with replacing_folder(directory) as folder:
    write_safetensors(folder / layout.weights, tensors, {'format': 'pt'})
    for name, content in layout.contents.items():
      (folder / name).write_bytes(content)
    files = {
      file.name: file.stat().st_size for file in sorted(folder.iterdir())
    }
  return Converted(files, layout.differences + lines)


def check_call(target: str, directory: str | os.PathLike) -> None:
  """Refuses early, before a model is read, what `convert` could not do.

  Raises:
    UsageError: the target is unknown, the directory holds something, or there
      is no folder to make it in.
  """
  if target not in _LAYOUTS:
    raise UsageError(
      f'no layout {target!r}: choose one of {", ".join(_LAYOUTS)}.'
    )
  new_folder(directory)


def _hugging_face(
  description: Description, tokenizer: tokenizers.Tokenizer | None
) -> _Layout:
  native = description.preprocessing.is_native
  config = hugging_face.write_config(description.model, native)
  preprocessing = preprocessor_writers.write_hugging_face(
    description.preprocessing
  )
  files, differences = {}, [_NO_TOKENIZER]
  if tokenizer is not None:
    config['text_config'] |= {
      'bos_token_id': tokenizer.bos_id,
      'pad_token_id': tokenizer.pad_id,
    }
    files, differences = exporting.hugging_face_files(tokenizer)
  return _Layout(
    table=hugging_face_keys.table(description.model, native),
    weights='model.safetensors',
    contents={
      'config.json': to_bytes(config),
      'preprocessor_config.json': to_bytes(preprocessing.config),
      **files,
    },
    differences=differences + preprocessing.differences,
  )


def _open_clip(
  description: Description, tokenizer: tokenizers.Tokenizer | None
) -> _Layout:
  if description.preprocessing.is_native:
    raise UsageError(
      'open_clip does not read images of native aspect (NaFlex): convert with '
      '--to=hf.'
    )
  config = open_clip.write_config(description.model)
  preprocessing = preprocessor_writers.write_open_clip(
    description.preprocessing
  )
  files, differences = {}, [_NO_TOKENIZER]
  if tokenizer is not None:
    config['text_cfg'] |= exporting.open_clip_text_cfg(tokenizer)
    if 'hf_tokenizer_name' in config['text_cfg']:
      files = exporting.hugging_face_files(tokenizer).contents
    differences = exporting.open_clip_differences(tokenizer)
  whole = {'model_cfg': config, 'preprocess_cfg': preprocessing.config}
  variant = open_clip.variant_of_config(description.model)
  return _Layout(
    table=openai.table(description.model, variant),
    weights='open_clip_model.safetensors',
    contents={OPEN_CLIP_CONFIG: to_bytes(whole), **files},
    differences=differences + preprocessing.differences,
  )


_LAYOUTS = {'hf': _hugging_face, 'open_clip': _open_clip}


def _in_one_dtype(variables: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns floats as they are where all have one dtype, else as float32."""
  leaves = jax.tree.leaves(variables)
  kinds = {leaf.dtype for leaf in leaves if leaf.dtype.kind not in 'iub'}
  if len(kinds) == 1:
    return variables
  return jax.tree.map(
    lambda leaf: leaf if leaf.dtype.kind in 'iub' else np.float32(leaf),
    variables,
  )
