"""The training state: all arrays that a resumed run needs, as one tree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.parallel import partitioning
from clip_jax.training.optimizer import Optimizer
from clip_jax.trees import flat, nested


@flax.struct.dataclass
class TrainState:
  """The arrays of a run, saved and sharded as one tree.

  There is no random key in it: what a step draws, such as dropped patches, and
  the data's position follow from (seed, step).
  """

  step: Any  # int32 scalar, updates done
  params: Any  # float32
  opt_state: Any
  # Running statistics of a ResNet's batch norms; a pair of Transformers has {}.
  batch_stats: Any = flax.struct.field(default_factory=dict)
  # Moving averages, by the paths of their parameters: of those that have a
  # trained layer, with `optimizer.ema_decay`. Otherwise {}.
  ema: Any = flax.struct.field(default_factory=dict)
  # With self-distillation, a `momentum_teacher.Teacher`'s arrays; else {}.
  teacher: Any = flax.struct.field(default_factory=dict)

  @property
  def variables(self) -> dict[str, Any]:
    """Returns the variables to evaluate, averaged where averages are kept."""
    params = self.params
    if self.ema:
      params = nested(flat(params) | flat(self.ema))
    return variables_of(params, self.batch_stats)


def variables_of(params: Any, batch_stats: Any) -> dict[str, Any]:
  """Returns the non-empty collections of variables by name."""
  if not batch_stats:
    return {'params': params}
  return {'params': params, 'batch_stats': batch_stats}


def init_state(
  module: DualEncoder, optimizer: Optimizer, seed: int
) -> TrainState:
  """Returns random weights at step 0; traceable, so it can be sharded."""
  image, text = module.config.image, module.config.text
  images = jnp.zeros((1, image.image_size, image.image_size, 3))
  tokens = jnp.zeros((1, text.context_length), jnp.int32)
  variables: Any = module.init(jax.random.key(seed), images, tokens)
  params, ema = variables['params'], {}
  if optimizer.ema_decay:
    ema = optimizer.partition(params).averaged(params)
    ema = jax.tree.map(jnp.copy, ema)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    batch_stats=variables.get('batch_stats', {}),
    ema=ema,
    teacher=jax.tree.map(jnp.copy, module.first_teacher(params)),
  )


def abstract_state(
  module: DualEncoder, optimizer: Optimizer, mesh: Mesh
) -> TrainState:
  """Returns the shapes, dtypes and shardings of the state."""
  shapes = jax.eval_shape(lambda: init_state(module, optimizer, 0))
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    partitioning.shardings(shapes, mesh),
  )


def sharded_init(
  module: DualEncoder, optimizer: Optimizer, mesh: Mesh, seed: int
) -> TrainState:
  """Returns the state at step 0, each array made where it will live.

  The values do not depend on the mesh.
  """
  abstract = abstract_state(module, optimizer, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  make = jax.jit(
    lambda: init_state(module, optimizer, seed), out_shardings=shardings
  )
  return make()
