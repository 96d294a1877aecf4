"""Adam with decoupled weight decay, warmed up and annealed (paper, 2.5).

Lion and Muon may take the place of Adam; parameters may be trained at different
rates, or be frozen (parameter_groups.py).
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clip_jax.errors import UsageError, check_choice
from clip_jax.training.gradients import AllTrained
from clip_jax.trees import path_name

if TYPE_CHECKING:
  from clip_jax.training.frozen_parameters import Partition
  from clip_jax.training.parameter_groups import ParameterGroups

SCHEDULES = ('cosine', 'linear', 'constant')
RULES = ('adamw', 'lion', 'muon')
MUON_MOMENTUM = 0.95

# Gains, biases, the temperature, and single vectors: the class token, that of
# masked patches, the query of attention pooling, and what a caption decoder
# reads first (open_clip's rule "one axis or none").
_NO_DECAY = re.compile(
  r'(^|/)(scale|bias|logit_scale|logit_bias|probe|'
  r'(class|mask|start)_embedding)$'
)


class Optimizer(NamedTuple):
  """An update rule as optax has it, for all or some parameters of a model.

  Attributes:
    init: all parameters -> the state, which holds moments of what is trained.
    update: (gradients of what is trained, state, all parameters) -> (updates of
      what is trained, the next state).
    groups: how fast each parameter is trained; None: all alike.
    ema_decay: of the average of the weights that a step keeps; 0 keeps none.
  """

  init: Callable[[Any], Any]
  update: Callable[[Any, Any, Any], tuple[Any, Any]]
  groups: 'ParameterGroups | None' = None
  ema_decay: float = 0.0

  def partition(self, params: Any) -> 'AllTrained | Partition':
    """Returns which parameters are trained, of these, or of their shapes.

    Raises:
      UsageError: the table of groups does not fit them.
    """
    if self.groups is None:
      return AllTrained()
    from clip_jax.training.frozen_parameters import Partition

    rates = self.groups.rates(params).items()
    kept = {name: np.asarray(rate > 0) for name, rate in rates}
    if all(layers.all() for layers in kept.values()):
      return AllTrained()
    return Partition(kept)


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
  name: str = 'adamw',
  momentum: float = MUON_MOMENTUM,
  groups: Sequence[Any] = (),
  layer_decay: float = 1.0,
  ema_decay: float = 0.0,
) -> tuple[Optimizer, optax.Schedule]:
  """Returns the update rule, and its learning rate by step.

  Args:
    total_steps: updates of the whole run.
    learning_rate: the peak. It and the rest are documented in `optimizer` of
      configs/base.py.
  Raises:
    UsageError: the name, the schedule or a row of the groups is impossible.
  """
  check_choice('optimizer.name', name, RULES)
  rate = make_schedule(schedule, learning_rate, warmup_steps, total_steps)
  mu = jnp.dtype(mu_dtype)
  clip = optax.identity()
  if clip_norm > 0:
    clip = optax.clip_by_global_norm(clip_norm)
  rule = optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu)
  if nu_dtype != 'float32':
    from clip_jax.training.update_rules import with_bfloat16_second_moment

    rule = with_bfloat16_second_moment(rule)
  if name == 'lion':
    rule = optax.scale_by_lion(b1, b2, mu)
  elif name == 'muon':
    from clip_jax.training.update_rules import scale_by_muon

    rule = scale_by_muon(momentum, mu, adam=rule)
  decay = optax.add_decayed_weights(weight_decay, mask=decay_mask)
  steps = clip, rule, decay, optax.scale_by_learning_rate(rate)
  if not groups and layer_decay == 1:
    return Optimizer(*optax.chain(*steps), None, ema_decay), rate
  from clip_jax.training.parameter_groups import ParameterGroups, parse_rows

  table = ParameterGroups(parse_rows(groups), layer_decay, weight_decay)
  return _in_groups(table, steps, ema_decay), rate


def _in_groups(
  table: 'ParameterGroups',
  steps: tuple[optax.GradientTransformation, ...],
  ema_decay: float,
) -> Optimizer:
  """Returns the update rule with rates and weight decays of a table.

  Args:
    steps: clipping, rule, weight decay and learning rate for all parameters.
  """
  clip, rule, _, learning_rate = steps

  def init(params: Any) -> Any:
    return chain(params).init(optimizer.partition(params).trained(params))

  def update(gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
    trained = optimizer.partition(params).trained(params)
    return chain(params).update(gradients, state, trained)

  def chain(params: Any) -> optax.GradientTransformation:
    decay = optax.stateless(table.decay_and_scale(params, decay_mask))
    return optax.chain(clip, rule, decay, learning_rate)

  optimizer = Optimizer(init, update, table, ema_decay)
  return optimizer
