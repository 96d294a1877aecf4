"""From a reference to a model in use (DESIGN, sections 3.3 and 3.5)."""

import dataclasses
import os
import sys
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from clip_jax import checkpoints, tokenizers
from clip_jax.inference.export import load_exported
from clip_jax.inference.model import BATCH_SIZE, Model
from clip_jax.inference.references import recognise
from clip_jax.interop.foreign import NO_HINTS, Hints, read_foreign
from clip_jax.models.description import Description
from clip_jax.models.positions import resize_model


class Loaded(NamedTuple):
  """What a reference stands for, before it is on a device."""

  description: Description
  variables: dict[str, Any]  # numpy arrays
  positions: str  # how they are interpolated; see models/positions.py
  step: int | None  # updates done, where that is known
  origin: str


def load(
  reference: str | os.PathLike,
  *,
  dtype: str = 'float32',
  image_size: int | None = None,
  context_length: int | None = None,
  as_displayed: bool = False,
  tokenizer: str | None = None,
  preset: str | None = None,
  activation: str | None = None,
  mesh: Mesh | None = None,
  batch_size: int = BATCH_SIZE,
) -> Model:
  """The model that a reference stands for.

  Args:
    reference: a run's workdir (its newest complete checkpoint) or one
      checkpoint step inside it; a directory of transformers or open_clip; a
      weight file of OpenAI's, open_clip's or big_vision's; what
      `clip-jax export` wrote. The kind is told from the content.
    dtype: of the towers' arithmetic, 'float32' or 'bfloat16'.
    image_size, context_length: other ones than the model was trained with;
      its positions are interpolated, as the library that the model comes from
      does it.
    as_displayed: treat pictures as a viewer would show them: photographs
      turned by their EXIF orientation, transparency laid on white, 16-bit grey
      scaled. Most published models were trained without that, and by default
      they get what they were trained with.
    tokenizer: another one than the model's, as in `tokenizers.load`.
    preset, activation: what is known of a bare weight file, which does not say
      its activation: a name of the preset table; 'gelu' or 'quick_gelu'.
    mesh, batch_size: see `Model`.
  Raises:
    UsageError: there is no model there, or an option is impossible.
    FailureError: there is one, and it cannot be read.
  """
  loaded = read_model(
    reference,
    hints=Hints(preset=preset, activation=activation),
    dtype=np.dtype(np.float32),
  )
  variables, config = resize_model(
    loaded.variables,
    loaded.description.model,
    image_size=image_size,
    context_length=context_length,
    method=loaded.positions,
  )
  preprocessing = dataclasses.replace(
    loaded.description.preprocessing, image_size=config.image.image_size
  )
  if as_displayed:
    preprocessing = dataclasses.replace(
      preprocessing, background='white', exif=True
    )
  return Model(
    Description(
      model=config,
      tokenizer=_tokenizer(loaded, tokenizer, context_length),
      preprocessing=preprocessing,
    ),
    variables,
    mesh=mesh,
    dtype=dtype,
    batch_size=batch_size,
    step=loaded.step,
    origin=loaded.origin,
  )


def read_model(
  reference: str | os.PathLike,
  *,
  hints: Hints = NO_HINTS,
  dtype: np.dtype | None = None,
) -> Loaded:
  """The description and the arrays of a reference.

  What its files leave open is said on stderr.

  Args:
    reference: see `load`.
    hints: for a bare weight file.
    dtype: of floating-point arrays; None is the file's own.
  Raises:
    UsageError, FailureError: see `load`.
  """
  kind, path = recognise(reference)
  origin = os.fspath(path)
  if kind in ('run', 'step'):
    variables, description, step = checkpoints.load_variables(path)
    return Loaded(description, variables, 'open_clip', step, origin)
  if kind == 'exported':
    variables, description = load_exported(path, dtype)
    return Loaded(description, variables, 'open_clip', None, origin)
  foreign = read_foreign(path, hints=hints, dtype=dtype)
  for guess in foreign.guesses:
    print(f'warning: {guess}', file=sys.stderr)
  return Loaded(
    foreign.description, foreign.variables, foreign.positions, None, origin
  )


def _tokenizer(
  loaded: Loaded, spec: str | None, context_length: int | None
) -> Any:
  """The description of the tokenizer, for the context that was asked for."""
  described = loaded.description.tokenizer
  if spec is not None:
    length = context_length or loaded.description.model.text.context_length
    return tokenizers.load(spec, length).describe()
  if described is None or context_length is None:
    return described
  return {**described, 'context_length': context_length}
