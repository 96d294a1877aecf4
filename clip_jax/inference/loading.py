"""Loads the model that a reference names, whatever kind it is of."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from clip_jax import tokenizers
from clip_jax.errors import UsageError, print_notes, print_warnings
from clip_jax.inference.model import BATCH_SIZE, Model
from clip_jax.inference.references import recognise
from clip_jax.interop.published_files import NO_HINTS, Hints
from clip_jax.models.description import Description
from clip_jax.models.positions import resize_model

# The `weights` of a run that are not averaged.
RAW = 'raw'


class Loaded(NamedTuple):
  """A model that was read from a reference, before it is on a device."""

  description: Description
  variables: dict[str, Any]  # numpy arrays
  step: int | None  # updates done, where that is known
  origin: str
  positions: str  # how its image positions are interpolated: see resize_model


def load(
  reference: str | os.PathLike,
  *,
  dtype: str = 'float32',
  image_size: int | None = None,
  context_length: int | None = None,
  text_positions: str = 'append',
  as_displayed: bool = False,
  tokenizer: str | None = None,
  preset: str | None = None,
  activation: str | None = None,
  heads: int | Sequence[int] | None = None,
  weights: str | None = None,
  mesh: Mesh | None = None,
  batch_size: int = BATCH_SIZE,
) -> Model:
  """Returns the model that a reference stands for.

  Args:
    reference: a run's workdir (its newest complete checkpoint) or one
      checkpoint step inside it; a directory of transformers or open_clip; a
      weight file of OpenAI's, open_clip's or big_vision's; what
      `clip-jax export` wrote. The kind is told from the content.
    dtype: of the towers' arithmetic, 'float32' or 'bfloat16'.
    image_size, context_length: other ones than the model was trained with.
      Image positions are interpolated, as the library that the model comes
      from does it. Images of native aspect (NaFlex) get as many patches as a
      square of `image_size`.
    text_positions: for another context length. 'append' keeps the existing
      positions and adds or drops some at the end, so texts that fit both
      lengths keep their features. 'interpolate' is what open_clip does.
    as_displayed: treat images as a viewer would show them: photographs
      turned by their EXIF orientation, transparency laid on white, 16-bit grey
      scaled. Most published models were trained without that, and by default
      they get what they were trained with.
    tokenizer: another one than the model's, as in `tokenizers.load`.
    preset, activation, heads: what is known of a bare weight file, which does
      not say how it computes: a published name, OpenAI's, open_clip's or the
      hub's; 'gelu' or 'quick_gelu'; the heads of the image tower, or of the
      image and the text tower.
    weights: which of several models in a file, such as 'ema_state_dict'; of a
      run that averages its weights, 'raw' are those that it trains.
    mesh, batch_size: see `Model`.
  Returns:
    The model. One tower alone, such as transformers' CLIPVisionModel, encodes
    what that tower reads, and refuses the rest.
  Raises:
    UsageError: there is no model there (where there is nothing at all, it is a
      FileNotFoundError, too), or an option is impossible.
    FailureError: there is one, and it cannot be read.
  """
  if isinstance(heads, int):
    heads = (heads,)
  loaded = read_model(
    reference,
    image_size=image_size,
    context_length=context_length,
    text_positions=text_positions,
    as_displayed=as_displayed,
    tokenizer=tokenizer,
    hints=Hints(
      preset, activation, None if heads is None else tuple(heads), weights
    ),
    dtype=np.dtype(np.float32),
    whole=False,
  )
  return Model(
    loaded.description,
    loaded.variables,
    mesh=mesh,
    dtype=dtype,
    batch_size=batch_size,
    step=loaded.step,
    origin=loaded.origin,
  )


def read_model(
  reference: str | os.PathLike,
  *,
  image_size: int | None = None,
  context_length: int | None = None,
  text_positions: str = 'append',
  as_displayed: bool = False,
  tokenizer: str | None = None,
  hints: Hints = NO_HINTS,
  dtype: np.dtype | None = None,
  whole: bool = True,
) -> Loaded:
  """Returns what `load` makes a model of: the description and the arrays.

  What the files leave open is printed on stderr.

  Args:
    reference, image_size, context_length, text_positions, as_displayed,
      tokenizer: see `load`.
    hints: for a bare weight file.
    dtype: of floating-point arrays; None is the file's own.
    whole: whether a model with one tower alone is refused.
  Raises:
    UsageError, FailureError: see `load`.
  """
  loaded = _read(reference, hints, dtype)
  description = loaded.description
  if whole and description.absent:
    raise UsageError(
      f'{loaded.origin} has no {description.absent[0]} tower, and both are '
      'needed here: name a whole model.'
    )
  preprocessing = description.preprocessing
  native = preprocessing.is_native  # the tower resizes its positions itself
  variables, config = resize_model(
    loaded.variables,
    description.model,
    image_size=None if native else image_size,
    context_length=context_length,
    method=loaded.positions,
    text_method=text_positions,
  )
  if image_size is not None or not native:
    preprocessing = preprocessing.of_size(image_size or config.image.image_size)
  if as_displayed:
    preprocessing = dataclasses.replace(
      preprocessing, background='white', exif=True
    )
  return loaded._replace(
    description=Description(
      model=config,
      tokenizer=_tokenizer(description, tokenizer, context_length),
      preprocessing=preprocessing,
      absent=description.absent,
    ),
    variables=variables,
  )


def _read(
  reference: str | os.PathLike, hints: Hints, dtype: np.dtype | None
) -> Loaded:
  """Reads a model as it was saved: no size or tokenizer is changed.

  Each reader is imported for the models that it reads alone.
  """
  kind, path = recognise(reference)
  origin = os.fspath(path)
  raw = kind in ('run', 'step') and hints.weights == RAW
  if kind in ('run', 'step', 'exported'):
    own = dataclasses.replace(hints, weights=None) if raw else hints
    own.refuse(f"{origin} is clip_jax's own, and")
  if kind in ('run', 'step'):
    from clip_jax.checkpoints.reading import load_variables

    variables, description, step = load_variables(path, averaged=not raw)
    if description.model.lora is not None:
      variables, description = _merged(variables, description)
    return Loaded(description, variables, step, origin, 'open_clip')
  if kind == 'exported':
    from clip_jax.inference.export import load_exported

    variables, description = load_exported(path, dtype)
    return Loaded(description, variables, None, origin, 'open_clip')
  from clip_jax.interop.published_model import read_published

  model = read_published(path, hints=hints, dtype=dtype)
  print_warnings(model.guesses)
  print_notes(model.notes)
  return Loaded(
    model.description, model.variables, None, origin, model.positions
  )


def _merged(
  variables: dict[str, Any], description: Description
) -> tuple[dict[str, Any], Description]:
  """Returns a model without low-rank adapters that computes the same."""
  from clip_jax.models.lora import merge

  variables, config = merge(variables, description.model)
  variables = jax.tree.map(np.asarray, variables)
  return variables, dataclasses.replace(description, model=config)


def _tokenizer(
  description: Description, spec: str | None, context_length: int | None
) -> Any:
  """Returns the description of a tokenizer, for this context length or its own.

  Args:
    description: of the model.
    spec: another tokenizer than the model's, or None.
    context_length: another one than the model's, or None.
  """
  if spec is not None:
    length = context_length or description.model.text.context_length
    return tokenizers.load(spec, length).describe()
  described = description.tokenizer
  if described is None or context_length is None:
    return described
  return {**described, 'context_length': context_length}
