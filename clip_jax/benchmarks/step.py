"""The train step alone, on pairs that are made up, as benchmarks time it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clip_jax.data.preprocessing import Preprocessing
from clip_jax.models.config import CLIPConfig
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.objectives.objective import make_objective
from clip_jax.objectives.registry import make_loss
from clip_jax.parallel.mesh import BATCH_AXES, batch_sharding
from clip_jax.training.optimizer import Optimizer, make_optimizer
from clip_jax.training.program import jit_train_step
from clip_jax.training.state import TrainState, abstract_state, sharded_init
from clip_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Step:
  """A model's train step on a mesh, with nothing allocated yet.

  Attributes:
    jitted: from a state, which is donated, and pairs to a state and metrics.
    outputs: what the objective reads of the towers.
    state: shapes, dtypes and shardings.
    init: makes the first state.
  """

  model: CLIPConfig
  mesh: Mesh
  jitted: Any
  outputs: frozenset[str]
  state: TrainState
  init: Callable[[], TrainState]

  def compile(self, batch: int) -> jax.stages.Compiled:
    """Compiles the step for a number of pairs, all devices together."""
    pairs = jax.eval_shape(lambda: _made_up_pairs(self.model, batch))
    pairs = jax.tree.map(
      lambda rows: jax.ShapeDtypeStruct(
        rows.shape, rows.dtype, sharding=batch_sharding(self.mesh)
      ),
      pairs,
    )
    return self.jitted.lower(self.state, pairs).compile()

  def pairs(self, batch: int) -> dict[str, jax.Array]:
    """Returns pairs on the devices, of pixels and ids without meaning."""
    make = jax.jit(
      lambda: _made_up_pairs(self.model, batch),
      out_shardings=batch_sharding(self.mesh),
    )
    return make()


def paper_step(
  model: CLIPConfig, mesh: Mesh, total_steps: int, dtype: str, remat: str
) -> Step:
  """Returns the paper's train step of a model: its loss and its optimizer.

  Args:
    total_steps: for the schedule.
    dtype, remat: as in `model` of configs/base.py.
  """
  module = DualEncoder(model, jnp.dtype(dtype), remat)
  optimizer, schedule = paper_optimizer(total_steps)
  objective = make_objective(
    make_loss('softmax', 'all_gather', mesh, BATCH_AXES, 1)
  )
  preprocessing = Preprocessing(image_size=model.image.image_size)
  state = abstract_state(module, optimizer, mesh)
  train_step = make_train_step(
    module, optimizer, schedule, objective, preprocessing, mesh
  )
  return Step(
    model,
    mesh,
    jit_train_step(train_step, state, mesh),
    objective.outputs,
    state,
    lambda: sharded_init(module, optimizer, mesh, seed=0),
  )


def repeated(step: Any, state: TrainState, pairs: Any) -> Callable[[], None]:
  """Returns a function that takes one more step, and waits for its end.

  Args:
    step: jitted or compiled; it may take the state's memory.
    state: before the first step.
    pairs: of every step.
  """

  def call() -> None:
    nonlocal state
    state, metrics = step(state, pairs)
    jax.block_until_ready((state, metrics))

  return call


def _made_up_pairs(model: CLIPConfig, batch: int) -> dict[str, jax.Array]:
  keys = jax.random.split(jax.random.key(0))
  image, text = model.image, model.text
  pixels = jax.random.bits(
    keys[0], (batch, image.image_size, image.image_size, 3), jnp.uint8
  )
  length = text.context_length
  tokens = jax.random.randint(keys[1], (batch, length), 0, text.end_token)
  return {'image': pixels, 'tokens': tokens.at[:, -1].set(text.end_token)}


def paper_optimizer(
  total_steps: int,
) -> tuple[Optimizer, optax.Schedule]:
  """Returns the paper's optimizer for a ViT (table 18) and its schedule."""
  return make_optimizer(
    total_steps,
    learning_rate=5e-4,
    schedule='cosine',
    warmup_steps=1,
    weight_decay=0.2,
    b1=0.9,
    b2=0.98,
    eps=1e-6,
    clip_norm=0.0,
    mu_dtype='float32',
    nu_dtype='float32',
  )
