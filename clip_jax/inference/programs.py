"""The two encoders as programs, lowered to StableHLO by `jax.export`.

They are pure functions of flat weights and of a batch of any size.

Weights are flat so that they are the tensors of a weight file: a dictionary
from a path, 'params/image/ln_post/scale', to an array.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.extend.core import Literal

from clip_jax import trees
from clip_jax.inference.encoders import encode_functions
from clip_jax.inference.model import Model

# Leaves that the modules cast to the dtype of the arithmetic before they use
# them: stored as bfloat16, they give the same features in half the bytes.
_CAST = ('kernel', 'embedding')

# (weights, rows) to float32 features [b, E] of unit length.
Encoder = Callable[[Mapping[str, Any], Any], jax.Array]


def encoders(model: Model) -> dict[str, Encoder]:
  """Returns 'encode_image' of uint8 pixels, 'encode_text' of int32 ids.

  They compute what the model's methods of these names do, in its dtype.
  """
  preprocessing = model.preprocessing
  encode_image, encode_text = encode_functions(
    model.module, preprocessing.mean, preprocessing.std
  )
  return {
    'encode_image': lambda weights, pixels: encode_image(
      trees.nested(weights), pixels
    ),
    'encode_text': lambda weights, tokens: encode_text(
      trees.nested(weights), tokens
    ),
  }


def row_specs(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns what each encoder reads: pixels [b, S, S, 3], or ids [b, T]."""
  (b,) = jax.export.symbolic_shape('b')
  size, length = model.preprocessing.side, model.config.text
  return {
    'encode_image': jax.ShapeDtypeStruct((b, size, size, 3), jnp.uint8),
    'encode_text': jax.ShapeDtypeStruct((b, length.context_length), jnp.int32),
  }


def lower(
  encoder: Encoder,
  weights: Mapping[str, np.ndarray],
  rows: jax.ShapeDtypeStruct,
  platforms: Sequence[str],
) -> jax.export.Exported:
  """Returns a program of the weights that the encoder uses, and a batch."""
  specs = specs_of(weights)
  used = {name: specs[name] for name in _used(encoder, specs, rows)}
  # The module's `setup` asks for the other weights too, and uses only shapes.
  others = {
    name: np.broadcast_to(np.zeros((), spec.dtype), spec.shape)
    for name, spec in specs.items()
    if name not in used
  }

  def encode(weights, rows) -> jax.Array:
    return encoder({**others, **weights}, rows)

  # The paths of our source files are private, and differ by machine.
  limit = jax.config.jax_traceback_in_locations_limit  # pyright: ignore
  jax.config.update('jax_traceback_in_locations_limit', 0)
  try:
    return jax.export.export(jax.jit(encode), platforms=platforms)(used, rows)
  finally:
    jax.config.update('jax_traceback_in_locations_limit', limit)


def flat_weights(model: Model) -> dict[str, np.ndarray]:
  """Returns the model's variables by path, in the dtypes of its programs."""
  half = model.module.dtype == jnp.bfloat16
  weights = {}
  for name, leaf in trees.flat(model.variables).items():
    cast = half and name.rpartition('/')[2] in _CAST
    leaf = np.asarray(jax.device_get(leaf))
    weights[name] = leaf.astype(ml_dtypes.bfloat16) if cast else leaf
  return weights


def specs_of(
  weights: Mapping[str, np.ndarray],
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the weights' shapes and dtypes."""
  return {
    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    for name, leaf in weights.items()
  }


def _used(
  encoder: Encoder,
  specs: Mapping[str, jax.ShapeDtypeStruct],
  rows: jax.ShapeDtypeStruct,
) -> list[str]:
  """Returns the weights that an encoder computes with: those of its tower."""
  jaxpr = jax.make_jaxpr(encoder)(specs, rows).jaxpr
  read = {
    v for eqn in jaxpr.eqns for v in eqn.invars if not isinstance(v, Literal)
  }
  names = sorted(specs)  # the order in which JAX flattens a dictionary
  return [
    name for name, v in zip(names, jaxpr.invars, strict=False) if v in read
  ]
