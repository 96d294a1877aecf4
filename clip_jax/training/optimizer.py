"""Adam with decoupled weight decay, warmed up and annealed (paper, 2.5)."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clip_jax.errors import UsageError, check_choice
from clip_jax.trees import path_name

SCHEDULES = ('cosine', 'linear', 'constant')

# Gains, biases, the temperature, and single vectors: the class token, the query
# of attention pooling, and what a caption decoder reads first (open_clip's rule
# "one axis or none").
_NO_DECAY = re.compile(
  r'(^|/)(scale|bias|logit_scale|logit_bias|class_embedding|probe|'
  r'start_embedding)$'
)


def decay_mask(params: Any) -> Any:
  """Returns a tree that is True where weight decay applies.

  That is "all weights that are not gains or biases" (paper, section 2.5), told
  by name, since the biases of scanned blocks have two axes.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: not _NO_DECAY.search(path_name(path)), params
  )


def make_schedule(
  name: str, peak: float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
  """Returns the learning rate by step: a linear warm-up, then the schedule.

  Args:
    name: what follows the warm-up: 'cosine' or 'linear' decay to zero, or
      'constant'.
    peak: the rate at the end of the warm-up.

  Raises:
    UsageError: the name is unknown, or the warm-up outlasts the run.
  """
  check_choice('optimizer.schedule', name, SCHEDULES)
  if not 0 <= warmup_steps < total_steps:
    raise UsageError(
      f'optimizer.warmup_steps={warmup_steps} must be at least 0 and below '
      f'total_steps={total_steps}.'
    )
  rest = total_steps - warmup_steps
  after = {
    'cosine': optax.cosine_decay_schedule(peak, rest),
    'linear': optax.linear_schedule(peak, 0.0, rest),
    'constant': optax.constant_schedule(peak),
  }[name]
  # Step 0 has 1/warmup_steps of the peak, so that the first update counts.
  warmup = optax.linear_schedule(
    peak / max(warmup_steps, 1), peak, max(warmup_steps - 1, 1)
  )
  return optax.join_schedules([warmup, after], [warmup_steps])


def describe_raised_total(
  optimizer: Mapping[str, Any], before: int, total_steps: int, step: int
) -> str:
  """Describes how more steps change the learning rate of a run.

  Args:
    optimizer: the fields of `optimizer` in configs/base.py.
    before: `total_steps` until now.
    total_steps: from now on.
    step: updates done.
  """
  name, peak = optimizer['schedule'], optimizer['learning_rate']
  old, new = (
    float(
      np.asarray(
        make_schedule(name, peak, optimizer['warmup_steps'], total)(step)
      )
    )
    for total in (before, total_steps)
  )
  change = f'total_steps raised from {before:,} to {total_steps:,}: '
  if name == 'constant' or step >= total_steps:
    return f'{change}the learning rate stays {new:.3g}.'
  return (
    f'{change}the {name} schedule now ends at step {total_steps:,}, so that '
    f'the learning rate at step {step:,} goes from {old:.3g} to {new:.3g} '
    f'(peak {peak:.3g}); there is no second warm-up.'
  )


def make_optimizer(
  total_steps: int,
  *,
  learning_rate: float,
  schedule: str,
  warmup_steps: int,
  weight_decay: float,
  b1: float,
  b2: float,
  eps: float,
  clip_norm: float,
  mu_dtype: str,
  nu_dtype: str,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Returns the update rule, and its learning rate by step.

  Args:
    total_steps: updates of the whole run.
    learning_rate: the peak. It and the rest are documented in `optimizer` of
      configs/base.py.
  """
  rate = make_schedule(schedule, learning_rate, warmup_steps, total_steps)
  clip = optax.identity()
  if clip_norm > 0:
    clip = optax.clip_by_global_norm(clip_norm)
  adam = optax.scale_by_adam(
    b1=b1, b2=b2, eps=eps, mu_dtype=jnp.dtype(mu_dtype)
  )
  if nu_dtype != 'float32':
    adam = with_bfloat16_second_moment(adam)
  return optax.chain(
    clip,
    adam,
    optax.add_decayed_weights(weight_decay, mask=decay_mask),
    optax.scale_by_learning_rate(rate),
  ), rate


def with_bfloat16_second_moment(
  adam: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Returns `optax.scale_by_adam` with its second moment in bfloat16.

  An update changes that moment by a fraction of 1 - b2, which is less than half
  a unit of bfloat16's eight bits: rounded to nearest, it would never change.
  Stochastic rounding keeps it right on average. (The paper gives no details of
  its half-precision statistics, section 2.5.)
  """

  def init(params):
    state: Any = adam.init(params)
    return state._replace(nu=_cast(state.nu, jnp.bfloat16))

  def update(updates, state, params=None):
    full = state._replace(nu=_cast(state.nu, jnp.float32))
    new: Any
    updates, new = adam.update(updates, full, params)
    key = jax.random.fold_in(jax.random.key(0), new.count)
    leaves, structure = jax.tree.flatten(new.nu)
    rounded = [
      stochastic_round(leaf, jax.random.fold_in(key, i))
      for i, leaf in enumerate(leaves)
    ]
    return updates, new._replace(nu=jax.tree.unflatten(structure, rounded))

  return optax.GradientTransformation(init, update)


def stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
  """Rounds float32 to bfloat16, up or down at random, and `x` on average."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  bits = (bits + noise) & jnp.uint32(0xFFFF0000)
  return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16)


def _cast(tree: Any, dtype: Any) -> Any:
  return jax.tree.map(lambda x: x.astype(dtype), tree)
