"""The plan of a run: a measured compilation and what follows from it.

`make_plan` gives it as data, `describe` in words and aligned numbers, and
`table_row` as a row of a Markdown table.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from clip_jax.models.config import CLIPConfig
from clip_jax.models.counting import model_flops_utilization
from clip_jax.planning.child import measure_in_child
from clip_jax.planning.estimate import (
  ASSUMPTIONS,
  days_and_chip_hours,
)
from clip_jax.planning.topology import GIB, Topology
from clip_jax.training.config import Config

Plan = dict[str, Any]  # as JSON; the keys are those of `make_plan`
Measure = Callable[[Config, Topology], dict[str, Any]]

# These are known only of a program that fits.
_COSTS = (
  'flops_per_chip',
  'hbm_bytes_accessed_per_chip',
  'matrix_seconds',
  'hbm_seconds',
  'compute_seconds',
  'collective_seconds',
  'step_seconds',
  'matrix_seconds_by_shape',
  'compute_seconds_by_shape',
  'step_seconds_by_shape',
)

TABLE_HEAD = (
  '| recipe | topology | remat | peak GiB a chip | step, estimated | '
  'by shape | MFU, estimated | by shape | days | chip-hours |\n'
  '| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |'
)
_MOST_COLLECTIVES = 12  # that are shown; the rest are small


def make_plan(
  config: Config, topology: Topology, measure: Measure = measure_in_child
) -> Plan:
  """Compiles a config's step for a topology and returns what it would take.

  Args:
    measure: compiles and measures.
  Returns:
    topology, chips, settings: what was planned.
    fits, peak_bytes_per_chip, hbm_bytes_per_chip, memory: bytes of a chip, by
      what holds them.
    flops_per_chip, hbm_bytes_accessed_per_chip, collectives: of one step, from
      the compiled program.
    later: where terms begin late, after how many steps, and how long a step
      then takes; days and chip_hours have both kinds of steps.
    matrix_seconds, hbm_seconds, compute_seconds, collective_seconds,
      step_seconds, mfu, pairs_per_second, days, chip_hours: estimates that take
      all products at one fraction of the peak; see `estimate.Estimate` and
      `assumptions`.
    matrix_seconds_by_shape, compute_seconds_by_shape, step_seconds_by_shape,
      mfu_by_shape: the same with each product at what its shape fills of the
      matrix units. The two are a range: no run on a TPU says which is nearer.
    All that needs a program is None where none fits, and `collectives` empty.
  Raises:
    UsageError: the config cannot work on this topology.
    FailureError: the compiler failed otherwise.
  """
  measured = dict(measure(config, topology))
  model = CLIPConfig.from_dict(measured.pop('model'))
  without_gradient = measured.pop('without_gradient', {})
  plan: Plan = {
    'topology': str(topology),
    'chips': topology.chips,
    'settings': settings_of(config),
    'hbm_bytes_per_chip': topology.chip.hbm_bytes,
    **dict.fromkeys(_COSTS),
    'collectives': [],
    'kernels_without_costs': [],
    **measured,
  }
  return {
    **plan,
    **_from_step_time(plan, model, without_gradient, config, topology),
  }


def settings_of(config: Config) -> dict[str, Any]:
  """Returns the fields that memory and speed depend on most."""
  return {
    'model.preset': config.model.preset,
    'model.dtype': config.model.dtype,
    'model.remat': config.model.remat,
    'model.text_remat': config.model.text_remat,
    'data.batch_size': config.data.batch_size,
    'objective.form': config.objective.form,
    'objective.micro_batch': config.objective.micro_batch,
    'mesh.fsdp': config.mesh.fsdp,
    'mesh.tensor': config.mesh.tensor,
    'mesh.slices': config.mesh.slices,
    'total_steps': config.total_steps,
  }


def _from_step_time(
  plan: Plan,
  model: CLIPConfig,
  without_gradient: Mapping[str, float],
  config: Config,
  topology: Topology,
) -> dict[str, Any]:
  """Returns what follows from the time of a step."""
  seconds = plan['step_seconds']
  if seconds is None:
    names = ('mfu', 'mfu_by_shape', 'pairs_per_second', 'days', 'chip_hours')
    return {**dict.fromkeys(names), 'assumptions': []}
  batch_size = config.data.batch_size
  lengths = config.data.sequence_lengths or ()
  longest = [max(lengths)] if lengths else []
  mean = seconds
  if later := plan.get('later'):
    rest = 1 - later['after_steps'] / config.total_steps
    mean += rest * (later['step_seconds'] - seconds)
  days, chip_hours = days_and_chip_hours(
    mean, config.total_steps, topology.chips
  )

  def utilization(step_seconds: float) -> float | None:
    return model_flops_utilization(
      model,
      batch_size / step_seconds,
      topology.chip.device_kind,
      topology.chips,
      config.model.patch_dropout,
      longest,
      without_gradient,
    )

  return {
    'mfu': utilization(seconds),
    'mfu_by_shape': utilization(plan['step_seconds_by_shape']),
    'pairs_per_second': batch_size / seconds,
    'days': days,
    'chip_hours': chip_hours,
    'assumptions': [
      *(f'each step has the longest sequence, {n:,} patches' for n in longest),
      *ASSUMPTIONS,
    ],
  }


def table_row(name: str, plan: Plan) -> str:
  """Returns one row under `TABLE_HEAD`."""
  peak = f'{plan["peak_bytes_per_chip"] / GIB:.1f} of '
  peak += f'{plan["hbm_bytes_per_chip"] / GIB:.1f}'
  settings = plan['settings']
  remat, text_remat = settings['model.remat'], settings['model.text_remat']
  remat += f'; text {text_remat}' if text_remat else ''
  cells = [f'`{name}`', plan['topology'], remat, peak]
  if plan['fits']:
    cells += [
      _duration(plan['step_seconds']),
      _duration(plan['step_seconds_by_shape']),
      f'{plan["mfu"]:.0%}',
      f'{plan["mfu_by_shape"]:.0%}',
      f'{plan["days"]:.1f}',
      f'{plan["chip_hours"]:,.0f}',
    ]
  else:
    cells += ['does not fit', *5 * ['']]
  return f'| {" | ".join(cells)} |'


def verdict(plan: Plan) -> str:
  """Returns 'fits: 9.8 of 15.8 GiB, 812 ms a step', or that it does not."""
  peak = plan['peak_bytes_per_chip'] / GIB
  room = plan['hbm_bytes_per_chip'] / GIB
  if not plan['fits']:
    return f'does not fit: {peak:,.1f} of {room:.1f} GiB'
  step = _duration(plan['step_seconds'])
  return f'fits: {peak:,.1f} of {room:.1f} GiB, {step} a step'


def describe(name: str, plan: Plan) -> str:
  """Returns all of a plan, for a terminal."""
  settings = plan['settings']
  lines = [
    f'{name} on {plan["topology"]}: {plan["chips"]:,} chips, '
    f'{settings["data.batch_size"]:,} pairs a step',
    ', '.join(
      f'{field}={settings[field]}'
      for field in (
        'model.dtype',
        'model.remat',
        'model.text_remat',
        'objective.form',
        'objective.micro_batch',
        'mesh.fsdp',
      )
      if settings[field] != ''
    ),
    '',
    verdict(plan),
    '',
    *_memory(plan),
  ]
  if plan['fits']:
    lines += ['', *_work(plan), '', *_exchanges(plan), '', *_schedule(plan)]
  lines += _advice(plan)
  return '\n'.join(lines)


def _memory(plan: Plan) -> Iterable[str]:
  yield 'memory of a chip, GiB'
  held = [(k.replace('_', ' '), v) for k, v in plan['memory'].items() if v]
  held.append(('peak', plan['peak_bytes_per_chip']))
  held.append(('available', plan['hbm_bytes_per_chip']))
  for what, size in held:
    yield f'  {what:<28}{size / GIB:>10.2f}'


def _work(plan: Plan) -> Iterable[str]:
  flops, moved = plan['flops_per_chip'], plan['hbm_bytes_accessed_per_chip']
  sent = sum(c['bytes'] * c['count'] for c in plan['collectives'])
  rows = [
    ('matrix products', f'{flops / 1e12:,.2f} TFLOP', 'matrix_seconds'),
    ('main memory', f'{moved / 1e9:,.1f} GB', 'hbm_seconds'),
    ('both, by instruction', '', 'compute_seconds'),
    ('collectives', f'{sent / 1e9:,.2f} GB', 'collective_seconds'),
    ('step', '', 'step_seconds'),
  ]
  title = 'work of a chip in one step; estimates'
  yield f'{title:<40}{"flat":>12}{"by shape":>12}'
  for what, amount, key in rows:
    flat = plan[key]
    by_shape = plan.get(f'{key}_by_shape', flat)  # the products' times differ
    yield (
      f'  {what:<24}{amount:>14}{_duration(flat):>12}{_duration(by_shape):>12}'
    )
  for kernel in plan['kernels_without_costs']:
    yield f'  not counted, as it states no FLOPs: kernel {kernel}'


def _exchanges(plan: Plan) -> Iterable[str]:
  rows: Sequence[dict[str, Any]] = plan['collectives']
  yield 'collectives of one step'
  for row in rows[:_MOST_COLLECTIVES]:
    over = ' x '.join(row['axes']) or 'one'
    also = '  beside other work' if row['overlapped'] else ''
    yield (
      f'  {row["op"]:<19}{over:<16}{row["group_size"]:>6,} chips '
      f'{row["bytes"] / 1e6:>9,.2f} MB x {row["count"]:<5,}'
      f'{_duration(row["seconds"]):>10}{also}'
    )
  if len(rows) > _MOST_COLLECTIVES:
    yield f'  and {len(rows) - _MOST_COLLECTIVES} smaller ones'


def _schedule(plan: Plan) -> Iterable[str]:
  steps = plan['settings']['total_steps']
  yield (
    f'estimated: {_duration(plan["step_seconds"])} a step, '
    f'{plan["pairs_per_second"]:,.0f} pairs a second, MFU {plan["mfu"]:.0%}; '
    f'by shape {_duration(plan["step_seconds_by_shape"])}, '
    f'MFU {plan["mfu_by_shape"]:.0%}'
  )
  if later := plan.get('later'):
    yield (
      f'after {later["after_steps"]:,} steps, with all terms of the loss: '
      f'{_duration(later["step_seconds"])} a step; by shape '
      f'{_duration(later["step_seconds_by_shape"])}'
    )
  yield (
    f'{steps:,} steps take {plan["days"]:,.1f} days and '
    f'{plan["chip_hours"]:,.0f} chip-hours'
  )
  yield 'assuming:'
  for assumption in plan['assumptions']:
    yield f'  {assumption}'


def _advice(plan: Plan) -> Iterable[str]:
  """Yields what would fit, or the flags of what does."""
  for one in plan.get('suggestions', ()):
    peak = one['estimated_peak_bytes'] / GIB
    if 'chips' in one:
      what = f'slices of {one["chips"]:,} chips'
    else:
      what = ' '.join(one['flags'])
    yield f'may fit ({peak:.1f} GiB, in proportion to this plan): {what}'
  if plan.get('suggestions') is not None:
    yield '--fit searches, and compiles what it finds.'
  if plan.get('flags'):
    yield 'the fastest that fits:'
    yield '  ' + ' '.join(plan['flags'])
  elif 'tries' in plan:
    yield 'nothing that was tried fits: take more chips, or fewer pairs.'


def _duration(seconds: float) -> str:
  if seconds < 0.1:
    return f'{seconds * 1e3:,.2f} ms'
  return f'{seconds:,.2f} s' if seconds >= 1 else f'{seconds * 1e3:,.0f} ms'
