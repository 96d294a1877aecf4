"""How many parameters a model has, tower by tower; nothing is computed."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from clip_jax.models.config import CLIPConfig
from clip_jax.models.dual_encoder import DualEncoder


@dataclasses.dataclass(frozen=True)
class ParameterCount:
  """Numbers of parameters; the rest of `total` is the temperature."""

  total: int
  image: int  # the image tower and its projection
  text: int  # the text tower and its projection


def count_parameters(config: CLIPConfig) -> ParameterCount:
  """Counts the parameters that `DualEncoder(config)` would be given."""
  size = config.image.image_size
  variables = jax.eval_shape(
    DualEncoder(config).init,
    jax.random.key(0),
    jnp.zeros((1, size, size, 3)),
    jnp.zeros((1, config.text.context_length), jnp.int32),
  )

  def count(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

  params = variables['params']
  towers = {
    name: sum(
      count(tree) for key, tree in params.items() if key.startswith(name)
    )
    for name in ('image', 'text')
  }
  return ParameterCount(total=count(params), **towers)
