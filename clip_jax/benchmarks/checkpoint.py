"""Measures what a checkpoint costs a training run."""

import dataclasses
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.benchmarks.step import paper_optimizer
from clip_jax.benchmarks.timing import WARM_UP, Figures, device_facts
from clip_jax.checkpoints.manager import Checkpoints
from clip_jax.data.preprocessing import Preprocessing
from clip_jax.models import presets
from clip_jax.models.description import Description
from clip_jax.models.dual_encoder import DualEncoder
from clip_jax.parallel.mesh import make_mesh
from clip_jax.training.state import TrainState, sharded_init

_USUAL_STEPS = 5  # before each save, for the time that a step takes without


@dataclasses.dataclass(frozen=True)
class _Save:
  """The seconds of one save beside running steps."""

  call: float  # of `save`, for which the loop waits
  next_step: float  # over its usual time: it copies arrays still being read
  later_steps: float  # over their usual time, until all is written


def bench_checkpoint(preset: str, saves: int) -> Figures:
  """Measures saves of a training state, while steps go on and while they wait.

  A step here rewrites every array of the state in place, as an update does, and
  computes nothing else. A training run is stalled from the end of one step
  until the next one, at its usual speed, would have ended: by the call of
  `save`, and by what it makes the next step slower. Where devices and the
  writing threads use the same cores, later steps are slowed down as well; that
  is reported separately.

  Args:
    preset: a published model; its parameters and Adam's moments are saved.
    saves: their number of each kind, in turns; the figures are medians.
  """
  model = presets.resolve(preset)
  state = _state(preset)
  description = Description(
    model, {}, Preprocessing(image_size=model.image.image_size)
  )
  synchronous, beside = [], []
  with tempfile.TemporaryDirectory() as folder:
    checkpoints = Checkpoints(folder, keep=1)
    for turn in range(WARM_UP + 2 * saves):
      state, usual = _usual(state)
      if turn % 2:
        state, cost = _save_beside(state, checkpoints, description, usual)
        beside.append(cost)
      else:
        start = time.perf_counter()
        checkpoints.save(state, description, seed=0)
        checkpoints.wait()
        synchronous.append(time.perf_counter() - start)
    checkpoints.close()
  beside = beside[WARM_UP // 2 :]
  whole = statistics.median(synchronous[WARM_UP // 2 :])
  stall = statistics.median(cost.call + cost.next_step for cost in beside)
  return {
    'preset': preset,
    'saves': saves,
    'bytes': sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
    'synchronous_seconds': whole,
    'stall_seconds': stall,
    'ratio': stall / whole,
    'call_seconds': statistics.median(cost.call for cost in beside),
    'later_steps_seconds': statistics.median(
      cost.later_steps for cost in beside
    ),
    'step_seconds': usual,
    **device_facts(),
  }


def _state(preset: str) -> TrainState:
  optimizer, _ = paper_optimizer(10)
  module = DualEncoder(presets.resolve(preset))
  return sharded_init(module, optimizer, make_mesh(), seed=0)


@jax.jit(donate_argnums=0)
def _step(state: TrainState) -> TrainState:
  def update(leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jnp.floating):
      return leaf * jnp.asarray(0.999, leaf.dtype)
    return leaf + 1

  return jax.tree.map(update, state)


def _timed(state: TrainState) -> tuple[TrainState, float]:
  start = time.perf_counter()
  state = jax.block_until_ready(_step(state))
  return state, time.perf_counter() - start


def _usual(state: TrainState) -> tuple[TrainState, float]:
  """Runs steps that nothing disturbs, and returns the median of their times."""
  seconds = []
  for _ in range(_USUAL_STEPS):
    state, taken = _timed(state)
    seconds.append(taken)
  return state, statistics.median(seconds)


def _save_beside(
  state: TrainState,
  checkpoints: Checkpoints,
  description: Description,
  usual: float,
) -> tuple[TrainState, _Save]:
  """Saves, and goes on with steps until all is written."""
  start = time.perf_counter()
  checkpoints.save(state, description, seed=0)
  call = time.perf_counter() - start
  state, first = _timed(state)
  later = 0.0
  while checkpoints.is_saving:
    state, taken = _timed(state)
    later += taken - usual
  checkpoints.wait()
  return state, _Save(call, first - usual, later)
