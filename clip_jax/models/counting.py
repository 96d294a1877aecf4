"""How many parameters a model has, tower by tower; nothing is computed."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.errors import FailureError
from clip_jax.models.config import CLIPConfig
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.trees import first_difference, flat


@dataclasses.dataclass(frozen=True)
class ParameterCount:
  """Numbers of parameters; the rest of `total` is the temperature's."""

  total: int
  image: int  # the image tower and its projection
  text: int  # the text tower and its projection


@functools.cache
def abstract_variables(config: CLIPConfig) -> dict[str, Any]:
  """Shapes and dtypes of what `DualEncoder(config).init` makes: 'params', and
  'batch_stats' where the image tower is a ResNet."""
  size = config.image.image_size
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  tokens = jax.ShapeDtypeStruct((1, config.text.context_length), jnp.int32)
  init = DualEncoder(config).init
  return jax.eval_shape(init, jax.random.key(0), images, tokens)


def check_variables(
  config: CLIPConfig, found: Mapping[str, Any], where: str
) -> None:
  """Compares the arrays of a file with what its description says of them.

  Args:
    config: the description.
    found: what has a shape, by path ('params/image/…').
    where: the file, for the error.
  Raises:
    FailureError: a name or a shape is another one; the first is named.
  """
  differing = first_difference(found, flat(abstract_variables(config)))
  if differing is not None:
    path, old, new = differing
    raise FailureError(
      f'{where}: its arrays are not those of its description: {path} is {old}, '
      f'and should be {new}.'
    )


@functools.cache
def count_parameters(config: CLIPConfig) -> ParameterCount:
  """Counts the parameters that `DualEncoder(config)` would be given.

  The running statistics of a ResNet are not parameters.
  """
  params = abstract_variables(config)['params']

  def count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

  towers = {
    name: sum(
      count(tree) for key, tree in params.items() if key.startswith(name)
    )
    for name in ('image', 'text')
  }
  return ParameterCount(total=count(params), **towers)
