"""Weak scaling by plan: ever more chips, each with the same pairs."""

import copy
from collections.abc import Sequence

from clip_jax.errors import UsageError
from clip_jax.planning.plan import Plan
from clip_jax.planning.topology import Topology, parse_topology
from clip_jax.training.config import Config

TABLE_HEAD = (
  '| chips | topology | pairs | step, ms | compute, ms | collectives, ms | '
  'not hidden, ms | the longest | MFU | rate of a chip |\n'
  '| ---: | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |'
)


def sizes(
  config: Config, names: Sequence[str]
) -> list[tuple[Config, Topology]]:
  """Returns the config for each topology, its pairs in proportion to the chips.

  `mesh.slices` is that of the topology.

  Args:
    config: has the pairs of the first.
    names: SLICE, such as v5p:4x4x4, or COUNT*SLICE.
  Raises:
    UsageError: there is no such topology, the first splits no pairs evenly, or
      the config names a number of slices.
  """
  if config.mesh.slices != 1:
    raise UsageError(
      f'--scaling names the slices itself, as in 2*v5p:4x4x4: leave out '
      f'mesh.slices={config.mesh.slices}.'
    )
  topologies = [_parse(name) for name in names]
  pairs, chips = config.data.batch_size, topologies[0].chips
  if pairs % chips:
    raise UsageError(
      f'data.batch_size={pairs} is no multiple of the {chips} chips of '
      f'{topologies[0]}, the first.'
    )
  result = []
  for topology in topologies:
    changed = copy.deepcopy(config)
    changed.data.batch_size = pairs // chips * topology.chips
    changed.mesh.slices = topology.slices
    result.append((changed, topology))
  return result


def _parse(name: str) -> Topology:
  count, star, slice_name = name.rpartition('*')
  if star and (not count.isdecimal() or int(count) < 1):
    raise UsageError(
      f'no topology {name!r}: expected N*SLICE for N slices, 1 or more.'
    )
  return parse_topology(slice_name, int(count) if star else 1)


def table_row(plan: Plan, first: Plan) -> str:
  """Returns a row under `TABLE_HEAD`; its last cell compares pairs of a chip.

  Args:
    first: the plan of the fewest chips, to which the others are compared.
  """
  cells = [f'{plan["chips"]:,}', plan['topology']]
  cells.append(f'{plan["settings"]["data.batch_size"]:,}')
  if not plan['fits']:
    return f'| {" | ".join([*cells, "does not fit", *[""] * 6])} |'
  seconds = plan['step_seconds'], plan['compute_seconds']
  # The last is the part of the exchanges that no arithmetic hides.
  shown = (*seconds, plan['collective_seconds'], seconds[0] - seconds[1])
  cells += [f'{1e3 * each:,.1f}' for each in shown]
  cells += [_longest(plan), f'{plan["mfu"]:.0%}']
  compared = f'{_rate(plan) / _rate(first):.1%}' if first['fits'] else '-'
  return f'| {" | ".join([*cells, compared])} |'


def _longest(plan: Plan) -> str:
  """Returns the kind of exchange that takes longest, with all of its time."""
  totals: dict[str, float] = {}
  for exchange in plan['collectives']:
    axes = ' x '.join(exchange['axes']) or 'one'
    name = f'{exchange["op"]} over {axes}'
    totals[name] = totals.get(name, 0.0) + exchange['seconds']
  if not totals:
    return 'none'
  name = max(totals, key=lambda name: totals[name])
  return f'{name} {1e3 * totals[name]:,.1f}'


def _rate(plan: Plan) -> float:
  return plan['pairs_per_second'] / plan['chips']
