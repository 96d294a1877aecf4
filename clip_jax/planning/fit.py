"""Searches for settings of a config that fit a topology.

A program that does not fit fails in seconds, one that does compiles for
minutes. So what a failure says it would have needed is used to guess the
largest micro-batch that fits, or the share of the blocks for which there is
memory, and only likely winners are compiled.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from clip_jax.planning.plan import Plan
from clip_jax.planning.topology import Topology
from clip_jax.training.config import Config

# The remat policies, from the fastest to the one of the least memory. One is
# left to those who name it: 'save_qkv' keeps as much as 'save_mlp', and is
# faster only where rows of tokens are long.
POLICIES = ('none', 'dots', 'save_both', 'save_mlp', 'full')
# An estimate that exceeds the memory by less than this factor is tried.
_OPTIMISM = 1.15
_SHARES = 20  # A share of the blocks is a multiple of 1 / 20.


@dataclasses.dataclass(frozen=True)
class Setting:
  """The fields of a config that the search varies."""

  remat: str
  micro_batch: int
  fsdp: int
  text_remat: str = ''

  @property
  def flags(self) -> list[str]:
    """The words that set it on a command line."""
    return [
      f'--config.model.remat={self.remat}',
      f'--config.model.text_remat={self.text_remat}',
      f'--config.objective.micro_batch={self.micro_batch}',
      f'--config.mesh.fsdp={self.fsdp}',
    ]

  def applied(self, config: Config) -> Config:
    """Returns a copy of the config that has it."""
    changed = copy.deepcopy(config)
    changed.model.remat = self.remat
    changed.model.text_remat = self.text_remat
    changed.objective.micro_batch = self.micro_batch
    changed.mesh.fsdp = self.fsdp
    return changed


@dataclasses.dataclass(frozen=True)
class Trial:
  """A setting that was tried, and its plan."""

  setting: Setting
  plan: Plan


MakePlan = Callable[[Setting], Plan]


def search(
  config: Config,
  topology: Topology,
  plan_of: Callable[[Config], Plan],
  on_trial: Callable[[Trial], object] = lambda trial: None,
) -> list[Trial]:
  """Tries settings, and stops at the fastest that fits.

  The first settings have no micro-batches, beginning with the policy that
  recomputes least: the first that fits is the fastest for all blocks, since
  micro-batches cost one more forward pass, and only some of the blocks may have
  a faster one in the memory that is left. Where none fits, each policy is tried
  with its largest micro-batch, and the estimated step decides. Unless nothing
  was computed again, all of it is tried with a larger `mesh.fsdp`, which leaves
  more memory free, until that brings no faster step.

  Args:
    plan_of: makes the plan of a config.
    on_trial: is called with each trial.
  Returns:
    What was tried, in that order; see `fastest`.
  Raises:
    UsageError: the config cannot work on this topology at all.
  """
  trials: list[Trial] = []

  def attempt(setting: Setting) -> Plan:
    trial = Trial(setting, plan_of(setting.applied(config)))
    trials.append(trial)
    on_trial(trial)
    return trial.plan

  best: Trial | None = None
  for fsdp in fsdp_sizes(config, topology):
    is_plain = _search_of_size(fsdp, config, topology, attempt)
    before, best = best, fastest(trials)
    if is_plain or (best is not None and best is before):
      break
  return trials


def _search_of_size(
  fsdp: int, config: Config, topology: Topology, attempt: MakePlan
) -> bool:
  """Tries the settings of one size of `mesh.fsdp`.

  Returns:
    Whether all fits with no micro-batches and nothing computed again.
  """
  failures: dict[str, Plan] = {}
  for remat in POLICIES:
    setting = Setting(remat, 0, fsdp)
    plan = attempt(setting)
    if plan['fits']:
      if failures:
        _use_free_memory(setting, plan, failures, attempt)
      return not failures
    failures[remat] = plan
  for remat, failure in failures.items():
    _largest_micro_batch(
      Setting(remat, 0, fsdp), failure, config, topology, attempt
    )
  return False


def fastest(trials: list[Trial]) -> Trial | None:
  """Returns the trial with the shortest step of those that fit, or None."""
  fitting = [one for one in trials if one.plan['fits']]
  return min(fitting, key=lambda one: one.plan['step_seconds'], default=None)


def plan_of_trials(trials: list[Trial]) -> Plan:
  """Returns the plan of the fastest trial that fits, with all that was tried.

  Where none fits, it is the plan of the least memory.

  Returns:
    A plan, and with it 'flags', the words that set what fits, and 'tries'.
  """
  best = fastest(trials)
  smallest = min(trials, key=lambda one: one.plan['peak_bytes_per_chip'])
  return {
    **(best or smallest).plan,
    'flags': best.setting.flags if best else [],
    'tries': [
      {
        'flags': one.setting.flags,
        'fits': one.plan['fits'],
        'peak_bytes_per_chip': one.plan['peak_bytes_per_chip'],
        'step_seconds': one.plan['step_seconds'],
      }
      for one in trials
    ],
  }


def fsdp_sizes(config: Config, topology: Topology) -> Iterator[int]:
  """Yields the config's own size, then four times as many while they fit.

  Each divides the chips of a slice. Where a config says how many copies of the
  model there are (`mesh.data`), it has no other size than its own.
  """
  size = config.mesh.fsdp
  yield size
  if config.mesh.data != -1:
    return
  chips = topology.chips // topology.slices // config.mesh.tensor
  while chips % (size := 4 * size) == 0:
    yield size


def _use_free_memory(
  setting: Setting, plan: Plan, failures: dict[str, Plan], attempt: MakePlan
) -> None:
  """Tries to compute less again than a setting that fits.

  First, the last blocks of both towers have the next faster policy. Then all of
  the text tower has the fastest that fits, and the last blocks of the image
  tower have what memory is left.

  Args:
    failures: the plans of the faster policies, the fastest first.
  """
  faster, failure = list(failures.items())[-1]
  more = failure['peak_bytes_per_chip'] - plan['peak_bytes_per_chip']
  _largest_share(setting, plan, faster, more, attempt)
  for remat in failures:
    changed = dataclasses.replace(setting, text_remat=remat)
    of_text = attempt(changed)
    if of_text['fits']:
      _largest_share(changed, of_text, faster, more, attempt)
      return


def _largest_share(
  setting: Setting, plan: Plan, faster: str, more: int, attempt: MakePlan
) -> None:
  """Tries the largest share of the blocks that may have a faster policy.

  Args:
    setting, plan: with a policy for all blocks, which fits.
    more: the bytes that a chip would need beside if all had the faster one.
  """
  peak = plan['peak_bytes_per_chip']
  share = _SHARES
  while True:
    room = (plan['hbm_bytes_per_chip'] - peak) / more
    share = min(share - 1, int(room * _SHARES))
    if share < 1:
      return
    part = share / _SHARES
    remat = f'{setting.remat}:{1 - part:.2f},{faster}'
    tried = attempt(dataclasses.replace(setting, remat=remat))
    if tried['fits']:
      return
    more = max(more, int((tried['peak_bytes_per_chip'] - peak) / part))


def _largest_micro_batch(
  setting: Setting,
  failure: Plan,
  config: Config,
  topology: Topology,
  attempt: MakePlan,
) -> None:
  """Tries smaller and smaller micro-batches, from the largest that may fit."""
  before = config.data.batch_size
  for size in micro_batches(config, topology):
    if size >= before or estimated_peak(failure, size / before) > (
      _OPTIMISM * failure['hbm_bytes_per_chip']
    ):
      continue
    plan = attempt(dataclasses.replace(setting, micro_batch=size))
    if plan['fits']:
      return
    failure, before = plan, size


def micro_batches(config: Config, topology: Topology) -> list[int]:
  """Returns the halvings of the batch that all devices can split."""
  mesh = config.mesh
  tensor = mesh.tensor
  if tensor == -1:  # what the other axes leave of a slice
    tensor = topology.chips // (topology.slices * mesh.data * mesh.fsdp)
  devices = topology.chips // tensor
  sizes, size = [], config.data.batch_size // 2
  while size >= devices and size % devices == 0:
    sizes.append(size)
    if size % 2:
      break
    size //= 2
  return sizes


def estimated_peak(failure: Plan, part: float) -> float:
  """Returns the bytes a chip would need for a part of the pairs at a time.

  It assumes that temporaries shrink in proportion and all else stays. Gradients
  are among the temporaries, and stay, so that this is a lower bound.
  """
  memory: dict[str, Any] = failure['memory']
  temporary = memory['activations_and_temporaries']
  return failure['peak_bytes_per_chip'] - (1 - part) * temporary


def suggestions(
  plan: Plan, config: Config, topology: Topology
) -> list[dict[str, Any]]:
  """Returns what may make a config fit, by proportion and not compiled.

  Returns:
    For each, 'estimated_peak_bytes', and 'flags', the words that set it, or
    'chips', the number of them in a slice.
  """
  room = plan['hbm_bytes_per_chip']
  suggested: list[dict[str, Any]] = []
  for size in micro_batches(config, topology):
    micro = config.objective.micro_batch or config.data.batch_size
    peak = estimated_peak(plan, size / micro)
    if size < micro and peak * _OPTIMISM < room:
      flags = [f'--config.objective.micro_batch={size}']
      suggested.append({'flags': flags, 'estimated_peak_bytes': int(peak)})
      break
  ratio = 2
  while ratio <= 64:
    peak = estimated_peak(plan, 1 / ratio)
    if peak * _OPTIMISM < room:
      suggested.append(
        {**_more_chips(topology, ratio), 'estimated_peak_bytes': int(peak)}
      )
      break
    ratio *= 2
  return suggested


def _more_chips(topology: Topology, ratio: int) -> dict[str, Any]:
  """Returns a suggestion of `ratio` times the chips, or if need be slices."""
  chips = ratio * topology.chips // topology.slices
  if chips <= topology.chip.pod_chips:
    return {'chips': chips}
  return {'flags': [f'--config.mesh.slices={ratio * topology.slices}']}
